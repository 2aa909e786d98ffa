"""A run's folder: what a killed start may leave there, and how its lines are read."""

import pathlib

import pytest
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data import tokenizers
from cdcd_jax.training import workdir
from tests import tiny


def test_a_torn_line_is_left_out_and_a_damaged_one_named(tmp_path: pathlib.Path) -> None:
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 3')
    assert [line["step"] for line in workdir.lines(path)] == [10, 20] and workdir.last_step(path) == 20
    path.write_text('{"step": 10}\n{"step": "x"}\n{"step": 30}\n')
    with pytest.raises(UserError, match="line 2 of .*metrics.jsonl is damaged"):
        workdir.lines(path)
    assert workdir.last_step(epath.Path(tmp_path / "none.jsonl")) == 0


def test_what_a_killed_start_left_is_in_nobodys_way(tmp_path: pathlib.Path) -> None:
    for name in ("tokenizer", "config.json.writable", ".config.json.partial-0123abcd"):
        (tmp_path / name).write_text("")
    assert workdir.prepare(epath.Path(tmp_path), tiny.config()) is False
    (tmp_path / ".letter").write_text("to my heirs")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        workdir.prepare(epath.Path(tmp_path), tiny.config())


def test_places_may_change_where_the_content_is_known(tmp_path: pathlib.Path) -> None:
    """The text's fingerprint is compared when it is read; the tokenizer's, which would not be read, at once."""
    run, began = epath.Path(tmp_path / "run"), tiny.config({"data.source": "there.txt", "data.tokenizer_from": "there"})
    workdir.write(run, began, tiny.TOKENIZER, "f")
    assert workdir.read_fingerprint(run) == "f" and not workdir.moved(run, began)
    tokenizers.CharTokenizer("abc").save(tmp_path / "other" / "tokenizer")
    for changes in ({"data.source": "here.txt"}, {"data.tokenizer_from": ""}, {"data.tokenizer_from": str(run)}):
        changed = tiny.config({"data.source": "there.txt", "data.tokenizer_from": "there"} | changes)
        assert workdir.prepare(run, changed) and workdir.moved(run, changed)
    with pytest.raises(UserError, match="data.tokenizer_from = '.*other' is not the tokenizer that .*run began with: leave it out"):
        workdir.prepare(run, tiny.config({"data.source": "there.txt", "data.tokenizer_from": str(tmp_path / "other")}))
    (tmp_path / "run" / "fingerprints.json").write_text("[]")
    with pytest.raises(UserError, match="fingerprints.json is damaged"):
        workdir.read_fingerprint(run)
    (tmp_path / "run" / "fingerprints.json").unlink()  # as an older version left it
    with pytest.raises(UserError, match="holds a run with data.source = 'there.txt', and this config has 'here.txt'; name another"):
        workdir.prepare(run, tiny.config({"data.source": "here.txt", "data.tokenizer_from": "there"}))
