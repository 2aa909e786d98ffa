"""Being told to stop: what SIGTERM and Ctrl-C do to a run."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from cdcd_jax import interrupts
from cdcd_jax.config import AGAIN
from cdcd_jax.parallel import agreement, hosts
from cdcd_jax.parallel.clock import Clock

# What is still done before the run is saved, by the phase of the clock in which the signal comes.
FIRST = {
    "compile": "compiling and finishing one step", "data": "waiting for data and finishing the step", "step": "finishing the step under way",
    "checkpoint": "finishing the save and the step under way", "evaluation": "cutting the evaluation short",
}  # fmt: skip


class Interrupted(Exception):
    """An evaluation was cut short by a signal."""


class Stop:
    """Remembers that a signal asked the run to stop, so that the step under way can end and be saved. A second Ctrl-C stops at once."""

    CODES = {signal.SIGINT: interrupts.INTERRUPTED, signal.SIGTERM: AGAIN}
    WORDS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.code = 0  # the exit code that the signal asks for
        self.why = ""  # who was told to stop, and how: this process, once it was
        self._told = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block SIGTERM ends the process, and from `begin` on both signals are remembered."""
        before = {number: signal.getsignal(number) for number in self.CODES}
        interrupts.at_once(signal.SIGTERM, self._leave, lambda: hosts.leave(AGAIN, hosts.told_early()))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def begin(self) -> None:
        """From here on there is something to save."""
        interrupts.at_once(signal.SIGTERM, self._note, lambda: self._note(signal.SIGTERM, None))
        signal.signal(signal.SIGINT, self._note)  # not at once as well, for it would count twice
        interrupts.disarm()

    def tell(self, first: str) -> None:
        """On several hosts: says on each of them, once, who was told to stop, and what is still done `first`. All processes call it together."""
        if hosts.several() and not self._told:
            self._told = True
            _say(f"{agreement.agree('told to stop', self.why)}: {first}, then saving.")

    def _leave(self, number: int, frame: Any) -> None:
        for other in self.CODES:  # a launcher may repeat itself, and this handler must not begin twice
            signal.signal(other, signal.SIG_IGN)
        hosts.leave(AGAIN, hosts.told_early())

    def _note(self, number: int, frame: Any) -> None:
        if self.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.code:
            word = self.WORDS[signal.Signals(number)]
            self.code, self.why = self.CODES[signal.Signals(number)], f"{hosts.name()} was told to stop ({word})"
            again = "; once more stops at once" if number == signal.SIGINT else ""
            _say(f"told to stop ({word}): {FIRST.get(self._clock.now[0], FIRST['step'])}, then saving{again}.")


def _say(text: str) -> None:
    """A line on stderr, past Python's own stream: a signal may have come in the middle of a write to that."""
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(2, f"{text}\n".encode())
