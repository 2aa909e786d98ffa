"""Preparing by Apache Beam: the same folder as by processes of this machine, and one sentence for flags that Beam would leave out or end for."""

import dataclasses
import os
import tempfile

import pytest
from etils import epath

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import beam, layout, places, preparation
from tests import corpora

CONFIG = DataConfig(tokenizer="sentencepiece", vocab_size=75, packing="pack", sequence_length=16, valid_fraction=0.2)  # every stage there is


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Parts and shards so small that a short text has several."""
    monkeypatch.setattr(places, "BYTES", (3000, 1 << 24))
    monkeypatch.setattr(layout, "LEAST_SHARD", 3000)


def content(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def double(number: int) -> int:
    if number == 5:
        raise UserError("five is too many.")
    return 2 * number


write = beam._write


def write_and_begin_another(path: str, found: list) -> None:
    """Writes the results of one pipeline, and has another one write and read its own before they are read."""
    write(path, found)
    if len(found) > 1:
        assert beam.mapping(["--runner=DirectRunner"], epath.Path(path).parent.parent)(double, [9]) == [18]


def test_beam_writes_the_same_folder(tmp_path, monkeypatch):
    source = str(corpora.write(tmp_path / "lines.jsonl", corpora.json_lines(corpora.documents(100))))
    config = dataclasses.replace(CONFIG, source=source)
    folders = [epath.Path(tmp_path / name) for name in ("here", "beam")]
    assert len(preparation.prepare(config, folders[0])[0].shards) > 2
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    beam._temporary_folder.cache_clear()
    run = beam.mapping(["--runner=DirectRunner"], folders[1])
    preparation.prepare(config, folders[1], run)
    assert content(tmp_path / "here") == content(tmp_path / "beam")
    assert preparation.prepare(config, folders[1])[1]
    (left,) = os.listdir(tmp_path / "temporary")  # one folder, ours, with all that Beam leaves
    assert left.startswith("cdcd_jax-beam-") and tempfile.gettempdir() == str(tmp_path / "temporary")


def test_results_of_two_do_not_meet(tmp_path, monkeypatch):
    """While one waits for its results, another with the same folder has its own; in a bucket no lock keeps the two apart."""
    monkeypatch.setattr(beam, "_write", write_and_begin_another)
    assert beam.mapping(["--runner=DirectRunner"], epath.Path(tmp_path))(double, [1, 2]) == [2, 4]
    assert os.listdir(tmp_path) == []


def test_results_come_in_order_and_mistakes_in_a_sentence(tmp_path):
    run = beam.mapping(["--runner", "DirectRunner"], epath.Path(tmp_path))
    assert run(double, []) == [] and run(double, [3, 1, 2, 1]) == [6, 2, 4, 2]
    with pytest.raises(UserError, match="^five is too many.$"):
        run(double, range(8))


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--runer=DirectRunner"], "Apache Beam has no flag '--runer=DirectRunner' .did you mean \"--runner\"...$"),
        (["--runner=DirectRunner", "more"], "Apache Beam has no flag 'more'; its flags are --name=value.$"),
        (["--direct_num_workers=two"], "Apache Beam does not take these flags: argument --direct_num_workers: invalid int value: 'two'.$"),
        (["--runner=DirectRuner"], "Apache Beam cannot begin with these flags: Unexpected pipeline runner: DirectRuner"),
        (["--help"], "Apache Beam has no flag '--help'"),
    ],
)
def test_flags_that_are_wrong(tmp_path, flags, said):
    with pytest.raises(UserError, match=said):
        beam.mapping(flags, epath.Path(tmp_path))
