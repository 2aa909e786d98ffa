"""A run's folder: what a killed start may leave there, and how its lines are read."""

import pathlib

import pytest
from etils import epath

from cdcd_jax.config import UserError
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
