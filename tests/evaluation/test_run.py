"""A run from Python: opened in a line, with the averaged weights of its newest checkpoint."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath

import cdcd_jax
from cdcd_jax.config import CheckpointConfig, UserError, to_json
from cdcd_jax.data.pipeline import load_corpus
from cdcd_jax.data.tokenizers import CharTokenizer
from cdcd_jax.training import workdir as workdir_lib
from cdcd_jax.training.checkpoint import Checkpoints
from tests import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A workdir with the tiny model at its fifth step, whose averages differ from its parameters."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "corpus.txt").write_text(tiny.corpus())
    work = tiny.shared_trainer()
    state, _ = work.run(work.init(), 5)
    config = tiny.config({"data.source": str(folder / "corpus.txt")})
    fingerprint = load_corpus(config.data, tiny.TOKENIZER).fingerprint
    workdir_lib.write(epath.Path(folder / "run"), config, tiny.TOKENIZER, fingerprint)
    checkpoints = Checkpoints(epath.Path(folder / "run"), CheckpointConfig())
    meta = {"tokenizer_fingerprint": tiny.TOKENIZER.fingerprint, "data_fingerprint": fingerprint}
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
    rows = [part.rows.read(np.arange(len(part.rows)))["tokens"].reshape(-1) for part in corpus.splits.values()]
    train, valid = (run.model.tokenizer.decode(ids.tolist()) for ids in rows)
    assert tiny.corpus().startswith(train) and valid in tiny.corpus()[len(train) :]
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


def test_another_tokenizer(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """One of the same size, whole in itself, with other characters."""
    shutil.copytree(saved, tmp_path / "run")
    CharTokenizer("".join(tiny.SENTENCES).replace("k", "K")).save(tmp_path / "run" / "tokenizer")
    with pytest.raises(UserError, match="is not the one that this run was trained with"):
        cdcd_jax.load_run(tmp_path / "run")


def test_another_text(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """It would be scored on what may have been trained on."""
    other = tmp_path / "other.txt"
    other.write_text(tiny.corpus().replace("black", "clack"))
    with pytest.raises(UserError, match="other.txt' does not hold the data that this run was trained on .compared by content"):
        cdcd_jax.load_run(saved, source=other).corpus()


def test_a_text_that_was_moved(saved: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its content decides; where it was trained need not be there any more, nor the tokenizer that the run took."""
    (tmp_path / "here.txt").write_text(tiny.corpus())
    shutil.copytree(saved, tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text().replace(str(saved.parent / "corpus.txt"), "gone.txt")
    (tmp_path / "run" / "config.json").write_text(text.replace('"tokenizer_from": ""', '"tokenizer_from": "gone"'))
    with pytest.raises(UserError, match="'gone.txt' does not exist; if the text of .*run lies elsewhere now, give --source=PLACE."):
        cdcd_jax.load_run(tmp_path / "run").corpus()
    monkeypatch.chdir(tmp_path)
    run = cdcd_jax.load_run("run", source="here.txt")
    assert run.corpus().fingerprint == run.model.data_fingerprint


def test_a_config_that_does_not_fit_the_weights(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(saved, tmp_path / "other")
    text = (tmp_path / "other" / "config.json").read_text()
    (tmp_path / "other" / "config.json").write_text(text.replace('"mlp_width": 32', '"mlp_width": 48'))
    with pytest.raises(UserError, match="checkpoints/5 does not fit: ema/denoiser/.* by this config and code"):
        cdcd_jax.load_run(tmp_path / "other")
