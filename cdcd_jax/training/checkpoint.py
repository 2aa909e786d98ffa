"""Checkpoints, with orbax: state, warp, data position, config and fingerprints in one step, all or nothing (docs/DESIGN.md, 10)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from cdcd_jax.config import CheckpointConfig, UserError
from cdcd_jax.data import files
from cdcd_jax.parallel.sharding import path_name
from cdcd_jax.training import s3

# What orbax and tensorstore raise for a file that is missing, truncated or not theirs.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)


class Checkpoints:
    """The checkpoints of a workdir. Saving is asynchronous; a directory counts only once it is complete."""

    def __init__(self, workdir: epath.Path, config: CheckpointConfig, read_only: bool = False):
        """`read_only` for whoever only restores, perhaps while a trainer saves. Raises UserError if there is nothing to read."""
        self.directory = files.absolute(workdir / "checkpoints")  # orbax takes absolute paths only
        if read_only and not self.directory.exists():
            raise UserError(f"there is no checkpoint in {workdir}: train first.")
        keep = None if read_only else config.keep_last
        mode = ocp.options.AtomicityMode.AUTO
        if str(self.directory).startswith(s3.SCHEME):
            s3.teach_orbax()
            mode = ocp.options.AtomicityMode.COMMIT_FILE  # as in gs://: there is no atomic rename of a folder
        atomicity = ocp.options.AtomicityOptions(mode)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=not read_only, read_only=read_only, atomicity_options=atomicity)
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self.manager.latest_step()

    def save(self, step: int, state: Any, data: dict[str, int], meta: dict[str, Any]) -> None:
        """Saves in the background. `data` is the iterator's state before the next batch is taken; `meta` holds config and fingerprints."""
        if step == self.latest_step():
            return
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                warp=ocp.args.StandardSave(state.ema["warp"]),
                data=ocp.args.JsonSave(data),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def restore(self, abstract: Any) -> tuple[Any, dict[str, int], dict[str, Any]]:
        """(state, data position, meta) of the latest step; `abstract` holds shapes, types and shardings.

        Raises UserError naming the step and the last good one when it cannot be read or does not fit; it never falls back by itself.
        """
        step = self._latest()
        with self._readable(step):
            self._check(step, abstract)
            restored = self.manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore()),
            )
        return restored.state, restored.data, restored.meta

    def restore_part(self, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(state, meta) with only the named fields of the latest step's state, as `abstract` (a dict of them) describes."""
        step = self._latest()
        with self._readable(step):
            self._check(step, abstract, whole=False)
            arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
            restored = self.manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(item=abstract, restore_args=arguments, partial_restore=True), meta=ocp.args.JsonRestore()
                ),
            )
        return restored.state, restored.meta

    def wait(self) -> None:
        """Returns when what was saved is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Waits for saves under way and lets go."""
        self.manager.close()

    def _latest(self) -> int:
        step = self.latest_step()
        if step is None:
            raise UserError(f"there is no checkpoint in {self.directory}: train first.")
        return step

    def _check(self, step: int, abstract: Any, whole: bool = True) -> None:
        """orbax casts types without a word, so types and shapes are compared first; of the whole state, or of what `abstract` names of it."""
        # Not the manager's own item_metadata, which knows nothing of what it has not itself saved or restored.
        saved = ocp.StandardCheckpointHandler().metadata(self.directory / str(step) / "state")
        found = {path_name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in jax.tree_util.tree_leaves_with_path(saved.tree)}
        wanted = {path_name(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
        for name in sorted(found.keys() | wanted.keys() if whole else wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise ValueError(f"{name} is {found.get(name, 'absent')} there, and {wanted.get(name, 'absent')} in this run")

    @contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Turns what a damaged checkpoint raises into one sentence that says what the user can do."""
        try:
            yield
        except UNREADABLE as error:
            older = [s for s in sorted(self.manager.all_steps()) if s < step]
            good = f"move it away to go on from step {older[-1]}" if older else "there is no older one, so train again in another workdir"
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"the checkpoint {self.directory / str(step)} cannot be read ({reason}); nothing was changed: {good}.") from error


def newest_step(workdir: epath.Path) -> int | None:
    """The newest complete step of a run, or None; touches nothing."""
    if not (workdir / "checkpoints").exists():
        return None
    checkpoints = Checkpoints(workdir, CheckpointConfig(), read_only=True)
    try:
        return checkpoints.latest_step()
    finally:
        checkpoints.close()


def read_json(path: epath.Path) -> Any:
    """The content of a JSON file of a workdir; UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): name a run's workdir, whole.") from error
