"""Communication read from a program's text: kind, bytes, axis; each once, however it is written, and as often as its loop turns."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cdcd_jax.parallel.collectives import Collective, collectives, replica_groups
from cdcd_jax.parallel.program import parse
from tests import tiny

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
ADD = """%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}
"""


def program(line: str, before: str = "", result: str = "f32[8,128]{1,0}", partitions: int = 8) -> str:
    """A program of one line, whose operand is %a."""
    return f"""HloModule jit_f, num_partitions={partitions}

{ADD}
{before}
ENTRY %main (a: f32[8,128]) -> {result} {{
  %a = f32[8,128]{{1,0}} parameter(0)
  {line}
}}
"""


SIZE = 8 * 128 * 4
PAIRS = "{{0,1},{2,3},{4,5},{6,7}}"  # neighbours: the tensor axis
CASES = {
    "sum over tensor": (
        f"ROOT %r = f32[8,128]{{1,0}} all-reduce(%a), replica_groups={PAIRS}, to_apply=%add", ("all-reduce", "tensor", SIZE, SIZE, 1)
    ),
    "gather over fsdp": (
        "ROOT %r = f32[16,128]{1,0} all-gather(%a), replica_groups={{0,2},{1,3},{4,6},{5,7}}, dimensions={0}",
        ("all-gather", "fsdp", 2 * SIZE, SIZE, 1),
    ),
    "scatter over data, as iota": (
        "ROOT %r = f32[4,128]{1,0} reduce-scatter(%a), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add",
        ("reduce-scatter", "data", SIZE, SIZE / 2, 1),
    ),
    "sum over all": (
        "ROOT %r = f32[8,128]{1,0} all-reduce(%a), replica_groups={}, to_apply=%add", ("all-reduce", "data+fsdp+tensor", SIZE, 1.75 * SIZE, 1)
    ),
    "sum over rows' axes, by a mesh's names": (
        "ROOT %r = f32[8,128]{1,0} all-reduce(%a), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add",
        ("all-reduce", "data+fsdp", SIZE, 1.5 * SIZE, 1),
    ),
    "several at once": (
        f"ROOT %r = (f32[8,128]{{1,0}}, bf16[4]{{0}}) all-reduce(%a, %a), replica_groups={PAIRS}, to_apply=%add",
        ("all-reduce", "tensor", SIZE + 8, SIZE + 8, 1),
    ),
    "neighbours": (
        "ROOT %r = f32[8,128]{1,0} collective-permute(%a), source_target_pairs={{0,4},{1,5},{2,6},{3,7}}",
        ("collective-permute", "data", SIZE, SIZE, 1),
    ),
    "everyone to everyone": (
        f"ROOT %r = f32[8,128]{{1,0}} all-to-all(%a), replica_groups={PAIRS}, dimensions={{0}}", ("all-to-all", "tensor", SIZE, SIZE / 2, 1)
    ),
    "a gather with an end": (
        "%s = (f32[8,128]{1,0}, f32[16,128]{1,0}) all-gather-start(%a), replica_groups={{0,2},{1,3},{4,6},{5,7}}, dimensions={0}\n"
        "  ROOT %r = f32[16,128]{1,0} all-gather-done(%s)",
        ("all-gather", "fsdp", 2 * SIZE, SIZE, 1),
    ),
    "a move with an end": (
        "%s = (f32[8,128]{1,0}, f32[8,128]{1,0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,2},{1,3},{4,6},{5,7}}\n"
        "  ROOT %r = f32[8,128]{1,0} collective-permute-done(%s)",
        ("collective-permute", "fsdp", SIZE, SIZE, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("line, expected", CASES.values(), ids=CASES)
def test_one_collective(line: str, expected: tuple[str, str, float, float, float]) -> None:
    assert collectives(parse(program(line)), MESH) == [Collective(*expected)]


def test_a_sum_within_one_device_is_none() -> None:
    line = "ROOT %r = f32[8,128]{1,0} all-reduce(%a), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add"
    assert collectives(parse(program(line)), MESH) == []


def test_what_tpus_run_beside_other_work_counts_once() -> None:
    """It is named in the fusion that starts it, in each that it runs beside, and in the one that ends it."""
    gather = 'all-gather(%p), replica_groups={{0,2},{1,3},{4,6},{5,7}}, dimensions={0}, backend_config={"async_collective_fusion_config":{}}'
    shape = "f32[16,128]{1,0}"
    before = f"""
%start (p: f32[8,128]) -> (f32[8,128], f32[16,128]) {{
  %p = f32[8,128]{{1,0}} parameter(0)
  %g = {shape} {gather}
  ROOT %c = (f32[8,128]{{1,0}}, {shape}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}
%during (p: f32[8,128]) -> (f32[8,128], f32[16,128]) {{
  %p = f32[8,128]{{1,0}} parameter(0)
  %g = {shape} {gather}
  %n = f32[8,128]{{1,0}} negate(%p)
  ROOT %c = (f32[8,128]{{1,0}}, {shape}) tuple(%n, %g)
}}
%end (p: f32[8,128]) -> f32[16,128] {{
  %p = f32[8,128]{{1,0}} parameter(0)
  %g = {shape} {gather}
  ROOT %c = {shape} custom-call(%p, %g), custom_call_target="AsyncCollectiveDone"
}}"""
    line = (
        f"%s = (f32[8,128]{{1,0}}, {shape}) fusion(%a), kind=kCustom, calls=%start\n  %d = (f32[8,128]{{1,0}}, {shape}) fusion(%a), kind=kLoop, "
        f"calls=%during\n  ROOT %e = {shape} fusion(%a), kind=kCustom, calls=%end"
    )
    assert collectives(parse(program(line, before)), MESH) == [Collective("all-gather", "fsdp", 2 * SIZE, SIZE, 1)]


def test_a_sum_of_which_a_device_keeps_its_part_is_a_scatter() -> None:
    before = f"""
%all-reduce-scatter (p: f32[8,128]) -> f32[4,128] {{
  %p = f32[8,128]{{1,0}} parameter(0)
  %r = f32[8,128]{{1,0}} all-reduce(%p), replica_groups={PAIRS}, to_apply=%add
  %i = u32[] partition-id()
  %z = u32[] constant(0)
  ROOT %s = f32[4,128]{{1,0}} dynamic-slice(%r, %i, %z), dynamic_slice_sizes={{4,128}}
}}"""
    line = "ROOT %f = f32[4,128]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter"
    assert collectives(parse(program(line, before)), MESH) == [Collective("reduce-scatter", "tensor", SIZE, SIZE / 2, 1)]


def test_between_slices() -> None:
    """A slice's program numbers its own devices, and sends to the other slices what its own have summed."""
    handler = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"'
    line = (
        f"%r = f32[8,128]{{1,0}} all-reduce(%a), replica_groups={{{{0,2}},{{1,3}}}}, to_apply=%add\n  %t = token[] after-all()\n"
        f"  %s = (f32[8,128]{{1,0}}, u32[], token[]) send(%r, %t), is_host_transfer=true, frontend_attributes={{{handler}}}\n"
        f"  %d = token[] send-done(%s)\n  %v = (f32[8,128]{{1,0}}, u32[], token[]) recv(%t), frontend_attributes={{{handler}}}\n"
        "  %w = (f32[8,128]{1,0}, token[]) recv-done(%v)\n  ROOT %o = f32[8,128]{1,0} get-tuple-element(%w), index=0"
    )
    found = collectives(parse(program(line, partitions=4)), MESH, slices=2)
    assert found == [Collective("all-reduce", "data", SIZE, SIZE, 1, network=True), Collective("all-reduce", "fsdp", SIZE, SIZE, 1)]


@pytest.mark.parametrize(
    "text, groups",
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{}", [[0, 1, 2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['x'=2,'y'=2] {'y'}", [[0, 1], [2, 3]]),
        ("mesh['x'=2,'y'=2] {'x','y'}", [[0, 1, 2, 3]]),
        ("mesh['x'=2,'y'=1,'z'=2], device_ids=([2,2]T(1,0)) {'x'}", [[0, 1], [2, 3]]),
        ("mesh['x'=4], device_ids=(3,2,1,0) {'x'}", [[3, 2, 1, 0]]),
        ("mesh['x'=4] {'x':(1)2}", [[0, 2], [1, 3]]),
        ("mesh['x'=4] {'x':(2)2}", [[0, 1], [2, 3]]),
    ],
)
def test_groups_in_all_the_ways_they_are_written(text: str, groups: list[list[int]]) -> None:
    assert replica_groups(f"channel_id=1, replica_groups={text}, use_global_device_ids=true, metadata={{}}", 4) == groups


def test_a_program_for_another_mesh_is_refused() -> None:
    with pytest.raises(ValueError, match="the program is for 8 devices, but the mesh .* has 4"):
        collectives(parse(program("ROOT %r = f32[8,128]{1,0} negate(%a)")), {"data": 2, "fsdp": 2, "tensor": 1})


def test_a_program_that_was_really_compiled() -> None:
    """Five matrices, divided over FSDP, are gathered one by one in a scan; the answer is summed over the tensor axis once."""
    mesh = tiny.mesh(2, 2, 2)

    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            whole = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ whole), NamedSharding(mesh, P("data"))), None

        return jax.lax.scan(layer, x, w)[0]

    arguments = (
        jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, P("data"))),
        jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp"))),
    )
    found = collectives(parse(jax.jit(f).lower(*arguments).compile().as_text()), MESH)
    assert [(c.kind, c.axis, c.bytes, c.count) for c in found] in (
        [("all-gather", "fsdp", 5 * 16 * 16 * 4, 5)],
        [("all-gather", "fsdp", 5 * 16 * 16 * 4, 1)],  # where the compiler gathers all of them before the loop
    )
