"""A folder in which data are prepared: whose it is, that one process is at it, what of it is gone on with, and what is taken away.

preparation.py says what lies in it.
"""

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data import files, records
from cdcd_jax.data.records import MANIFEST, RESULTS, TOKEN_COUNTS, TOKENIZER, UNFINISHED

SHARD_NAMES = "shards.json"
FINISHING = (TOKEN_COUNTS, "tokenizer.json", "spm.model")  # what is written before the manifest, each time anew
OURS = ("lock", "plan.json", TOKENIZER, "tokens", SHARD_NAMES, "shards")  # what is written into unfinished/, besides RESULTS


def refuse_others(folder: epath.Path) -> None:
    """Raises UserError for a folder with anything in it that is no preparation, and for what is no folder."""
    if files.kind(folder) not in (None, "directory"):
        raise UserError(f"{folder} is a file; name a folder as --output.")
    # What stands for a folder in a bucket may be an object of the folder's own name.
    found = [path.name for path in folder.iterdir() if path != folder] if folder.exists() else []
    begun = (folder / UNFINISHED / "plan.json").exists() or found == [UNFINISHED] and _ours(folder / UNFINISHED)[1]
    if found and MANIFEST not in found and not begun:
        raise UserError(f"{folder} is not empty and holds no prepared data (no {MANIFEST}); name a new folder as --output.")


def refuse_another(folder: epath.Path, plan: dict[str, Any]) -> None:
    """Raises UserError for a folder that another plan has made, or has finished a part of: what may have taken hours is not given up for a typo."""
    if (folder / MANIFEST).exists():
        there, what, way = records.read_manifest(folder).plan, "is prepared, but otherwise", ""
    else:
        there, what, way = _read(folder / UNFINISHED / "plan.json"), "is partly prepared, but otherwise", f", or remove {folder} to begin anew"
        if not isinstance(there, dict) or not _finished(folder):
            return
    if differences := _differences(there, plan):
        raise UserError(f"{folder} {what} ({differences}); name another folder as --output{way}.")


def _finished(folder: epath.Path) -> bool:
    """Whether the tokens of any part are finished."""
    tokens = folder / UNFINISHED / "tokens"
    return tokens.exists() and any(path.name.endswith(".json") and not path.name.startswith(".") for path in tokens.iterdir())


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What differs between two plans, in words; of what changes the text, the text itself is not named as well."""
    words = {"text": "the text is another", "tokenizer": "the tokenizer is another", "format": "it was made by another version"}
    keys = [key for key in here if there.get(key) != here[key]]
    if any(key.removeprefix("data.") in ("text_key", "alphabet", "split", "valid_fraction", "test_fraction", "valid_split") for key in keys):
        keys = [key for key in keys if key != "text"]
    return ", and ".join(words.get(key, f"{key} = {there.get(key)!r} there and {here[key]!r} here") for key in keys)


@contextlib.contextmanager
def alone(folder: epath.Path) -> Iterator[None]:
    """Keeps a second process of this machine from the same folder, and leaves nothing behind if nothing else was written.

    The lock is the kernel's, so a kill leaves none.
    """
    if files.in_bucket(folder) or (folder / MANIFEST).exists():
        yield
        return
    unfinished = folder / UNFINISHED
    made = list(itertools.takewhile(lambda path: not path.exists(), (unfinished, *unfinished.parents)))
    with contextlib.ExitStack() as stack:
        with files.writing(folder):
            unfinished.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((unfinished / "lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(file.fileno()).st_nlink:
                raise BlockingIOError("who had it took it away meanwhile, and another may be there")
        except BlockingIOError as error:
            raise UserError(f"another process prepares {folder} at this moment; wait for it, or name another --output.") from error
        try:
            yield
        finally:
            if unfinished.exists() and [path.name for path in unfinished.iterdir()] == ["lock"]:
                (unfinished / "lock").unlink()
                with contextlib.suppress(OSError):  # others may have written into them
                    for path in made:
                        path.rmdir()


def begin(folder: epath.Path, plan: dict[str, Any], say: Callable[[str], None]) -> None:
    """Goes on with what was begun by the same plan; takes away what another plan left."""
    for left in (path for place in (folder, folder / TOKENIZER) if place.exists() for path in place.iterdir()):
        if left.name in FINISHING or left.name.startswith(tuple(map(files.partial_name, (*FINISHING, MANIFEST)))):
            left.unlink()
    path = folder / UNFINISHED / "plan.json"
    there = _read(path)
    if there == plan:
        return
    if isinstance(there, dict):
        say(f"{folder} is begun anew: {_differences(there, plan)}.")
    for name in _read(path.with_name(SHARD_NAMES)) or []:
        (folder / name).unlink(missing_ok=True)
    take_away(path.parent, but=("lock", path.name))  # without its plan the folder would not be known for ours
    files.write_whole(path, json.dumps(plan, indent=2) + "\n")


def take_away(unfinished: epath.Path, but: tuple[str, ...] = ()) -> None:
    """Removes what was written here, and the folder if nothing else is in it."""
    ours, all_of_it = _ours(unfinished)
    for path in ours:
        if path.name not in but:
            path.rmtree() if files.kind(path) == "directory" else path.unlink()
    if all_of_it and not but and not files.in_bucket(unfinished) and unfinished.exists():
        unfinished.rmdir()


def _ours(unfinished: epath.Path) -> tuple[list[epath.Path], bool]:
    """What of a folder `unfinished` was written here, and whether that is all of it."""
    found = [path for path in unfinished.iterdir() if path != unfinished] if unfinished.exists() else []
    begin = (RESULTS, f".{RESULTS}", *map(files.partial_name, OURS))
    ours = [path for path in found if path.name in OURS or path.name.startswith(begin)]
    return ours, len(ours) == len(found)


def _read(path: epath.Path) -> Any:
    """What a file of JSON holds; None if it is not there, or was not written by this program."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
