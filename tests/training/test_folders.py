"""Which checkpoints count, whenever a process is killed."""

import itertools
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from etils import epath
from etils.epath.gpath import PosixGPath
from fsspec.implementations.local import LocalFileSystem

from cdcd_jax.training import folders, seal


class Killed(BaseException):
    """Raised in the place of what the killed process would have done next."""


def make(directory: epath.Path, step: int, content: str = "") -> None:
    folders.begin(directory, step, ("state", "warp"))
    for part in ("state", "warp"):
        (directory / str(step) / part / "d").write_text(f"{content or step}")
    folders.commit(directory, step)


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> epath.Path:
    """The folder `checkpoints` with steps 2 and 10."""
    path = epath.Path(tmp_path / "checkpoints")
    folders.clean(path)
    for step in (2, 10):
        make(path, step)
    return path


def assert_whole(directory: epath.Path, there: set[int]) -> None:
    """Whatever is listed is whole, and what is to be there is listed."""
    listed = folders.listed(directory)
    assert listed == sorted(listed) and there <= set(listed)
    for step in listed:
        assert folders.damage(directory, step) == ""


def test_what_counts(directory: epath.Path) -> None:
    for name in ("012", "7.2", "x", "-3", "set_aside", "11.orbax-checkpoint-tmp"):
        (directory / name).mkdir()
    assert folders.listed(directory) == [2, 10]
    (directory / "10.unfinished").write_text("")
    assert folders.listed(directory) == [2]
    assert folders.listed(directory / "none") == []


def killed_before(limit: int, action: Callable[..., None], *args: Any) -> bool:
    """Does something, but is killed when it has changed the disk that many times; whether it was."""
    left = [limit]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any, **kwargs: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return real(*args, **kwargs)

        return change

    def delete(folder: epath.Path, whole: Callable[..., Any] = folders._delete) -> None:
        """It is many changes: half of it is one of them."""
        if (folder / "state").exists():
            counted(shutil.rmtree)(folder / "state")
        counted(whole)(folder)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_text", "write_bytes", "unlink", "rename", "mkdir"):
            patch.setattr(PosixGPath, name, counted(getattr(PosixGPath, name)))
        patch.setattr(LocalFileSystem, "cp_file", counted(LocalFileSystem.cp_file))
        patch.setattr(folders, "_delete", delete)
        try:
            action(*args)
        except Killed:
            return True
    return False


def fresh(directory: epath.Path, name: str) -> epath.Path:
    return epath.Path(shutil.copytree(directory, directory.parent / name))


def again(here: epath.Path, step: int) -> None:
    """A new start clears away what is no checkpoint, and can save the step."""
    folders.clean(here)
    assert all((here / name).is_dir() for name in folders._names(here))
    assert {int(name) for name in folders._names(here)} == set(folders.listed(here))
    if step not in folders.listed(here):
        make(here, step, "again")
    assert_whole(here, {step})


@pytest.mark.parametrize(("action", "step", "kept"), [(make, 12, {2, 10}), (folders.remove, 2, {10})])
def test_killed_while_saving_or_dropping(action: Callable[..., None], step: int, kept: set[int], directory: epath.Path) -> None:
    for limit in itertools.count():
        here = fresh(directory, str(limit))
        killed = killed_before(limit, action, here, step)
        assert_whole(here, kept)
        if not killed:
            break
        again(here, 12)
    assert limit > 3 and (step in folders.listed(here)) == (action is make)


def test_killed_while_clearing_away(directory: epath.Path) -> None:
    for limit in itertools.count():
        here = fresh(directory, str(limit))
        for step in (12, 14):
            killed_before(7, make, here, step)
        assert folders.listed(here) == [2, 10]
        killed = killed_before(limit, folders.clean, here)
        assert_whole(here, {2, 10})
        if not killed:
            break
        again(here, 12)
    assert limit > 5 and folders._names(here) == {"2", "10"}


@pytest.mark.parametrize("bucket", [False, True])
def test_killed_while_going_back(bucket: bool, directory: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a bucket, which cannot rename, a step is copied before it is removed."""
    monkeypatch.setattr(folders.files, "in_bucket", lambda _: bucket)
    make(directory, 12)
    for limit in itertools.count():
        here = fresh(directory, f"{bucket}{limit}")
        killed = killed_before(limit, folders.set_aside_after, here, 2, [10, 12])
        assert_whole(here, {2})
        for step in (10, 12):
            group = folders.aside(here, 2)
            copies = [here / str(step), *(path for path in (group.iterdir() if group.exists() else []) if path.name.startswith(str(step)))]
            assert any(path.exists() and not seal.faults(path, step) for path in copies), f"step {step} is lost"
        if not killed:
            break
        # The command is given again.
        folders.clean(here)
        assert not folders.went_back(here, 2)
        folders.set_aside_after(here, 2, [step for step in folders.listed(here) if step > 2])
        assert folders.listed(here) == [2] and folders.went_back(here, 2)
    assert limit > 3 and folders.listed(here) == [2] and folders.went_back(here, 2)
