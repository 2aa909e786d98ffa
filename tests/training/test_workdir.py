"""A run's folder: one trainer at a time, and lines that a resume cuts away."""

import json
import pathlib

import pytest
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.training import workdir


def test_a_second_trainer_is_kept_out_until_the_first_has_gone(tmp_path: pathlib.Path) -> None:
    directory = epath.Path(tmp_path)
    with workdir.locked(directory):
        with pytest.raises(UserError, match="another process is training"), workdir.locked(directory):
            pass
    with workdir.locked(directory):
        pass


def test_a_resume_cuts_later_lines_and_a_torn_one(tmp_path: pathlib.Path) -> None:
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)) + '{"step": 4')
    assert workdir.last_step(path) == 30
    workdir.cut_after(path, 20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]
    assert workdir.last_step(epath.Path(tmp_path / "none.jsonl")) == 0
