"""A run from Python: opened in a line, with the averaged weights of its newest checkpoint; and one denoise function for all that use it."""

import pathlib
import shutil
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import cdcd_jax
from cdcd_jax.config import CheckpointConfig, UserError, to_json
from cdcd_jax.data.sources import fingerprint, load_text
from cdcd_jax.diffusion import kernel
from cdcd_jax.evaluation import generate, metrics
from cdcd_jax.evaluation.model import Model
from cdcd_jax.training import step as step_lib
from cdcd_jax.training import telemetry
from cdcd_jax.training import workdir as workdir_lib
from cdcd_jax.training.checkpoint import Checkpoints
from cdcd_jax.training.optim import make_optimizer
from cdcd_jax.training.state import TrainState, init_state
from tests import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A workdir with the tiny model at its fifth step, whose averages differ from its parameters."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "corpus.txt").write_text(tiny.corpus())
    work = tiny.shared_trainer()
    state, _ = work.run(work.init(), 5)
    workdir_lib.write(epath.Path(folder / "run"), tiny.config({"data.source": str(folder / "corpus.txt")}), tiny.TOKENIZER)
    checkpoints = Checkpoints(epath.Path(folder / "run"), CheckpointConfig())
    text = load_text(str(folder / "corpus.txt"), "text")
    meta = {"tokenizer_fingerprint": tiny.TOKENIZER.fingerprint, "data_fingerprint": fingerprint(text)}
    checkpoints.save(5, state, {}, meta)
    checkpoints.close()
    return folder / "run"


def test_three_lines(saved: pathlib.Path) -> None:
    run = cdcd_jax.load_run(str(saved))
    samples = run.sample(2, prompt="the ", num_steps=3)
    bound = run.likelihood("the cat is black a dog ran to me.", draws=1)
    assert [sample.text[:4] for sample in samples] == ["the ", "the "] and samples[0].nfe == 4
    assert bound["kind"] == "elbo" and bound["step"] == run.step == 5


def test_it_has_the_averaged_weights(saved: pathlib.Path) -> None:
    run = cdcd_jax.load_run(saved)
    work = tiny.shared_trainer()
    state, _ = work.run(work.init(), 5)
    for found, average in zip(jax.tree.leaves(run.model.params), jax.tree.leaves(state.ema), strict=True):
        np.testing.assert_array_equal(found, average)
    assert not np.array_equal(run.model.params["embeddings"]["table"], state.params["embeddings"]["table"])
    np.testing.assert_array_equal(run.model.log_prior, state.log_prior)


def test_its_config_and_text(saved: pathlib.Path) -> None:
    run = cdcd_jax.load_run(saved)
    assert to_json(run.config) == (saved / "config.json").read_text()
    corpus = run.corpus()
    assert corpus is run.corpus() and corpus.tokenizer is run.model.tokenizer
    assert run.model.tokenizer.decode(corpus.train.tolist() + corpus.valid.tolist()) == tiny.corpus()
    assert run.settings(num_steps=7).num_steps == 7 and run.settings() == run.config.sample


def test_a_relative_path(saved: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)
    assert cdcd_jax.load_run("run").step == 5


def test_opening_changes_nothing(saved: pathlib.Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [saved, *saved.rglob("*")]}
    cdcd_jax.load_run(saved)
    assert {path: path.stat().st_mtime_ns for path in [saved, *saved.rglob("*")]} == before


def test_what_is_no_run(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="is not a run's workdir: it has no config.json."):
            cdcd_jax.load_run(folder)
    shutil.copytree(saved, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="there is no checkpoint in .*bare: train first."):
        cdcd_jax.load_run(tmp_path / "bare")
    assert not (tmp_path / "bare" / "checkpoints").exists()


def test_a_config_that_does_not_fit_the_weights(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(saved, tmp_path / "other")
    text = (tmp_path / "other" / "config.json").read_text()
    (tmp_path / "other" / "config.json").write_text(text.replace('"mlp_width": 32', '"mlp_width": 48'))
    with pytest.raises(UserError, match="checkpoints/5 cannot be read"):
        cdcd_jax.load_run(tmp_path / "other")


def test_training_sampling_scoring_and_the_probe_use_one_denoise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reaches the network does so through kernel.make_denoise: seen by tracing each of them, which computes nothing."""
    model, calls = tiny.untrained(), Counter[str]()
    real, now, inside = kernel.make_denoise, "", 0

    def make_denoise(network: Any, *arguments: Any) -> kernel.Denoise:
        def counted(*inputs: Any) -> jax.Array:
            nonlocal inside
            inside += 1
            answer = network(*inputs)
            inside -= 1
            return answer

        calls[now] += 1
        return real(counted, *arguments)

    monkeypatch.setattr(kernel, "make_denoise", make_denoise)
    network = step_lib.make_network

    def watched(*arguments: Any) -> Any:
        made = network(*arguments)

        class Watched:
            @staticmethod
            def apply(*inputs: Any) -> jax.Array:
                assert inside, f"{now} reaches the network past the kernel"
                calls[f"{now}, network"] += 1
                return made.apply(*inputs)

        return Watched

    monkeypatch.setattr(step_lib, "make_network", watched)
    tokens, row = jnp.asarray(tiny.tokens()), jnp.zeros((2, tiny.LENGTH))
    now = "training"
    state = jax.eval_shape(lambda: init_state(model.config, model.log_prior))
    jax.eval_shape(lambda s: step_lib.train_step(s, tokens, model.config, make_optimizer(model.config)), state)
    now = "sampling"
    sampler = generate.make_sampler(model, model.config.sample)
    jax.eval_shape(sampler, model.params, row.astype(jnp.int32), row.astype(bool), generate.keys_for(0, 0, 2))
    now = "probe and scoring"
    assert metrics.telemetry.make_measure is telemetry.make_measure
    jax.eval_shape(telemetry.make_measure(model.config, model.apply), model.params, model.log_prior, tokens, jnp.zeros(8), jax.random.key(0))
    assert set(calls) == {name + kind for name in ("training", "sampling", "probe and scoring") for kind in ("", ", network")}
    assert calls["training, network"] == 2, "the extra pass of self-conditioning, and the step's own"
    assert isinstance(model, Model) and isinstance(state, TrainState)
