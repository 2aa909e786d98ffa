"""Being told to stop: what SIGTERM and Ctrl-C do to a run."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from cdcd_jax import interrupts
from cdcd_jax.config import AGAIN
from cdcd_jax.parallel import hosts


class Interrupted(Exception):
    """An evaluation was cut short by a signal."""


class Stop:
    """Remembers that a signal asked the run to stop, so that the step under way can end and be saved. A second signal stops at once."""

    CODES = {signal.SIGINT: interrupts.INTERRUPTED, signal.SIGTERM: AGAIN}

    def __init__(self) -> None:
        self.code = 0  # the exit code that the signal asks for

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block SIGTERM ends the process, and from `begin` on both signals are remembered."""
        before = {number: signal.getsignal(number) for number in self.CODES}
        signal.signal(signal.SIGTERM, self._leave)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def begin(self) -> None:
        """From here on there is something to save."""
        for number in self.CODES:
            signal.signal(number, self._note)
        interrupts.disarm()

    def _leave(self, number: int, frame: Any) -> None:
        for other in self.CODES:  # a launcher may repeat itself, and this handler must not begin twice
            signal.signal(other, signal.SIG_IGN)
        hosts.leave(AGAIN, f"{hosts.name()} was told to stop before its first step; there was nothing to save.")

    def _note(self, number: int, frame: Any) -> None:
        if self.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = self.code or self.CODES[signal.Signals(number)]
