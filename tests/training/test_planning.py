"""A plan against the program that it is made from: compiled for TPUs where libtpu is installed, on a machine that has none."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import rich.console

from cdcd_jax.config import Config, UserError
from cdcd_jax.evaluation import planning as sampling
from cdcd_jax.parallel import topology
from cdcd_jax.parallel.flops import Flops
from cdcd_jax.parallel.roofline import roofline
from cdcd_jax.reporting import plans
from cdcd_jax.training import compiling, planning
from tests import tiny
from tests.test_configs import read

Door = Callable[..., subprocess.CompletedProcess[str]]
# A model of the paper's kind, small enough to compile in seconds, wide enough that TPUs need not pad it.
SMALL = {
    "data.tokenizer": "sentencepiece", "data.vocab_size": 1024, "model.width": 512, "model.num_heads": 4, "model.mlp_width": 1024,
    "model.embedding_dim": 128, "model.num_layers": 2, "model.output_prior": False, "model.posterior_mean_input": False, "model.noisy_vector": False,
    "model.convolution_width": 0, "optim.name": "adam", "train.batch_size": 16, "train.position_sigma_fraction": 0.0, "model.dtype": "bfloat16",
}  # fmt: skip
FIELDS = {
    "topology", "fits", "hbm_bytes_per_chip", "peak_bytes_per_chip", "state_bytes_per_chip", "collectives", "flops_per_step", "roofline_step_seconds",
    "bound_by",
}  # fmt: skip


def small(**changes: Any) -> Config:
    return planning.changed_config(tiny.config(SMALL), {key.replace("__", "."): value for key, value in changes.items()})


def flags(topology: str, output: pathlib.Path, changes: dict[str, Any]) -> list[str]:
    keys = tiny.TINY | SMALL | changes
    return ["--config=configs/demo.py", f"--topology={topology}", f"--output={output}", *(f"--config.{key}={value}" for key, value in keys.items())]


def test_a_step_compiled_for_a_tpu(tmp_path: pathlib.Path, run_door: Door) -> None:
    """The door, without a TPU. What a chip stores is predicted to 2 % of what the program says that it takes."""
    pytest.importorskip("libtpu")
    done = run_door("plan", *flags("v5e:2x2", tmp_path / "plan.json", {"mesh.fsdp": -1}))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    assert FIELDS <= found.keys() and found["compiled"] and found["fits"] and found["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    tokens = 4 * tiny.LENGTH * 4  # of a chip's rows
    assert found["state_bytes_per_chip"] == pytest.approx(found["argument_bytes_per_chip"] - tokens, rel=0.02)
    parts = sum(found[f"{name}_bytes_per_chip"] for name in ("parameter", "ema", "optimizer"))
    assert parts == pytest.approx(found["state_bytes_per_chip"], rel=0.01)
    assert found["peak_bytes_per_chip"] >= found["argument_bytes_per_chip"] + found["activation_bytes_per_chip"]
    # The blocks' matrices, in bfloat16, are gathered for two passes forward and one back, and their gradients are summed once.
    matrices = 2 * (4 * 512 * 512 + 2 * 512 * 1024) * 2
    moved = {kind: sum(c["bytes"] for c in found["collectives"] if c["kind"] == kind) for kind in ("all-gather", "reduce-scatter", "all-reduce")}
    assert {c["axis"] for c in found["collectives"]} == {"fsdp"}
    assert 4 * matrices <= sum(moved.values()) <= 12 * matrices
    assert found["bound_by"] in ("compute", "hbm", "network") and found["roofline_step_seconds"] == max(found["roofline_seconds"].values())
    assert "fits" in done.stdout and found["advice"] is None
    assert done.stderr.splitlines() == ["compiling the train step for v5e:2x2, which may take minutes"]


# More than a million tokens, so that the state is too large for a chip, though the program is small.
LARGE = {"data.vocab_size": 1_200_000, "model.embedding_dim": 256, "mesh.fsdp": 1}


def follow(config: Config, advice: tuple[str, ...] | None) -> Config:
    """The config with the flags of an advice."""
    assert advice is not None
    pairs = [flag.removeprefix("--config.").split("=") for flag in advice]
    return planning.changed_config(config, {key: type(planning._value(config, key))(value) for key, value in pairs})


def test_a_long_compilation_says_that_it_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler lets other threads run meanwhile."""
    monkeypatch.setattr(compiling, "TICK", 0.01)
    said: list[str] = []
    with compiling.ticking(said.append):
        jax.jit(lambda x: jnp.linalg.svd(x @ x)[0]).lower(jnp.zeros((64, 64))).compile()
    number = len(said)
    assert number and re.match(r"still compiling after \d+ s", said[0])
    time.sleep(0.05)
    assert len(said) == number


@pytest.mark.slow
def test_what_does_not_fit_is_told_what_would_make_it_fit() -> None:
    """The compiler itself says that the program is too large, and compiles it with the advice. What is compiled is said before it is."""
    pytest.importorskip("libtpu")
    config, where, said = small(**LARGE), topology.parse("v5e:2x2"), []
    found = planning.plan(config, where, config.data.vocab_size, said.append)
    assert not found.fits and not found.compiled and found.memory.peak > found.memory.hbm
    assert found.advice == ("--config.mesh.fsdp=4",)
    compiling = "compiling the train step for v5e:2x2, which may take minutes"
    told = [line for line in said if not line.startswith("still compiling")]  # which a busy machine says as well
    assert told == [compiling, "it does not fit; trial 1 of 6 at most: --config.mesh.fsdp=4", compiling]
    assert found.advised_peak is not None and found.advised_peak <= found.memory.hbm


def test_what_cannot_fit_is_not_compiled_and_the_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of a state that is far too large is believed. After the last trial the plan says what it would have tried next."""
    pytest.importorskip("libtpu")
    monkeypatch.setattr(planning, "ATTEMPTS", 0)
    config, said = small(**LARGE | {"data.vocab_size": 3_500_000, "model.width": 128}), []
    found = planning.plan(config, topology.parse("v5e:2x4"), config.data.vocab_size, said.append)
    assert said == [] and not found.fits and not found.compiled and found.memory.peak > planning.HOPELESS * found.memory.hbm
    assert found.notes[0] == "not compiled: the estimate alone is more than 1.5 times the memory of a chip"
    assert found.notes[1].startswith("stopped after 0 trials, in ") and "next would be --config.mesh.fsdp=8" in found.notes[1]


@pytest.mark.slow
def test_following_the_advice_makes_it_fit(tmp_path: pathlib.Path, run_door: Door) -> None:
    """From the command line: exit 1 and an advice; with it, exit 0."""
    pytest.importorskip("libtpu")
    command = flags("v5e:2x2", tmp_path / "plan.json", LARGE)
    assert run_door("plan", *command).returncode == 1
    advice = json.loads((tmp_path / "plan.json").read_text())["advice"]
    assert run_door("plan", *command, *advice).returncode == 0
    assert json.loads((tmp_path / "plan.json").read_text())["fits"]


@pytest.mark.slow
@pytest.mark.parametrize("config", ["paper_large", "scale_1b", "scale_7b"])
@pytest.mark.parametrize("name", ["v5e:16x16", "v5p:8x8x8", "v6e:16x16", "2xv5e:16x16"])
def test_the_large_configs_fit_whole_pods(config: str, name: str) -> None:
    pytest.importorskip("libtpu")
    found = planning.plan(read(config), topology.parse(name), 32_000)
    assert found.fits and found.compiled
    assert found.memory.arguments == pytest.approx(found.memory.state, rel=0.02)


@pytest.mark.slow
def test_communication_does_not_grow_with_the_chips() -> None:
    """The paper's large model, four rows a chip, on 64 and 512 chips."""
    pytest.importorskip("libtpu")
    config, sums = read("paper_large"), []
    for name, batch in (("v5p:4x4x4", 256), ("v5p:8x8x8", 2048)):
        found = planning.plan(planning.changed_config(config, {"train.batch_size": batch}), topology.parse(name), 32_000)
        sums.append(sum(collective.bytes for collective in found.collectives))
    assert sums[1] <= 1.01 * sums[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "v5e:1x1", "v4:2x2x1"])
def test_the_sampler_compiled_for_a_tpu(name: str) -> None:
    pytest.importorskip("libtpu")
    found = sampling.plan(small(), topology.parse(name), 512)
    assert found.fits and found.compiled and not found.collectives
    assert found.memory.arguments == pytest.approx(found.memory.state, rel=0.1)  # and the rows that it begins with


@pytest.mark.slow
def test_a_sampler_that_needs_a_larger_tpu_is_compiled_for_it() -> None:
    pytest.importorskip("libtpu")
    config, said = small(data__vocab_size=900_000, model__embedding_dim=256, model__width=4096), []
    found = sampling.plan(config, topology.parse("v5e:2x2"), config.data.vocab_size, said.append)
    assert not found.fits and found.advice and found.advised_peak is not None
    chosen = topology.parse(found.advice[0].removeprefix("--topology="))
    assert chosen.sides and found.advised_peak <= chosen.chip.hbm_bytes
    assert said[-1] == f"compiling the sampler for one chip of {chosen.chip.name}, which may take minutes"


def test_one_chip_samples(capsys: pytest.CaptureFixture[str]) -> None:
    """Chips, mesh, operations and speed are that one's, and the tables say so; a larger GPU is advised where one is too small."""
    found = sampling.plan(read("scale_7b"), topology.parse("gpu:h100x8"), 32_000)
    told = found.as_dict()
    assert told["fits"] and told["chips"] == 1 and set(told["mesh"].values()) == {1} and told["tokens_per_step"] == 16 * 1024
    assert found.mfu == pytest.approx(found.flops.model / found.roofline.seconds / found.topology.chip.flops)
    plans.show(found, rich.console.Console(width=150))
    shown = capsys.readouterr().out
    slowest = found.roofline.slowest
    assert f"bound by {slowest}" in shown and f"{slowest} {getattr(found.roofline, slowest) * 1e3:.3g}" in shown  # one word for one thing
    assert "of a batch of samples on one chip" in shown and "of which each samples for itself" in shown
    assert not any(word in shown for word in ("all chips", "gradients", "optimiser", "collective", "computed again"))
    for work in range(1, 100):  # nothing but products, at the chip's peak: not a bit more, however the shares are rounded
        bound = roofline(dataclasses.replace(found.topology, count=1), work / 7, 0, [], {})
        assert dataclasses.replace(found, flops=Flops(work / 7, 0.0, 0.0), roofline=bound).mfu == 1
    wider = planning.changed_config(read("scale_7b"), {"model.num_layers": 70})
    found = sampling.plan(wider, topology.parse("gpu:h100x8"), 32_000)
    assert not found.fits and found.advice == ("--topology=gpu:h200x8",)
    assert sampling.plan(wider, topology.parse("gpu:h200x8"), 32_000).memory.peak == found.advised_peak


def test_on_gpus_the_plan_is_an_estimate() -> None:
    """Held against what JAX takes of a GPU's memory by default, and the plan says so."""
    found = planning.plan(read("paper_large"), topology.parse("gpu:h100x8"), 32_000)
    assert found.memory.hbm == 0.75 * 80e9 and "75% of it that JAX takes" in found.notes[1] and "XLA_PYTHON_CLIENT_MEM_FRACTION" in found.notes[1]
    assert not found.compiled and not found.fits and found.memory.arguments is None and found.mesh["fsdp"] == 8
    followed = planning.plan(follow(read("paper_large"), found.advice), topology.parse("gpu:h100x8"), 32_000)
    assert followed.fits and followed.memory.peak == pytest.approx(found.advised_peak)


def test_a_plan_for_several_nodes_says_what_runs_between_them() -> None:
    """As many slices as nodes keep FSDP within a node; one node has nothing to be said."""
    for name, slices, said, fsdp in (
        ("h200x8", 1, "", 8),
        ("h200x16", 1, "2 nodes of 8 GPUs, 50 GB/s a GPU between them; with --config.mesh.slices=1 any axis may run between them, with 2 ", 16),
        ("h200x16", 2, "2 nodes of 8 GPUs, 50 GB/s a GPU between them; with --config.mesh.slices=2 the data axis alone runs between slices", 8),
    ):
        config = planning.changed_config(read("paper_large"), {"mesh.slices": slices, "model.remat": "full"})
        found = planning.plan(config, topology.parse(f"gpu:{name}"), 32_000)
        notes = [note for note in found.notes if " nodes of " in note]
        assert len(notes) == bool(said) and all(note.startswith(said) for note in notes)
        assert found.mesh["fsdp"] == fsdp and bool(found.roofline.links) == (fsdp == 8)


@pytest.mark.parametrize("name, leaves", [("h200x8", False), ("h200x16", True)])
def test_slices_of_gpus_send_what_the_same_mesh_sends(name: str, leaves: bool) -> None:
    """They lie in the same order, so that of what is summed over 16 no more leaves a node; and of one node nothing does."""
    one, two = (
        planning.plan(small(mesh__fsdp=1, mesh__slices=slices), topology.parse(f"gpu:{name}"), 1024).roofline for slices in (1, 2)
    )
    assert one == two and (two.network > 0, two.links > 0) == (leaves, not leaves)


@pytest.mark.parametrize("tokenizer, alphabet, size", [("sentencepiece", "text", 1024), ("byte", "text", 256), ("char", "27", 27)])
def test_the_vocabulary_that_a_config_tells_of(tokenizer: str, alphabet: str, size: int) -> None:
    assert planning.vocabulary(small(data__tokenizer=tokenizer, data__alphabet=alphabet)) == size


def test_a_vocabulary_that_only_the_text_tells_of() -> None:
    with pytest.raises(UserError, match="data.tokenizer = 'char' takes its vocabulary from the text, which is not read here: give --vocab_size=N."):
        planning.vocabulary(small(data__tokenizer="char", data__alphabet="text"))


@pytest.mark.parametrize(
    "words, needed",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (26.80G) exceeds available HBM (15.75G).",
            26.8 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.0M of 256.00M hbm. Exceeded hbm capacity by 256M.", 512 * 2**20),
        ("INTERNAL: something (26.80G) exceeds available HBM (15.75G)", None),
        ("RESOURCE_EXHAUSTED: no threads", None),
    ],
)
def test_the_compilers_words_for_too_large(words: str, needed: float | None) -> None:
    assert compiling._needed(words) == needed


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--topology=w9:8x8"], "names an unknown chip (known: v4, v5e, v5p, v6e); known topologies: v5e:16x16"),
        (["--topology=gpu:h100x8", "--config.mesh.fsdp=3"], "mesh.fsdp x mesh.tensor must divide 8, so it may be 1, 2, 4 or 8, not 3."),
        (["--topology=gpu:h100x8", "--output=plan.txt"], "'plan.txt' is no name for the file that will be written: take another, that ends in"),
        ([], "the flag --topology is required."),
    ],
)
def test_mistakes_are_said_in_a_sentence(run_door: Door, arguments: list[str], said: str) -> None:
    done = run_door("plan", "--config=configs/demo.py", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_its_compiler_the_door_says_how_to_install_it(run_door: Door) -> None:
    if importlib.util.find_spec("libtpu") is not None:
        pytest.skip("libtpu is installed")
    done = run_door("plan", "--config=configs/demo.py", "--topology=v5e:2x2")
    assert done.returncode == 2 and "pip install 'cdcd_jax[plan]'" in done.stderr
