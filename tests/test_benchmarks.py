"""benchmarks/: that each measurement times what it says, and that finished ablations are not run again. How long anything takes is not tested."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import ablations, checkpoints, loader, preparing, ratios, timing
from cdcd_jax.config import UserError
from cdcd_jax.data import pipeline
from configs import demo
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_ratio_is_that_of_medians_and_quartiles_are_of_each_repeat() -> None:
    pair = timing.Pair([4.0, 6.0, 100.0], [2.0, 3.0, 4.0], [3.0, 3.0, 3.0], [1.0, 1.0, 9.0])
    assert pair.ratio == 2.0
    assert pair.cpu_ratio == 3.0
    assert pair.quartiles == (2.0, 13.5)


def test_both_are_timed_in_turn_and_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    pair = timing.in_turn(lambda: calls.append("m"), lambda: calls.append("r"), repeats=3, warm_up=2)
    assert "".join(calls) == "mmrr" + "mr" + "rm" + "mr"
    assert [len(times) for times in pair] == [3, 3, 3, 3]


def captured(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., Any], num_steps: int = 0) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The two calls that a measurement would time."""
    found: list[Callable[[], Any]] = []

    def keep(measured: Callable[[], Any], reference: Callable[[], Any], repeats: int, warm_up: int) -> timing.Pair:
        found.extend((measured, reference))
        return timing.Pair([1.0], [1.0], [1.0], [1.0])

    monkeypatch.setattr(ratios, "in_turn", keep)
    measure(tiny.config(), 1, num_steps)
    return found[0], found[1]


def test_train_step_is_held_against_the_gradient_of_one_bare_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    step, bare = captured(monkeypatch, ratios.train_step_ratio)
    first, second = step(), step()
    assert float(first["loss"]) != float(second["loss"])  # the state goes on
    gradient = bare()
    assert set(gradient) == {"embeddings", "denoiser"}
    head = gradient["denoiser"]["head"]["kernel"]  # the only matrix with a gradient while it is zero itself
    assert float(jnp.abs(head).max()) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_sampler_is_held_against_one_call_more_than_it_has_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    sample, bare = captured(monkeypatch, ratios.sampler_ratio, num_steps=3)
    assert sample().shape == (16, tiny.LENGTH)
    estimates = bare()
    assert [x0.shape for x0 in estimates] == [(16, tiny.LENGTH, 8)] * 4
    assert not np.allclose(estimates[0], estimates[-1])  # at different noise levels


def test_only_compiles_without_running(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []
    monkeypatch.setattr(ratios, "SHALLOW", 1)
    monkeypatch.setattr(ratios, "DEEP", 2)
    monkeypatch.setattr(ratios, "make_step", lambda config, *_: compiled.append(config.model.num_layers) or jax.jit(lambda state, tokens: tokens))
    deep, shallow = captured(monkeypatch, ratios.compile_time_ratio)
    deep(), shallow()
    assert compiled == [2, 1]


def test_what_checkpoints_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A save after every so many steps, of a state that does not pack into nothing; and a seal over all that a save has written."""
    work, saved = tiny.shared_trainer(), []
    monkeypatch.setattr(checkpoints, "start", lambda config: (work.step, work.init(), tiny.mesh()))
    real = checkpoints.Checkpoints.save
    monkeypatch.setattr(checkpoints.Checkpoints, "save", lambda self, step, state, *rest: (saved.append(state), real(self, step, state, *rest)))
    monkeypatch.setattr(checkpoints, "random_tokens", lambda config, shape: tiny.tokens(*shape[:1]))
    waited = checkpoints.checkpoint_wait(tiny.config(), 2, 3)
    assert [int(state.step) for state in saved[-1:]] == [1 + 3 * 3] and len(saved) == 3
    assert 0 < waited.value <= waited.details["largest"] < 1 and waited.details["seconds"] > 0
    sealed = checkpoints.seal_ratio(tiny.config(), 1, 0)
    assert sealed.details["bytes"] > sum(leaf.nbytes for leaf in jax.tree.leaves(work.init())) / 2
    assert 0 < sealed.details["seal_seconds"] < sealed.details["save_seconds"]


def test_the_loader_reads_every_kind_of_rows_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "ROWS", 300)
    cores = os.sched_getaffinity(0)
    result = loader.loader_tokens_per_second(tiny.config(), 1, 2)
    speeds = [result.details[kind] for kind in ("wrap", "pack", "pad", "pad_insertion")]
    assert result.value == min(speeds) > 0 and result.details["length"] == tiny.LENGTH
    assert os.sched_getaffinity(0) == cores


def test_what_preparing_costs(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.txt").write_text(tiny.corpus(400))
    config = tiny.config({"data.source": str(tmp_path / "text.txt"), "data.tokenizer": "sentencepiece", "data.vocab_size": 40})
    for measure in (preparing.prepare_ratio, preparing.prepare_short_ratio):
        result = measure(config, 1, 2)
        assert result.value == result.details["cpu"] / result.details["reference_cpu"] > 0
        assert result.details["characters"] == 2 * len(tiny.corpus(400))  # but for spaces that became line breaks
    assert result.details["documents"] > 2 * 40
    two = preparing.prepare_workers_ratio(config, 1, 1)
    assert two.value == two.details["seconds"] / two.details["reference_seconds"] > 0
    memory = preparing.prepare_memory_ratio(config, 1, 1)
    assert 0.8 < memory.value < 1.2 and memory.details["reference_worker_bytes"] > 30e6


def test_command_line(door_environment: dict[str, str]) -> None:
    changes = [f"--config.{key}={value}" for key, value in tiny.TINY.items()]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "benchmarks.run", *changes, *arguments]
        return subprocess.run(command, cwd=ROOT, env=door_environment, capture_output=True, text=True, timeout=280, check=False)

    done = run("--only=data_wait", "--repeats=1", "--num_steps=3")
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert {"name", "value", "unit", "reference", "device"} <= set(line)
    assert line["name"] == "data_wait" and 0 < line["value"] < 1 and "cpu" in line["device"]

    wrong = run("--only=data_weight")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: unknown benchmark 'data_weight' (did you mean \"data_wait\"?).\n"


def test_each_variant_takes_something_from_the_demo_and_is_a_config() -> None:
    recipe = demo.get_config()
    prints = {ablations.fingerprint(ablations.variant(recipe, name, 10, 0)) for name in ablations.VARIANTS}
    assert len(prints) == len(ablations.VARIANTS)
    for name in ablations.VARIANTS:
        assert ablations.fingerprint(ablations.variant(recipe, name, 10, 0)) == ablations.fingerprint(ablations.variant(recipe, name, 10, 1))
        assert ablations.fingerprint(ablations.variant(recipe, name, 10, 0)) != ablations.fingerprint(ablations.variant(recipe, name, 11, 0))


def test_finished_runs_are_not_run_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, int]] = []

    def fake(config: Any, corpus: Any, name: str) -> dict[str, Any]:
        ran.append((name, config.train.seed))
        bound = {"recipe": 2.0, "muon": 3.0}[name] + 0.1 * config.train.seed
        return {"name": name, "seed": config.train.seed, "recipe": ablations.fingerprint(config), "bits_per_char": bound, "seconds_per_step": 0.5}

    monkeypatch.setattr(ablations, "run", fake)
    monkeypatch.setattr(pipeline, "load_corpus", lambda config: "corpus")
    recipe, path = demo.get_config(), tmp_path / "runs.jsonl"
    ablations.ablate(recipe, ["recipe"], 10, 1, path)
    assert ran == [("recipe", 0)]
    text = ablations.ablate(recipe, ["recipe", "muon"], 10, 2, path)
    assert ran == [("recipe", 0), ("muon", 0), ("recipe", 1), ("muon", 1)]
    assert text.splitlines()[2:] == [
        "| the recipe | 2 | 2.050 ± 0.071 |  | 0.500 |",
        "| Adam in place of Muon | 2 | 3.050 ± 0.071 | +1.000 | 0.500 |",
    ]
    ablations.ablate(recipe, ["recipe"], 11, 1, path)  # another number of steps is another recipe
    assert ran[4:] == [("recipe", 0)]


def test_ablations_refuse_in_a_sentence(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"unknown variant 'moun' \(did you mean \"muon\"\?\)"):
        ablations.ablate(demo.get_config(), ["moun"], 1, 1, tmp_path / "runs.jsonl")
    with pytest.raises(UserError, match="there is no folder"):
        ablations.ablate(demo.get_config(), ["muon"], 1, 1, tmp_path / "missing" / "runs.jsonl")
    (tmp_path / "text.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match="is no file of finished runs"):
        ablations.ablate(demo.get_config(), ["muon"], 1, 1, tmp_path / "text.jsonl")


def test_a_run_of_an_ablation_trains_and_scores(tmp_path: pathlib.Path) -> None:
    (tmp_path / "text.txt").write_text(tiny.corpus())
    config = tiny.config({"data.source": str(tmp_path / "text.txt"), "train.num_steps": 4})
    corpus = pipeline.load_corpus(config.data)
    line = ablations.run(config, corpus, "recipe")
    assert (line["name"], line["seed"], line["steps"]) == ("recipe", 0, 4)
    assert 1.0 < line["bits_per_char"] < 6.0  # a model that has hardly begun: near the unigram entropy of some twenty characters
    assert line["seconds_per_step"] > 0 and line["recipe"] == ablations.fingerprint(config)
    assert json.loads(json.dumps(line)) == line
