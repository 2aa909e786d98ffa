"""Progress on the terminal: a bar where there is one, a line now and then where output goes to a file."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import rich.console
import rich.progress

SECONDS_BETWEEN_LINES = 20.0

console = rich.console.Console(stderr=True, highlight=False)


class Progress:
    """A long step's progress; `update(done, note)` may be called as often as one likes."""

    def __init__(self, total: int, what: str, start: int, bar: rich.progress.Progress | None):
        self.total, self.what, self.start, self.bar = total, what, start, bar
        self.began: float | None = None  # from the first update on: what came before it was preparation, and would spoil the estimate
        self.said = time.monotonic()
        self.task = bar.add_task(what, total=total, completed=start, note="") if bar else None

    def update(self, done: int, note: str = "") -> None:
        """`done` of `total` units are finished; the note stands beside the bar."""
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=done, note=note)
            return
        now = time.monotonic()
        if self.began is None:
            self.began, self.said, self.start = now, now, done
        if done >= self.total or now - self.said > SECONDS_BETWEEN_LINES:
            self.said = now
            left = (now - self.began) / max(done - self.start, 1) * (self.total - done)
            console.print(f"{self.what} {done:,}/{self.total:,}  {note}  {left:.0f} s left", soft_wrap=True)


@contextmanager
def progress(total: int, what: str, start: int = 0) -> Iterator[Progress]:
    """A Progress from `start` to `total` units of `what`."""
    if not console.is_terminal:
        yield Progress(total, what, start, None)
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
        rich.progress.TimeRemainingColumn(compact=True),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        yield Progress(total, what, start, bar)
