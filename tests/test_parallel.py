"""Where arrays lie changes nothing that they say: the same losses on any mesh, with parameters gathered and never activations, compiled once."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from jax import monitoring

from cdcd_jax.model.layers import anywhere
from cdcd_jax.parallel.sharding import path_name
from cdcd_jax.training import step
from tests import tiny

STEPS = 20
# All that can be sharded divides by eight, and multiples of seven are numbers of rows, or of their parts, and nothing else.
WIDE = {"model.width": 32, "model.num_heads": 8, "model.mlp_width": 48, "train.batch_size": 224}
PAPER = {
    "model.sigma_conditioning": True, "model.noisy_vector": False, "model.convolution_width": 0, "model.output_prior": False,
    "model.posterior_mean_input": False, "optim.name": "adam", "train.position_sigma_fraction": 0.0,
}  # fmt: skip
# Between them, every option of the model.
CONFIGS = {
    "demo": tiny.config(WIDE),
    "paper": tiny.config(WIDE | PAPER),
    "paper in parts": tiny.config(WIDE | PAPER | {"train.accumulation_steps": 2, "model.remat": "full"}),
    "paper in bfloat16": tiny.config(WIDE | PAPER | {"model.dtype": "bfloat16"}),
}
ALL = [(data, fsdp, 8 // data // fsdp) for data in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8) if data * fsdp <= 8] + [(2, 1, 1), (1, 2, 2)]
FAST = {("demo", 8, 1, 1), ("demo", 2, 2, 2), ("paper in parts", 2, 4, 1)}
CASES = [
    pytest.param(name, *mesh, marks=[] if (name, *mesh) in FAST else pytest.mark.slow)
    for name in ("demo", "paper", "paper in parts")
    for mesh in ALL
    if name != "paper in parts" or mesh[2] == 1
]


@dataclasses.dataclass(frozen=True)
class Run:
    """The first steps on a mesh: their metrics, the program, and how often something was compiled after the second of them."""

    trainer: tiny.Trainer
    metrics: list[dict[str, float]]
    program: str
    compiled_late: int
    versions: int  # of the step


@functools.cache
def run(name: str, data: int, fsdp: int, tensor: int) -> Run:
    work = tiny.trainer(CONFIGS[name], tiny.mesh(data, fsdp, tensor))
    program, events = work.lowered().compile().as_text(), []
    state, first = work.run(work.init(), 2)

    def listen(event: str, _: float, **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            events.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    state, rest = work.run(state, STEPS - 2)
    late = len(events)
    jax.jit(lambda x: x + data + fsdp + tensor)(1.5)
    assert len(events) > late  # so hearing nothing meant something
    monitoring.unregister_event_duration_listener(listen)
    return Run(work, first + rest, program, late, work.step._cache_size())


def collectives(program: str) -> list[tuple[str, set[int]]]:
    """The kind of each communication in a compiled program, and all sizes of axes of what it yields."""
    found = re.findall(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", program)
    return [(kind, {int(size) for shape in re.findall(r"\w+\[([\d,]+)\]", shapes) for size in shape.split(",")}) for shapes, kind in found]


def of_rows(program: str, tensor: int) -> list[tuple[str, set[int]]]:
    """The communications whose axes are numbers of rows. Sums of activations belong to tensor parallelism."""
    rows = [(kind, sizes) for kind, sizes in collectives(program) if any(size % 7 == 0 for size in sizes)]
    return [(kind, sizes) for kind, sizes in rows if kind != "all-reduce" or tensor == 1]


@pytest.mark.parametrize("name, data, fsdp, tensor", CASES)
def test_the_same_losses_on_every_mesh(name: str, data: int, fsdp: int, tensor: int) -> None:
    here, there = run(name, data, fsdp, tensor), run(name.removesuffix(" in parts"), 1, 1, 1)
    for found, expected in zip(here.metrics, there.metrics, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert of_rows(here.program, tensor) == []
    assert (here.compiled_late, here.versions) == (0, 1)


def test_rows_are_known_by_their_number() -> None:
    """What the test above rests on: no axis of a parameter is a multiple of seven, and parameters are gathered."""
    here = run("demo", 2, 2, 2)
    assert not any(size % 7 == 0 for leaf in jax.tree.leaves(here.trainer.abstract) for size in leaf.shape)
    assert any(kind == "all-gather" for kind, _ in collectives(here.program))


@pytest.mark.slow
def test_unconstrained_activations_would_be_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "constrain", lambda _: anywhere)
    program = tiny.trainer(CONFIGS["paper"], tiny.mesh(1, 8, 1)).lowered().compile().as_text()
    assert {"all-gather", "all-reduce"} <= {kind for kind, _ in of_rows(program, 1)}


def test_bfloat16_on_a_mesh() -> None:
    """Products are bfloat16, the state stays float32, and the losses are those of float32 to what bfloat16 can tell."""
    half = run("paper in bfloat16", 2, 2, 2)
    products = re.findall(r"stablehlo.dot_general.*\(tensor<\w+x(\w+)>, tensor<\w+x(\w+)>\)", half.trainer.lowered().as_text())
    assert products.count(("bf16", "bf16")) > len(products) / 2  # the others are sigma's features and what mixes embeddings
    assert {leaf.dtype for leaf in jax.tree.leaves(half.trainer.abstract)} == {np.dtype(np.float32), np.dtype(np.int32)}
    losses, expected = ([metrics["loss"] for metrics in here.metrics] for here in (half, run("paper", 1, 1, 1)))
    assert losses == pytest.approx(expected, rel=1e-2) and losses != pytest.approx(expected, rel=1e-5)
    assert (half.compiled_late, half.versions) == (0, 1)


def test_it_is_really_spread() -> None:
    """Each device of eight holds a part of the large matrices, of their averages and of their optimiser's state, and a part of the batch."""
    work = run("demo", 2, 2, 2).trainer
    whole = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(work.abstract)}
    spread = {name for name, leaf in whole.items() if not leaf.sharding.is_fully_replicated}
    for name in ("embeddings/table", "denoiser/head/kernel", *(f"denoiser/blocks/{name}" for name in ("attention/qkv", "up/kernel", "down/kernel"))):
        found = {path for path in spread if path.endswith(name)}
        assert {path.split("/")[0] for path in found} == {"params", "ema", "opt_state"}, name
        assert all(whole[path].sharding == whole[f"params/{name}"].sharding for path in found)
    qkv = whole["params/denoiser/blocks/attention/qkv"]
    assert qkv.sharding.shard_shape(qkv.shape) == (1, 16, 3, 16)
    assert work.batch_sharding.shard_shape((224, 16)) == (56, 16)


def test_the_configs_here_cover_the_models_options() -> None:
    options = {(m.sigma_conditioning, bool(m.convolution_width), m.noisy_vector) for m in (config.model for config in CONFIGS.values())}
    assert options == {(False, True, True), (True, False, False)}
