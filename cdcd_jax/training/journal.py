"""What a run writes as it goes: lines of .jsonl files, and scalars for TensorBoard (docs/DESIGN.md, 10)."""

import contextlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from etils import epath

from cdcd_jax.config import TryAgain, UserError
from cdcd_jax.data import files
from cdcd_jax.training import workdir
from cdcd_jax.training.events import Events
from cdcd_jax.training.progress import console

SECONDS = 30.0  # between two rewrites of what changed in a bucket


class Journal:
    """The .jsonl files and TensorBoard's events of one life of a run, for the one process that writes them: `with Journal(...) as journal`.

    On disk a line is in its file when `append` returns. In a bucket nothing can be appended to: the lines are kept in memory, after those that
    earlier lives left, and a thread writes the changed files anew, whole, every `seconds`. `flush` does so at once: called before a checkpoint is
    saved, it makes sure that the lines up to that step are there wherever the run goes on. A kill loses at most the lines since the later of both.
    TensorBoard's events are written by TensorFlow, which does not know every bucket: they go to a folder of this machine, and the thread copies
    them. `still_ours`, of training/lock.py, is called before anything is written into a bucket: another trainer's lines are not written over.
    """

    def __init__(self, folder: epath.Path, still_ours: Callable[[], None], seconds: float = SECONDS):
        self.workdir, self.still_ours, self.seconds = folder, still_ours, seconds
        self._kept: dict[str, str] = {}  # lines that a disk has not taken yet
        # What follows is for buckets alone.
        self._lines: dict[str, list[str]] = {}  # all of a file's lines
        self._changed: set[str] = set()  # the files with lines that are not in the bucket yet
        self._copied: dict[str, int] = {}  # how long an events file was when it was copied
        self._lock, self._writing, self._ending = threading.Lock(), threading.Lock(), threading.Event()
        self._folder, self._thread = None, None
        if files.in_bucket(folder):
            self._folder = tempfile.TemporaryDirectory(prefix="cdcd_jax-")
            self._thread = threading.Thread(target=self._now_and_then, name="journal", daemon=True)
            self._thread.start()
        self._events = Events(self._folder.name if self._folder else folder.as_posix())

    def amend(self, name: str, step: int) -> list[dict[str, Any]]:
        """Drops the lines of the file of that name that are later than a step, and one that a kill left half-written; all whole ones as they were.

        To be called before the first line is added. Raises UserError, naming the line, where one is damaged.
        """
        path = self.workdir / name
        if not path.exists():
            return []
        before = workdir.lines(path)
        kept = [json.dumps(line) + "\n" for line in before if line["step"] <= step]
        if self._folder is None:
            files.write_whole(path, "".join(kept))
        else:
            with self._lock:
                self._lines[name] = kept
                self._changed.add(name)
        return before

    def append(self, name: str, line: dict[str, Any]) -> None:
        """Adds a line to the file of that name. Where a disk does not take it, it is kept, and written with the next one."""
        path, text = self.workdir / name, json.dumps(line) + "\n"
        if self._folder is None:
            self._on_disk(path, self._kept.pop(name, "") + text)
            return
        before = [path.read_text()] if name not in self._lines and path.exists() else []
        with self._lock:
            self._lines.setdefault(name, before).append(text)
            self._changed.add(name)

    def _on_disk(self, path: epath.Path, text: str) -> None:
        size = path.stat().length if path.exists() else 0
        try:
            with path.open("a") as file:
                file.write(text)
        except OSError as error:
            if text.count("\n") == 1:  # the first one that is kept
                why = files.reason(error)
                console.print(f"warning: {path} cannot be written ({why}): its lines are kept in memory.", style="yellow", soft_wrap=True)
            self._kept[path.name] = text
            with contextlib.suppress(OSError), path.open("a") as file:
                file.truncate(size)  # no half line

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Hands values of a step to TensorBoard's writer."""
        self._events.scalars(step, values)

    def flush(self) -> None:
        """Returns when all lines are in place. Where a bucket does not take them this is said: they are kept, and written with later ones."""
        if self._folder is not None:
            self._events.flush()
            self._attempt(events=False)

    def close(self) -> None:
        """Brings what is left to its place. Raises UserError, or TryAgain, if a bucket, or a disk, does not take it."""
        with self._stopped():
            self._write()
        for name in list(self._kept):
            self._on_disk(self.workdir / name, self._kept.pop(name))
        if self._kept:
            raise UserError(f"the last lines of {' and '.join(sorted(self._kept))} in {self.workdir} could not be written: make room on the disk.")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:  # another error must not take the place of the one that is on its way
            with self._stopped():
                self._attempt()

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        """Nothing new comes in the block, and afterwards nothing is left on this machine."""
        self._events.close()
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        try:
            yield
        finally:
            if self._folder is not None:
                self._folder.cleanup()

    def _now_and_then(self) -> None:
        while not self._ending.wait(self.seconds):
            self._attempt()

    def _attempt(self, events: bool = True) -> None:
        try:
            self._write(events)
        except (UserError, TryAgain) as error:
            console.print(f"warning: {error} What is new is kept in memory.", style="yellow", soft_wrap=True)

    def _write(self, events: bool = True) -> None:
        if self._folder is None:
            return
        with self._writing:  # one at a time, so that no older content follows a newer one
            self.still_ours()
            while self._changed:
                with self._lock:
                    name = self._changed.pop()
                    content = "".join(self._lines[name])
                try:
                    files.write_whole(self.workdir / name, content)
                except (UserError, TryAgain):
                    with self._lock:
                        self._changed.add(name)
                    raise
            for path in epath.Path(self._folder.name).iterdir() if events else ():
                content = path.read_bytes()
                if len(content) != self._copied.get(path.name):
                    files.write_whole(self.workdir / path.name, content)
                    self._copied[path.name] = len(content)
