"""TensorBoard's events, which a run can do without."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from cdcd_jax.training.progress import console


class Events:
    """The events of one life of a run, written in a thread of their own, so that the loop never waits for the disk.

    Where they cannot be written this is said, once, and there are no more of them in this life: nothing here raises for it.
    """

    def __init__(self, folder: str):
        from clu.metric_writers import SummaryWriter  # here, because it imports TensorFlow: seconds, which a user's mistake need not wait for

        self._make = lambda: SummaryWriter(folder)
        self._writer: Any = None  # made, and its file with it, for the first event
        self._broken = False
        self._pool = ThreadPoolExecutor(1, "events")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Hands values of a step to the thread."""

        def write() -> None:
            self._writer = self._writer or self._make()
            self._writer.write_scalars(step, values)

        self._submit(write)

    def flush(self) -> None:
        """Returns when all events are in their file."""
        wait([self._submit(lambda: self._writer and self._writer.flush())])

    def close(self) -> None:
        """Writes what is left and lets go."""
        self._submit(lambda: self._writer and self._writer.close())
        self._pool.shutdown()

    def _submit(self, action: Callable[[], Any]) -> "Future[Any]":
        future = self._pool.submit(lambda: None if self._broken else action())
        future.add_done_callback(self._look)  # before the next action
        return future

    def _look(self, future: "Future[Any]") -> None:
        """It may have failed for any reason at all: none matters to the run."""
        if (error := future.exception()) is not None:
            self._broken = True
            # Before the reason comes the operation's name, after it more of the same.
            why = str(error).rpartition("}} ")[2].partition("\n")[0].partition(" [Op:")[0][:300]
            console.print(f"warning: TensorBoard's events cannot be written any more ({why}).", style="yellow", soft_wrap=True)
