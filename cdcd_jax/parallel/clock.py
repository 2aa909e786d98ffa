"""What this process is doing: since when, and for how long it has done each thing in all."""

import contextlib
import time
from collections.abc import Iterator

# start: reading text and checkpoint, meeting the other hosts; compile: until the first step is done; checkpoint: waiting for one.
PHASES = ("start", "compile", "data", "step", "checkpoint", "evaluation")


class Clock:
    """Divides the time of a process among phases, without a gap; any thread may read it.

    `step` is the last step that was finished in this life, `began` the Unix time of its start.
    """

    def __init__(self) -> None:
        self.began = time.time()
        self.step = 0
        self.steps = 0  # finished in this life
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._now = ("start", time.monotonic())
        self._anew = 0.0  # when the time that a phase may last began anew

    @property
    def now(self) -> tuple[str, float]:
        """(the phase under way, the seconds that count against its deadline)."""
        name, since = self._now
        return name, time.monotonic() - max(since, self._anew)

    def begin_anew(self) -> None:
        """What lies before does not count against the deadline of the phase under way, only as time spent. From any thread."""
        self._anew = time.monotonic()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block as this phase, and what comes after it as the phase before."""
        before = self._now[0]
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def enter(self, name: str) -> None:
        """From here on it is this phase."""
        last, since = self._now
        now = time.monotonic()
        self._spent[last] += now - since
        self._now = (name, now)

    def finished(self, step: int) -> None:
        """A step is done, on all hosts: what was under way begins anew."""
        self.step = step
        self.steps += 1
        self.enter("step" if self._now[0] == "compile" else self._now[0])

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each phase, the one under way included."""
        name, since = self._now
        return self._spent | {name: self._spent[name] + time.monotonic() - since}

    @property
    def step_seconds(self) -> float | None:
        """The mean time of a step after the first, data included; None before there is one."""
        return (self._spent["step"] + self._spent["data"]) / (self.steps - 1) if self.steps > 1 else None
