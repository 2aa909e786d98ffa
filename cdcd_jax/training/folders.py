"""Which checkpoints count: the folders of `checkpoints/`, on a disk or in a bucket.

`checkpoints/8` counts unless the file `checkpoints/8.unfinished` stands beside it. A save makes that marker first, then writes the files, then
their seal, and takes the marker away; what removes a step marks it first. No folder is renamed for it, which no bucket can do at once. So a process
may be killed at any moment, and what counts is whole. All of this is done by one process.
"""

import json
import re

import fsspec
from etils import epath

from cdcd_jax.data import files
from cdcd_jax.training import seal

UNFINISHED, SET_ASIDE = ".unfinished", "set_aside"


def listed(directory: epath.Path) -> list[int]:
    """The steps that count, ascending, from one listing. Touches nothing."""
    names = _names(directory)
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name) and name + UNFINISHED not in names)


def clean(directory: epath.Path) -> None:
    """Makes the folder, and removes what a killed process has left unfinished."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in _names(directory):
        if match := re.fullmatch(rf"(\d+){re.escape(UNFINISHED)}", name):
            remove(directory, int(match[1]))


def begin(directory: epath.Path, step: int, folders: tuple[str, ...]) -> None:
    """An empty folder for a step, with folders in it, which does not count yet."""
    give_up(directory, step)
    for name in folders:
        (directory / str(step) / name).mkdir(parents=True, exist_ok=True)


def commit(directory: epath.Path, step: int) -> None:
    """Seals what was written of a step and lets it count."""
    seal.write(directory / str(step), step)
    _marker(directory, step).unlink()


def give_up(directory: epath.Path, step: int) -> None:
    """Removes what was written of a step, but not its marker: what tensorstore still writes of it, after a failure, must not count either."""
    _marker(directory, step).write_text("")
    _delete(directory / str(step))


def remove(directory: epath.Path, step: int) -> None:
    """Removes a step, which does not count from the first moment on."""
    give_up(directory, step)
    _marker(directory, step).unlink()


def aside(directory: epath.Path, step: int) -> epath.Path:
    """Where the checkpoints go that are later than the step to which a run went back."""
    return directory / SET_ASIDE / f"after_{step}"


def went_back(directory: epath.Path, step: int) -> bool:
    """Whether the run went back to this step before: a launcher repeats a command with its flags, which must not undo what was trained since."""
    return _record(directory, step).exists()


def set_aside_after(directory: epath.Path, step: int, later: list[int]) -> None:
    """Moves the later steps aside, the newest first, and deletes none. What was interrupted is completed by doing it again."""
    group = aside(directory, step)
    group.mkdir(parents=True, exist_ok=True)
    for other in sorted(later, reverse=True):
        source, taken = directory / str(other), _names(group)
        target = group / next(name for name in (str(other), *(f"{other}.{n}" for n in range(2, len(taken) + 3))) if name not in taken)
        if not files.in_bucket(directory):
            source.rename(target)
            continue
        # The copy is whole before the marker allows to delete.
        system, path = fsspec.url_to_fs(str(source))
        system.copy(path, fsspec.url_to_fs(str(target))[1], recursive=True)
        remove(directory, other)
    _record(directory, step).write_text(json.dumps({"set_aside": later}))


def damage(directory: epath.Path, step: int) -> str:
    """What is wrong with a step and what can be done, in a sentence; "" if every byte is as it was saved."""
    if not (faults := seal.faults(directory / str(step), step)):
        return ""
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    good = next((older for older in reversed(listed(directory)) if older < step and not seal.faults(directory / str(older), older)), None)
    advice = (
        "there is no good one before it, so train again in another workdir"
        if good is None
        else f"python -m cdcd_jax.train with --go_back_to={good} goes on from step {good}, the last good one"
    )
    return f"the checkpoint {directory / str(step)} is damaged ({'; '.join(faults[:3])}{more}); nothing was changed: {advice}."


def _marker(directory: epath.Path, step: int) -> epath.Path:
    return directory / f"{step}{UNFINISHED}"


def _record(directory: epath.Path, step: int) -> epath.Path:
    return directory / SET_ASIDE / f"after_{step}.json"


def _names(folder: epath.Path) -> set[str]:
    """What a folder holds now, for which no older listing of a bucket is believed; nothing if it is not there."""
    system, path = fsspec.url_to_fs(str(folder))
    system.invalidate_cache()
    try:
        return {name.rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False)}
    except FileNotFoundError:
        return set()


def _delete(folder: epath.Path) -> None:
    system, path = fsspec.url_to_fs(str(folder))
    system.invalidate_cache()
    if system.exists(path):
        system.rm(path, recursive=True)
