"""What goes wrong with checkpoints: damages, saves that fail, steps that are dropped while they are read; and the way back that a user may choose."""

import contextlib
import dataclasses
import os
import pathlib
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cdcd_jax.config import CheckpointConfig, TryAgain, UserError
from cdcd_jax.training import checkpoint
from cdcd_jax.training.checkpoint import Checkpoints, listed, newest_step, restore_part, step_to_go_back_to
from tests import tiny

CONFIG = CheckpointConfig(every_steps=1, keep_last=3)
STATE = tiny.like(tiny.small_state())


def opened(folder: pathlib.Path, **changes: int) -> Checkpoints:
    return Checkpoints(epath.Path(folder), dataclasses.replace(CONFIG, **changes))


def save(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, tiny.small_state(step).replace(step=jnp.int32(step)), {"global_next_index": 8 * step}, {"a": step})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A workdir with the checkpoints of steps 2, 4 and 6. Read only."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = opened(folder)
    for step in (2, 4, 6):
        save(checkpoints, step)
    checkpoints.close()
    return folder


@pytest.fixture
def workdir(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of it, to damage."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def read(folder: pathlib.Path) -> int:
    """The step that a reader finds."""
    return int(restore_part(epath.Path(folder), {"step": STATE.step})[0]["step"])


def refusal(folder: pathlib.Path) -> str:
    """The sentence with which a trainer and a reader are refused, once it is seen that nothing was changed."""
    before = tiny.snapshot(folder)
    checkpoints = opened(folder)
    with pytest.raises(UserError) as error:
        checkpoints.restore(STATE)
    checkpoints.close()
    with pytest.raises(UserError) as reader_error:
        read(folder)
    assert tiny.snapshot(folder) == before
    assert str(reader_error.value) == str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("every", "there"), [(0, [5, 6]), (2, [2, 4, 5, 6]), (3, [3, 5, 6])])
def test_the_last_and_every_nth_are_kept(every: int, there: list[int], tmp_path: pathlib.Path) -> None:
    checkpoints = opened(tmp_path, keep_last=2, keep_every_steps=every)
    for step in range(1, 7):
        save(checkpoints, step)
    checkpoints.close()
    assert checkpoints.steps == there == listed(epath.Path(tmp_path))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [str(step) for step in there]


def test_a_step_is_saved_once(workdir: pathlib.Path) -> None:
    """The last step may be one at which a checkpoint is due anyway."""
    before = tiny.snapshot(workdir)
    checkpoints = opened(workdir)
    save(checkpoints, 6)
    checkpoints.close()
    assert tiny.snapshot(workdir) == before


def test_no_checkpoint(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=f"there is no checkpoint in {tmp_path}: train first."):
        read(tmp_path)
    checkpoints = opened(tmp_path)
    assert checkpoints.latest_step() is newest_step(epath.Path(tmp_path)) is None
    with pytest.raises(UserError, match=f"there is no checkpoint in {tmp_path / 'checkpoints'}: train first."):
        checkpoints.restore(STATE)
    checkpoints.close()


def test_a_save_that_was_cut_short_does_not_count_and_is_cleared_away(workdir: pathlib.Path) -> None:
    """As `kill -9` leaves it: some of the files, and the marker beside them."""
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "6" / "state", folder / "8" / "state")
    (folder / "8.unfinished").write_text("")
    before = tiny.snapshot(workdir)
    assert newest_step(epath.Path(workdir)) == read(workdir) == 6
    assert tiny.snapshot(workdir) == before, "a reader changes nothing"
    checkpoints = opened(workdir)
    assert checkpoints.latest_step() == 6 and sorted(os.listdir(folder)) == ["2", "4", "6"]
    save(checkpoints, 8)
    checkpoints.close()
    assert newest_step(epath.Path(workdir)) == read(workdir) == 8


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# What the seal finds is in test_seal.py; here, that it is asked, and what is said then.
DAMAGE: dict[str, tuple[Callable[[pathlib.Path], Any], str]] = {
    "missing": (lambda step: tiny.largest(step / "state").unlink(), r"state/[\w./]+ is missing"),
    "flipped": (lambda step: flip(tiny.largest(step / "state")), r"state/[\w./]+ has another content than was saved"),
    "foreign": (lambda step: shutil.copy(step.parent / "4" / "data.json", step), "data.json has another content than was saved"),
    "many": (lambda step: [shutil.rmtree(step / name) for name in ("state", "warp")], r"state/\w+ is missing; .*; and \d+ more"),
    "all": (lambda step: [shutil.rmtree(step), step.mkdir()], "seal.json is missing"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_nothing_is_changed(what: str, workdir: pathlib.Path) -> None:
    damage, fault = DAMAGE[what]
    damage(workdir / "checkpoints" / "6")
    said = refusal(workdir)
    advice = "nothing was changed: python -m cdcd_jax.train with --go_back_to=4 goes on from step 4, the last good one."
    assert re.fullmatch(rf"the checkpoint {workdir}/checkpoints/6 is damaged \({fault}\); {advice}", said), said


def test_the_last_good_one_is_named(workdir: pathlib.Path) -> None:
    for step in ("6", "4"):
        flip(workdir / "checkpoints" / step / "meta.json")
    assert refusal(workdir).endswith("with --go_back_to=2 goes on from step 2, the last good one.")
    flip(workdir / "checkpoints" / "2" / "meta.json")
    assert refusal(workdir).endswith("there is no good one before it, so train again in another workdir.")


def test_going_back(workdir: pathlib.Path) -> None:
    """Nothing is lost by it, and it is done once: a launcher gives its command again, after more was trained."""
    there, directory = workdir / "checkpoints", epath.Path(workdir)
    flip(tiny.largest(there / "6" / "state"))
    before = tiny.snapshot(there)
    assert step_to_go_back_to(directory, 2) == 2
    checkpoints = opened(workdir)
    state, data, meta = checkpoints.restore(STATE, 2)
    assert (int(state.step), data, meta) == (2, {"global_next_index": 16}, {"a": 2})
    group = there / "set_aside" / "after_2"
    assert checkpoints.set_aside_after(2) == f"went back to the checkpoint of step 2; those of steps 4 and 6 are in {group}."
    assert checkpoints.steps == listed(directory) == [2]
    assert tiny.snapshot(group) == {name: kept for name, kept in before.items() if not name.startswith("2")}
    save(checkpoints, 4)
    checkpoints.close()
    assert step_to_go_back_to(directory, 2) is None and step_to_go_back_to(directory, 4) == 4
    # Wanted once more: as before, and nothing of the first time is written over.
    (there / "set_aside" / "after_2.json").unlink()
    assert step_to_go_back_to(directory, 2) == 2
    checkpoints = opened(workdir)
    checkpoints.set_aside_after(2)
    checkpoints.close()
    assert sorted(os.listdir(group)) == ["4", "4.2", "6"]


def test_going_back_to_the_newest_or_to_none(workdir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    checkpoints = opened(workdir)
    assert checkpoints.set_aside_after(6) == "went back to the checkpoint of step 6, which is the newest."
    checkpoints.close()
    with pytest.raises(UserError, match="--go_back_to=5 names no checkpoint of .*: there are those of steps 2, 4 and 6.$"):
        step_to_go_back_to(epath.Path(workdir), 5)
    with pytest.raises(UserError, match="--go_back_to=5 names no checkpoint of .*: there is none.$"):
        step_to_go_back_to(epath.Path(tmp_path / "none"), 5)


@pytest.mark.parametrize(("module", "name"), [(checkpoint.folders, "damage"), (checkpoint, "_check")])
def test_a_reader_takes_the_newest_when_its_own_is_dropped(
    module: Any, name: str, workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a trainer that saves twice after the reader has listed the steps, or after it has verified its own."""
    real, trainer, done = getattr(module, name), opened(workdir, keep_last=1), []

    def slow(*args: Any, **kwargs: Any) -> Any:
        for step in (8, 10):
            if not done or done == [8]:
                save(trainer, step)
                done.append(step)
        trainer.wait()
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, slow)
    assert read(workdir) == 10 and done == [8, 10]
    trainer.close()


@contextlib.contextmanager
def no_space(size: int) -> Iterator[None]:
    """The kernel refuses what makes a file larger, as it does on a full disk (with another number: a full disk would have to be mounted)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what tensorstore gives up on fails once more
@pytest.mark.parametrize("size", [16, 20_000])
def test_a_save_that_fails_is_told_and_the_next_one_is_made(size: int, workdir: pathlib.Path) -> None:
    """At nearly every file, or at the arrays alone."""
    large = tiny.small_state().replace(opt_state={"c": jnp.asarray(np.random.default_rng(0).normal(size=(64, 256)), jnp.float32)})
    before = tiny.snapshot(workdir / "checkpoints")
    checkpoints = opened(workdir)
    with no_space(size):
        checkpoints.save(8, large, {}, {})
        checkpoints.wait()
        assert checkpoints.failures() == ["the checkpoint of step 8 could not be saved (File too large): the last good one is of step 6."]
        assert checkpoints.failures() == [] and checkpoints.latest_step() == 6
        good = "the last good one is of step 6; once that is put right, the same command goes on from there."
        with pytest.raises(UserError, match=rf"the last checkpoint, of step 8, could not be saved \(File too large\): {good}"):
            checkpoints.finish()
    after = tiny.snapshot(workdir / "checkpoints")
    marked = after.pop("8.unfinished")  # what tensorstore may still write must not count
    assert marked and {name: kept for name, kept in after.items() if not name.startswith("8")} == before
    checkpoints.save(8, large, {"global_next_index": 1}, {})
    checkpoints.finish()
    assert checkpoints.failures() == []
    restored, data, _ = checkpoints.restore(tiny.like(large))
    checkpoints.save(10, large, {}, {})  # what had failed was mended, and is no more in the way of the next
    checkpoints.finish()
    checkpoints.close()
    assert checkpoints.steps == listed(epath.Path(workdir)) == [6, 8, 10] and checkpoint.folders.damage(checkpoints.directory, 8) == ""
    assert data == {"global_next_index": 1} and np.array_equal(restored.opt_state["c"], large.opt_state["c"])


@pytest.mark.parametrize("at", ["begin", "commit", "remove"])
def test_whatever_fails_in_a_save_is_told(at: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = opened(tmp_path, keep_last=1)
    save(checkpoints, 1)
    checkpoints.wait()

    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "there")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.folders, at, refused)
        save(checkpoints, 2)
        checkpoints.wait()
    what = "1, which is no longer kept, could not be removed" if at == "remove" else "2 could not be saved"
    good = "" if at == "remove" else ": the last good one is of step 1"
    assert checkpoints.failures() == [f"the checkpoint of step {what} (Permission denied: there){good}."]
    save(checkpoints, 3)
    checkpoints.finish()
    checkpoints.close()
    assert checkpoints.failures() == [] and checkpoints.latest_step() == newest_step(epath.Path(tmp_path)) == read(tmp_path) == 3


def test_all_that_failed_is_told_at_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old step that stays and a new one that is not saved; of the last save the end of the run tells."""

    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    checkpoints = opened(tmp_path, keep_last=1)
    for step, refusing in ((1, ""), (2, "remove"), (3, "commit")):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.folders, refusing or "damage", refused)
            save(checkpoints, step)
            checkpoints.wait()
    kept = "the checkpoint of step 1, which is no longer kept, could not be removed (Permission denied)."
    assert checkpoints.failures() == [kept, "the checkpoint of step 3 could not be saved (Permission denied): the last good one is of step 2."]
    monkeypatch.setattr(checkpoint.folders, "commit", refused)
    save(checkpoints, 4)
    with pytest.raises(UserError, match="the last checkpoint, of step 4, could not be saved"):
        checkpoints.finish()
    checkpoints.close()
    assert checkpoints.failures() == []


def test_a_bucket_that_is_busy_is_no_damage_and_no_mistake(workdir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last save, at the start, and while a checkpoint is read: a launcher tries again, and nobody is told to go back."""

    def reset(*_: Any) -> None:
        raise ConnectionResetError(104, "Connection reset by peer")

    checkpoints = opened(workdir)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.folders, "commit", reset)
        save(checkpoints, 8)
        with pytest.raises(TryAgain, match=r"^the last checkpoint, of step 8, could not be saved \(Connection reset by peer\): .* of step 6$"):
            checkpoints.finish()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.folders, "clean", reset)
        with pytest.raises(TryAgain, match=r"cannot be written \(Connection reset by peer\)"):
            opened(workdir)
    monkeypatch.setattr(checkpoint.folders.seal, "_digest", reset)
    with pytest.raises(TryAgain, match=r"checkpoints/6 cannot be read \(Connection reset by peer\)"):
        read(workdir)
    with pytest.raises(ConnectionResetError):  # the door makes a TryAgain of it
        checkpoints.restore(STATE)
    checkpoints.close()


@pytest.mark.parametrize("text, why", [
    ("Failed to write 3 bytes to file 29: File too large [os_error_code='27'] [spec='{}']", "File too large"),
    ("Failed to write 3 bytes to file 29: File too large [spec='{}'] [os_error_code='27']", "File too large"),
    ("All 1 retry attempts failed: backend is away [http_response_code='503'] [http_response_body='{}']", "backend is away"),
    ("All 1 retry attempts failed: CURL error: Could not connect to server [curl_code='7']", "Could not connect to server"),
])  # fmt: skip
def test_of_tensorstores_long_story_the_reason_is_told(text: str, why: str) -> None:
    assert checkpoint._reason(ValueError(f'ABORTED: Error opening "zarr" driver: Error writing "x/.zarray": {text}')) == why
