"""From documents by a prepared folder to a run and its numbers, at the real doors: packed rows, inserted PAD, three splits."""

import json
import pathlib
import random
import re
import shutil
from typing import Any, NamedTuple

import numpy as np
import pytest
from etils import epath

import cdcd_jax
from cdcd_jax.data import preparation
from cdcd_jax.evaluation import metrics
from tests import forked, tiny

CHANGES: dict[str, Any] = {
    "data.packing": "pack", "data.pad_insertion": 0.2, "data.test_fraction": 0.2, "train.num_steps": 4, "checkpoint.every_steps": 4,
}  # fmt: skip


class Story(NamedTuple):
    """A prepared folder, a run that was trained on it, and how its doors ended."""

    folder: pathlib.Path
    workdir: pathlib.Path
    trained: forked.Ended
    scored: forked.Ended


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    home = tmp_path_factory.mktemp("prepared_run")
    generator = random.Random(0)
    texts = [" ".join(generator.choices(tiny.SENTENCES, k=generator.randrange(1, 3)))[: generator.randrange(3, 30)].strip() for _ in range(400)]
    (home / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    preparation.prepare(tiny.config(CHANGES | {"data.source": str(home / "documents.jsonl")}).data, epath.Path(home / "data"))
    trained = forked.door("train", *tiny.flags(home / "data", home / "run", CHANGES))
    assert trained.code == 0, trained.stderr
    flags = ["--metrics=nll", "--split=test", "--num_sequences=9", "--draws=1"]
    return Story(home / "data", home / "run", trained, forked.door("evaluate", f"--workdir={home / 'run'}", *flags))


def test_it_trains_and_probes(story: Story) -> None:
    lines = [json.loads(line) for line in (story.workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(1 < line["loss"] < 4 for line in lines)
    probe = json.loads((story.workdir / "telemetry.jsonl").read_text().splitlines()[-1])
    assert probe["chars_per_token"] == 1.0  # of characters; PAD is in no held-out row
    manifest = json.loads((story.folder / "manifest.json").read_text())
    meta = json.loads((story.workdir / "checkpoints" / "4" / "meta.json").read_text())
    assert meta["data_fingerprint"] == manifest["data_fingerprint"] and meta["tokenizer_fingerprint"] != manifest["tokenizer_fingerprint"]


def test_it_is_scored_on_part_of_its_test_split(story: Story) -> None:
    assert story.scored.code == 0, story.scored.stderr
    score = json.loads((story.workdir / "eval" / "nll_test.json").read_text())
    assert re.search(r"nll nats_per_token .* nats .*\n.* nll stderr .* nats per token ", story.scored.stdout), story.scored.stdout
    assert score["split"] == "test" and score["num_sequences"] == 9
    assert 9 <= score["num_tokens"] == score["num_characters"] <= 9 * tiny.LENGTH
    assert score["bits_per_char"] == pytest.approx(score["nats_per_token"] / np.log(2))


def test_pad_has_its_share_of_the_prior_and_is_no_text(story: Story) -> None:
    run = cdcd_jax.load_run(story.workdir)
    pad = run.model.tokenizer.pad_id
    assert pad is not None and float(np.exp(run.model.log_prior[pad])) == pytest.approx(0.2, rel=0.02)
    tokens = [*run.model.tokenizer.encode("a dog").tolist(), pad]
    assert run.model.tokenizer.decode(tokens) == "a dog"


def test_its_words_are_those_of_its_documents(story: Story) -> None:
    """None is made where two documents meet in a row; and few are not in the training part, since all are of the same sentences."""
    run = cdcd_jax.load_run(story.workdir)
    splits = run.corpus().splits
    known = metrics.vocabulary(run.model, splits["train"].rows)
    written = json.loads("[" + ",".join((story.folder.parent / "documents.jsonl").read_text().splitlines()) + "]")
    assert {"cat", "black", "rain"} <= known <= {word for line in written for word in metrics.words(line["text"])}
    found = metrics.documents(splits["test"].rows.read(np.arange(len(splits["test"].rows))))
    assert metrics.valid_word_rate([run.model.tokenizer.decode(ids) for ids in found], known) > 0.9


def test_the_command_of_another_folder_is_refused(story: Story) -> None:
    """The same text in rows of another kind is another data set, and the run stays as it is."""
    config = tiny.config(CHANGES | {"data.source": str(story.folder.parent / "documents.jsonl"), "data.packing": "pad"})
    other = story.folder.parent / "other"
    preparation.prepare(config.data, epath.Path(other))
    text = (story.workdir / "config.json").read_text()
    (story.workdir / "config.json").write_text(text.replace('"packing": "pack"', '"packing": "pad"'))
    with pytest.raises(cdcd_jax.config.UserError, match="does not hold the data that this run was trained on"):
        cdcd_jax.load_run(story.workdir, source=other).corpus()
    (story.workdir / "config.json").write_text(text)


def test_a_folder_that_was_moved_is_the_same(story: Story, tmp_path: pathlib.Path) -> None:
    """It has the same number, to the digit, and the run goes on with it and remembers it; another one is refused, though all steps are done."""
    moved, workdir = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(story.folder, moved)
    shutil.copytree(story.workdir, workdir)
    (tmp_path / "other.jsonl").write_text((story.folder.parent / "documents.jsonl").read_text().replace("black", "brown"))
    preparation.prepare(tiny.config(CHANGES | {"data.source": str(tmp_path / "other.jsonl")}).data, epath.Path(tmp_path / "other"))
    refused = forked.door("train", *tiny.flags(tmp_path / "other", workdir, CHANGES))
    assert refused.code == 2 and "other' does not hold the data that this run was trained on" in refused.stderr, refused.stderr
    assert (workdir / "config.json").read_bytes() == (story.workdir / "config.json").read_bytes()
    assert forked.door("train", *tiny.flags(f"{moved}/", workdir, CHANGES)).code == 0
    assert json.loads((workdir / "config.json").read_text())["data"]["source"] == f"{moved}/"
    flags = ["--metrics=nll", "--split=test", "--num_sequences=9", "--draws=1", f"--source={story.folder}"]
    scored = forked.door("evaluate", f"--workdir={workdir}", *flags)
    assert scored.code == 0 and (workdir / "eval" / "nll_test.json").read_bytes() == (story.workdir / "eval" / "nll_test.json").read_bytes()
