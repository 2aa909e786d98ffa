"""Lines that are there when they must be: at once on disk, in a bucket whenever it is flushed, now and then, and at the end."""

import json
import pathlib
import re
import time
from typing import Any

import pytest
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data import files
from cdcd_jax.training import journal
from cdcd_jax.training.events import Events
from cdcd_jax.training.journal import Journal
from tests.training.test_checkpoint_faults import no_space


def ours() -> None:
    """No other trainer is there."""


@pytest.fixture
def bucket(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> epath.Path:
    """A folder that is taken for one."""
    monkeypatch.setattr(files, "in_bucket", lambda path: str(path).startswith(str(tmp_path)))
    return epath.Path(tmp_path)


def steps(workdir: epath.Path) -> list[int]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def events(workdir: epath.Path) -> list[epath.Path]:
    return list(workdir.glob("events.out.tfevents.*"))


def test_on_disk_a_line_is_there_at_once(tmp_path: pathlib.Path) -> None:
    workdir = epath.Path(tmp_path)
    with Journal(workdir, ours) as written:
        for step in (1, 2):
            written.append("metrics.jsonl", {"step": step})
            assert steps(workdir)[-1] == step
        written.scalars(2, {"train/loss": 1.0})
    assert steps(workdir) == [1, 2] and len(events(workdir)) == 1


def test_what_a_disk_does_not_take_is_kept_and_written_with_the_next_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = epath.Path(tmp_path)
    with Journal(workdir, ours) as written:
        (tmp_path / "metrics.jsonl").mkdir()  # what is a folder takes no line
        for step in (1, 2):
            written.append("metrics.jsonl", {"step": step})
        (tmp_path / "metrics.jsonl").rmdir()
        written.append("metrics.jsonl", {"step": 3})
        assert steps(workdir) == [1, 2, 3]
    assert " ".join(capsys.readouterr().err.split()).count("its lines are kept in memory") == 1


def test_what_a_disk_does_not_take_to_the_end_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="the last lines of metrics.jsonl in .* could not be written"), Journal(epath.Path(tmp_path), ours) as written:
        written.append("metrics.jsonl", {"step": 1})


@pytest.mark.parametrize("in_bucket", [False, True])
def test_what_goes_back_loses_its_later_lines_and_a_torn_one(in_bucket: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a line that is made again, as that of an evaluation which was cut short, is there once."""
    monkeypatch.setattr(files, "in_bucket", lambda path: in_bucket and str(path).startswith(str(tmp_path)))
    folder = epath.Path(tmp_path)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4')
    with Journal(folder, ours, seconds=1e3) as written:
        assert written.amend("metrics.jsonl", 2) == [{"step": 1}, {"step": 2}, {"step": 3}]
        assert written.amend("telemetry.jsonl", 2) == []
        for step in (3, 4):
            written.append("metrics.jsonl", {"step": step, "again": True})
        written.flush()
        assert steps(folder) == [1, 2, 3, 4] and not (folder / "telemetry.jsonl").exists()
    (folder / "metrics.jsonl").write_text('{"step": 1}\nnothing\n')
    with pytest.raises(UserError, match="line 2 of .*metrics.jsonl is damaged"), Journal(folder, ours) as written:
        written.amend("metrics.jsonl", 1)
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1}\nnothing\n' and not events(folder)


@pytest.mark.parametrize("moment", ["from the start", "later"])
def test_a_run_goes_on_without_tensorboards_events(moment: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback, and one warning, whether their file cannot be made, or the disk is full when it grows."""
    folder = tmp_path / "events"
    if moment == "from the start":
        folder.write_text("a file where a folder should be")
    events = Events(str(folder))
    if moment == "later":
        events.scalars(1, {"train/loss": 1.0})
        events.flush()
    with no_space(300):
        for step in range(2, 300):
            events.scalars(step, {"train/loss": 1.0})
        events.flush()
    events.close()
    said, why = capsys.readouterr().err, r"Not a directory|\S+events\S+; File too large"
    assert len(re.findall(rf"warning: TensorBoard's events cannot be written any more \((?:{why})\)\.\n", said)) == 1, said
    assert "Traceback" not in said


def test_in_a_bucket_lines_are_there_when_flushed_after_those_of_earlier_lives(bucket: epath.Path) -> None:
    (bucket / "metrics.jsonl").write_text('{"step": 1}\n')
    with Journal(bucket, ours, seconds=1e3) as written:
        written.append("metrics.jsonl", {"step": 2})
        written.append("telemetry.jsonl", {"step": 2})
        written.scalars(2, {"train/loss": 1.0})
        assert steps(bucket) == [1] and not (bucket / "telemetry.jsonl").exists()
        written.flush()
        assert steps(bucket) == [1, 2] and (bucket / "telemetry.jsonl").exists()
        written.append("metrics.jsonl", {"step": 3})
        assert not events(bucket)
    assert steps(bucket) == [1, 2, 3]
    (file,) = events(bucket)
    assert b"train/loss" in file.read_bytes()
    assert not epath.Path(written._folder.name).exists()


def test_in_a_bucket_lines_come_now_and_then_by_themselves(bucket: epath.Path) -> None:
    with Journal(bucket, ours, seconds=0.01) as written:
        for step in range(1, 200):
            written.append("metrics.jsonl", {"step": step})
        deadline = time.monotonic() + 20
        while len(steps(bucket)) < 199 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert steps(bucket) == list(range(1, 200))


def test_what_a_bucket_refuses_is_said_and_kept(bucket: epath.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    broken, write = True, files.write_whole

    def write_whole(path: epath.Path, content: Any) -> None:
        if broken:
            raise UserError(f"{path} cannot be written (the network is down).")
        write(path, content)

    monkeypatch.setattr(journal.files, "write_whole", write_whole)
    with pytest.raises(UserError, match="the network is down"), Journal(bucket, ours, seconds=1e3) as written:
        written.append("metrics.jsonl", {"step": 1})
        written.flush()
        assert "metrics.jsonl cannot be written (the network is down). What is new is kept in memory." in " ".join(capsys.readouterr().err.split())
        broken = False
        written.flush()
        assert steps(bucket) == [1]
        written.append("metrics.jsonl", {"step": 2})
        broken = True  # to the end, which cannot be passed over
    with pytest.raises(ZeroDivisionError), Journal(bucket, ours, seconds=1e3) as written:  # an error on its way stays the error
        written.append("metrics.jsonl", {"step": 2})
        1 // 0  # noqa: B018


def test_what_another_trainer_wrote_is_not_written_over(bucket: epath.Path) -> None:
    def lost() -> None:
        raise UserError("another trainer has taken over.")

    with pytest.raises(UserError, match="taken over"), Journal(bucket, lost, seconds=0.01) as written:
        written.append("metrics.jsonl", {"step": 1})
        (bucket / "metrics.jsonl").write_text('{"step": 7}\n')
        written.flush()
        time.sleep(0.1)
    assert steps(bucket) == [7] and not events(bucket)
