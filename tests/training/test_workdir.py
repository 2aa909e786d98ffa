"""A run's folder: what a killed start may leave there, and lines that a resume cuts away."""

import json
import pathlib

import pytest
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.training import workdir
from tests import tiny


def test_a_resume_cuts_later_lines_and_a_torn_one(tmp_path: pathlib.Path) -> None:
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)) + '{"step": 4')
    assert workdir.last_step(path) == 30
    workdir.cut_after(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]
    assert workdir.last_step(epath.Path(tmp_path / "none.jsonl")) == 0


def test_what_a_killed_start_left_is_in_nobodys_way(tmp_path: pathlib.Path) -> None:
    for name in ("tokenizer", "config.json.writable", ".config.json.partial-0123abcd"):
        (tmp_path / name).write_text("")
    assert workdir.prepare(epath.Path(tmp_path), tiny.config()) is False
    (tmp_path / ".letter").write_text("to my heirs")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        workdir.prepare(epath.Path(tmp_path), tiny.config())
