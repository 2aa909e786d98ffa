"""Checkpoints: state, warp, data position, config and fingerprints in one step, sealed, all or nothing (docs/DESIGN.md, 10)."""

import asyncio
import functools
import json
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from cdcd_jax.config import CheckpointConfig, TryAgain, UserError
from cdcd_jax.data import files
from cdcd_jax.parallel.agreement import agree
from cdcd_jax.parallel.sharding import path_name
from cdcd_jax.training import folders, s3

PARTS = ("state", "warp")  # what orbax writes, a folder each
# Made beforehand: in these orbax's other processes wait for its first one to get so far, ten minutes long where that one has failed.
FOLDERS = tuple(f"{part}/array_metadatas" for part in PARTS)
# What orbax and tensorstore raise for what they cannot make sense of.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)


class Checkpoints:
    """The checkpoints of a run in training. All processes make one and call its methods together. Saving is asynchronous."""

    def __init__(self, workdir: epath.Path, config: CheckpointConfig):
        """Removes what saves that were cut short have left. Raises UserError where that is impossible, TryAgain where it may not be in a minute."""
        self.workdir, self.directory, self.config = workdir, _directory(workdir), config
        self._handlers = {part: ocp.StandardCheckpointHandler() for part in PARTS}
        self._pool = ThreadPoolExecutor(2, "checkpoint")  # one for the save under way, one for what it tries
        self._saving: Future[_Failure | None] | None = None
        self._step = -1  # of the last save that was begun
        self._failed: _Failure | None = None  # why it failed, once it is over
        self._given_up: int | None = None  # the last step that could not be saved
        self._untold: list[str] = []  # sentences for the log
        if failure := self._agree("clean", functools.partial(folders.clean, self.directory)):
            raise failure.error(f"{self.directory} cannot be written ({failure.why}).")
        self.steps = listed(workdir)  # the complete ones, ascending, alike in all processes

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self.steps[-1] if self.steps else None

    def saving(self) -> bool:
        """True while a save is under way."""
        return self._saving is not None and not self._saving.done()

    def save(self, step: int, state: Any, data: dict[str, int], meta: dict[str, Any]) -> None:
        """Saves in the background; waits until the arrays are copied, and before that for a save that is still under way.

        `data` is the iterator's state before the next batch is taken; `meta` holds config and fingerprints. A save that fails raises nothing:
        see `failures` and `finish`. A step that is there already is left as it is.
        """
        self.wait()
        if step in self.steps:
            self._failed = None
            return
        self._step, writes = step, []

        def copy() -> None:
            for part, tree in {"state": state, "warp": state.ema["warp"]}.items():
                arguments = ocp.args.StandardSave(tree)
                writes.extend(asyncio.run(self._handlers[part].async_save(self.directory / str(step) / part, args=arguments)))

        self._give_up()
        # No process may write before the first has made the folders.
        failure = self._agree("begin", lambda: folders.begin(self.directory, step, FOLDERS)) or self._tried(copy)
        self._saving = self._pool.submit(self._write, step, writes, failure, data, meta)

    def failures(self) -> list[str]:
        """A sentence for the log about each thing that has failed since the last call. It never waits."""
        if not self.saving():
            self.wait()
        told = []
        while self._untold:  # one by one, because the save under way may add to them
            told.append(self._untold.pop(0))
        return told

    def wait(self) -> None:
        """Returns when what was saved is written, or has failed."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        error = saving.exception()
        self._failed = saving.result() if error is None else _failure(error)
        if self._failed:
            self._untold.append(f"the checkpoint of step {self._step} {self._could_not(self._failed)}.")

    def finish(self) -> None:
        """Returns when what was saved is written. If the last save has failed, raises UserError, or TryAgain, which names the last good step."""
        self.wait()
        if self._failed:
            what = self._could_not(self._failed)
            self._untold = [told for told in self._untold if what not in told]  # it is raised; anything else is left for `failures`
            self._give_up()
            what = f"the last checkpoint, of step {self._step}, {what}"
            raise self._failed.error(what if self._failed.passing else f"{what}; once that is put right, the same command goes on from there.")

    def close(self) -> None:
        """Waits for a save under way and lets go."""
        self.wait()
        self._pool.shutdown()
        for handler in self._handlers.values():
            handler.close()

    def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, dict[str, int], dict[str, Any]]:
        """(state, data position, meta) of a step, the newest if none is named; `abstract` holds shapes, types and shardings.

        Raises UserError if a file of it is damaged, naming the file and the last good step, or if it does not fit; it never falls back by itself.
        Raises TryAgain if a bucket cannot be read just now.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise UserError(f"there is no checkpoint in {self.directory}: train first.")
        check_sealed(self.workdir, step)  # one process reads all files through; the others learn what it found
        folder = self.directory / str(step)
        try:
            _check(folder, abstract)
            state = self._handlers["state"].restore(folder / "state", args=ocp.args.StandardRestore(abstract))
            return state, json.loads((folder / "data.json").read_text()), json.loads((folder / "meta.json").read_text())
        except UNREADABLE + files.failures() as error:
            whole = f"the checkpoint {folder}, every byte of which is as it was saved, cannot be read ({_reason(error)})."
            raise files.failed(error, whole) from error

    def set_aside_after(self, step: int) -> str:
        """Moves the checkpoints of later steps to checkpoints/set_aside/after_<step> and deletes none; what was done, in a sentence."""
        later = [s for s in self.steps if s > step]
        if failure := self._agree("set aside", lambda: folders.set_aside_after(self.directory, step, later)):
            what = f"the checkpoints after step {step} could not all be moved aside ({failure.why}); none is lost"
            raise failure.error(what if failure.passing else f"{what}: give the command again.")
        self.steps = [s for s in self.steps if s <= step]
        those = f"those of {_and(later)} are" if len(later) > 1 else f"that of {_and(later)} is" if later else ""
        moved = f"; {those} in {folders.aside(self.directory, step)}" if later else ", which is the newest"
        return f"went back to the checkpoint of step {step}{moved}."

    def _agree(self, about: str, action: Callable[[], None]) -> "_Failure | None":
        """Does something in the first process alone; why it failed, in all processes."""
        return _shared(about, self._tried(action) if jax.process_index() == 0 else None)

    def _tried(self, action: Callable[[], Any]) -> "_Failure | None":
        """Why an action failed, if it did. It may be any reason at all: a save that fails is told, and ends no run."""
        error = self._pool.submit(action).exception()
        return _failure(error) if error else None

    def _give_up(self) -> None:
        """Frees the disk of the last save that failed; again before the next, because tensorstore may have written on. A new start does the rest."""
        if (step := self._given_up) is not None:
            self._agree("give up", lambda: folders.give_up(self.directory, step))

    def _write(
        self, step: int, writes: list[Any], failure: "_Failure | None", data: dict[str, int], meta: dict[str, Any]
    ) -> "_Failure | None":
        """The part of a save that is done in the background; why it failed, if it did."""
        # Each write is waited for, whatever became of the others.
        failures = [failure, *[self._tried(write.result) for write in writes]]
        failure = _shared("written", next(filter(None, failures), None)) or self._agree("commit", lambda: self._commit(step, data, meta))
        if failure:
            self._given_up = step
            self._give_up()
            return failure
        if step == self._given_up:  # tried again, and whole this time
            self._given_up = None
        every, there = self.config.keep_every_steps, [*self.steps, step]
        dropped = [s for s in there[: -self.config.keep_last] if not (every and s % every == 0)]
        self.steps = [s for s in there if s not in dropped]
        for old in dropped:
            if failure := self._agree("drop", functools.partial(folders.remove, self.directory, old)):
                self._untold.append(f"the checkpoint of step {old}, which is no longer kept, could not be removed ({failure.why}).")
        return None

    def _commit(self, step: int, data: dict[str, int], meta: dict[str, Any]) -> None:
        folder = self.directory / str(step)
        for part, handler in self._handlers.items():
            handler.finalize(folder / part)  # one index over what all processes have written
        (folder / "data.json").write_text(json.dumps(data))
        (folder / "meta.json").write_text(json.dumps(meta))
        folders.commit(self.directory, step)

    def _could_not(self, failure: "_Failure") -> str:
        good = f"the last good one is of step {self.steps[-1]}" if self.steps else "there is no earlier one"
        return f"could not be saved ({failure.why}): {good}"


class _Failure(NamedTuple):
    """Why something failed, and whether that may be gone in a minute."""

    why: str
    passing: bool

    def error(self, told: str) -> UserError | TryAgain:
        """What to raise for it."""
        return TryAgain(told) if self.passing else UserError(told)


def _failure(error: BaseException) -> _Failure:
    return _Failure(_reason(error), files.transient(error))


def _shared(about: str, failure: _Failure | None) -> _Failure | None:
    """Of all processes' failures the first, for all of them."""
    word = agree(about, json.dumps(failure) if failure else "")
    return _Failure(*json.loads(word)) if word else None


def listed(workdir: epath.Path) -> list[int]:
    """The complete steps of a run, ascending. Touches nothing. Where there are several processes, all call it."""
    return json.loads(agree("list", json.dumps(folders.listed(_directory(workdir))) if jax.process_index() == 0 else ""))


def newest_step(workdir: epath.Path) -> int | None:
    """The newest complete step of a run, or None."""
    there = listed(workdir)
    return there[-1] if there else None


def check_sealed(workdir: epath.Path, step: int) -> None:
    """Raises UserError, as `Checkpoints.restore` does, if a file of the step is damaged. Where there are several processes, all call it."""
    if said := agree("verify", folders.damage(_directory(workdir), step) if jax.process_index() == 0 else ""):
        raise UserError(said)


def step_to_go_back_to(workdir: epath.Path, step: int) -> int | None:
    """The step, if its checkpoint is there; None if this run went back to it before. Raises UserError, which lists those that are there."""
    there = listed(workdir)
    if step not in there:
        found = f"there are those of {_and(there)}" if len(there) > 1 else f"there is that of {_and(there)}" if there else "there is none"
        raise UserError(f"--go_back_to={step} names no checkpoint of {workdir}: {found}.")
    return None if folders.went_back(_directory(workdir), step) else step


def restore_part(workdir: epath.Path, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, meta) with only the named fields of the newest step's state, as `abstract` (a dict of them) describes; perhaps while a trainer saves.

    Raises UserError, or TryAgain, as `Checkpoints.restore` does.
    """
    directory, tried = _directory(workdir), -1
    failure: UserError | TryAgain = UserError(f"there is no checkpoint in {workdir}: train first.")
    # Where reading fails, the trainer may have dropped the step in the meantime; it does so only when there is a newer one.
    while (step := newest_step(workdir)) is not None and step != tried:
        folder, tried = directory / str(step), step
        try:
            if said := folders.damage(directory, step):
                raise UserError(said)
            _check(folder, abstract, whole=False)
            arguments = ocp.args.PyTreeRestore(
                item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
            )
            return ocp.PyTreeCheckpointHandler().restore(folder / "state", args=arguments), json.loads((folder / "meta.json").read_text())
        except UserError as error:
            failure = error
        except UNREADABLE + files.failures() as error:
            failure = files.failed(error, f"the checkpoint {folder} cannot be read ({_reason(error)}).")
    raise failure


def read_json(path: epath.Path) -> Any:
    """The content of a JSON file of a workdir; UserError if it is missing or damaged, TryAgain if a bucket cannot be read just now."""
    try:
        return json.loads(path.read_text())
    except files.failures() + (ValueError,) as error:
        raise files.failed(error, f"{path} cannot be read ({error}): name a run's workdir, whole.") from error


def _directory(workdir: epath.Path) -> epath.Path:
    if str(workdir).startswith(s3.SCHEME):
        s3.teach_orbax()
    return files.absolute(workdir / "checkpoints")  # orbax takes absolute paths only


def _check(folder: epath.Path, abstract: Any, whole: bool = True) -> None:
    """orbax casts types without a word, so types and shapes are compared first; of the whole state, or of what `abstract` names of it."""
    saved = ocp.StandardCheckpointHandler().metadata(folder / "state")
    found = {path_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in jax.tree_util.tree_leaves_with_path(saved.tree)}
    wanted = {path_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    for name in sorted(found.keys() | wanted.keys() if whole else wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"the checkpoint {folder} does not fit: {name} is {found.get(name, 'absent')} there, and {wanted.get(name, 'absent')} by this "
                "config and code; nothing was changed: take those that it was saved with, or train in another workdir."
            )


def _reason(error: BaseException) -> str:
    """Why something failed, in a few words: the system's own where it is known."""
    text = " ".join(str(error).split())
    # tensorstore's, at the end of a long story and before all that it adds in brackets
    if re.search(r"\[(os_error_code|http_response_code|curl_code)=", text) and (known := re.search(r"([^:[]+) \[\w+='", text)):
        return known[1].strip()
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}" if text else type(error).__name__


def _and(steps: list[int]) -> str:
    """step 2; steps 2, 4 and 6"""
    *first, last = map(str, steps)
    return f"steps {', '.join(first)} and {last}" if first else f"step {last}"
