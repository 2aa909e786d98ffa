"""A compiled program's text: how often each instruction runs, and what it moves, on programs written here, small enough to count by hand."""

import jax
import jax.numpy as jnp
import pytest

from cdcd_jax.parallel.program import arrays, parse, traffic

LOOP = """HloModule jit_f, is_scheduled=true, num_partitions=4

%inner (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %negate = f32[8,128]{1,0:T(8,128)} negate(%p)
}

%condition (state: (s32[], f32[8,128], f32[24,8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, /*index=2*/f32[24,8,128]{2,1,0:T(8,128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body (state.1: (s32[], f32[8,128], f32[24,8,128])) -> (s32[], f32[8,128], f32[24,8,128]) {
  %state.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, /*index=2*/f32[24,8,128]{2,1,0:T(8,128)}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%state.1), index=1
  %stack = f32[24,8,128]{2,1,0:T(8,128)} get-tuple-element(%state.1), index=2
  %step = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%counter.1, %step)
  %y = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%inner
  ROOT %tuple = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, /*index=2*/f32[24,8,128]{2,1,0:T(8,128)}) tuple(%next, %y, %stack)
}

ENTRY %main (a: f32[8,128], b: f32[24,8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = f32[24,8,128]{2,1,0:T(8,128)} parameter(1)
  %begin = s32[]{:T(128)} constant(START)
  %begin.copy = s32[]{:T(128)} copy(%begin)
  %start = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[24,8,128]{2,1,0:T(8,128)}) tuple(%begin.copy, %a, %b)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[24,8,128]{2,1,0:T(8,128)}) while(%start), condition=%condition, body=%body TOLD
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def loop(start: int = 0, step: int = 1, told: str = "", limit: str = "constant(24)") -> str:
    text = LOOP.replace("START", str(start)).replace("STEP", str(step)).replace(" TOLD", told)
    return text.replace("%limit = s32[]{:T(128)} constant(24)", f"%limit = s32[]{{:T(128)}} {limit}")


@pytest.mark.parametrize(
    "text, turns",
    [
        (loop(), 24),
        (loop(start=1), 23),
        (loop(step=2), 12),
        (loop(start=1, step=2), 12),
        (loop(told=', backend_config={"known_trip_count":{"n":"7"}}'), 7),
        (loop().replace("s32[]", "u32[]"), 24),
    ],
)
def test_a_loop_turns_as_often_as_it_says(text: str, turns: int) -> None:
    program = parse(text)
    assert program.partitions == 4
    assert program.runs == {"main": 1, "body": turns, "condition": turns, "inner": turns}
    assert program.fused == {"inner"} and not program.endless


def test_a_loop_that_does_not_say() -> None:
    assert parse(loop(limit="parameter(1)")).endless == {"body", "condition", "inner"}


def test_a_fusion_in_a_loop_moves_what_it_takes_and_yields_each_time() -> None:
    """8 x 128 numbers of four bytes in and out, 24 times; the counter is a copy and an addition of scalars."""
    scalars = 2 * 4 + 24 * 3 * 4 + 24 * (2 * 4 + 1)  # copy; addition; comparison
    assert traffic(parse(loop())) == 24 * 2 * 8 * 128 * 4 + scalars


@pytest.mark.parametrize(
    "shape, expected",
    [
        ("f32[2,3]{1,0}", [(24, True)]),
        ("(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/s32[]{:T(128)}, pred[5]{0})", [(2048, False), (4, True), (5, True)]),
        ("(u8[3], token[], f8e4m3fn[4])", [(3, True), (4, True)]),
    ],
)
def test_bytes_of_a_shape_and_where_they_lie(shape: str, expected: list[tuple[int, bool]]) -> None:
    assert arrays(shape) == expected


SLICES = """HloModule jit_g

%fused (p0: f32[24,8,128], p1: s32[], p2: f32[8,128]) -> f32[24,8,128] {
  %p0 = f32[24,8,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = f32[1,8,128]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,128}
  %p2 = f32[8,128]{1,0} parameter(2)
  %flat = f32[1,8,128]{2,1,0} bitcast(%p2)
  %sum = f32[1,8,128]{2,1,0} add(%one, %flat)
  ROOT %update = f32[24,8,128]{2,1,0} dynamic-update-slice(%p0, %sum, %p1, %zero, %zero)
}

ENTRY %main (a: f32[24,8,128], i: s32[], b: f32[8,128]) -> f32[24,8,128] {
  %a = f32[24,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[8,128]{1,0} parameter(2)
  ROOT %out = f32[24,8,128]{2,1,0} fusion(%a, %i, %b), kind=kLoop, calls=%fused
}
"""


def test_of_a_stack_only_the_slice_counts() -> None:
    """Read: the slice, the index, the other operand; written: the updated slice."""
    assert traffic(parse(SLICES)) == 3 * 8 * 128 * 4 + 4


def test_a_program_that_was_really_compiled() -> None:
    """A scan over seven matrices: its body runs seven times, though XLA's own analysis counts it once."""

    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    compiled = jax.jit(f).lower(jnp.zeros((16, 16)), jnp.zeros((7, 16, 16))).compile()
    program = parse(compiled.as_text())
    assert 7 in program.runs.values()
    assert traffic(program) >= 7 * 3 * 16 * 16 * 4


def test_text_that_is_no_program() -> None:
    with pytest.raises(ValueError, match="no compiled program"):
        parse("hello")
