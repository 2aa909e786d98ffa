"""No silent hang: a thread that knows what its process is doing, and ends it with 75 when that takes too long.

XLA waits for ever for a host that is alive and stopped, and JAX's heartbeats see only dead processes. So every process watches itself. The main
thread may be stuck inside the runtime, so nothing here needs it.
"""

import signal
import socket
import sys
import threading
import time
import traceback
from types import FrameType, TracebackType
from typing import Any

import jax

from cdcd_jax import interrupts
from cdcd_jax.config import AGAIN, HostsConfig, TryAgain, UserError, sentence
from cdcd_jax.interrupts import INTERRUPTED
from cdcd_jax.parallel import backend, hosts, rollcall
from cdcd_jax.parallel.clock import Clock
from cdcd_jax.parallel.job import Job, find

MARGIN = 10.0  # seconds after which the watch ends a roll call that has not ended itself
STOPPED = 5.0  # seconds after which a look that comes late is that of a process which was stopped
TICK = 0.25  # seconds between two looks at the clock
BROKEN = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED")  # what errors of the network say, by kinds of devices and of status
WORKING = ("data", "step")  # the phases that all hosts are in together; in the others one may take longer


class Watch:
    """`with Watch(config) as clock:` meets the other processes, watches this one inside the block, and hears of failures of the others.

    When the block fails on one of several processes, the others are told, and all leave at once: with 2 for a user's mistake, with 75 for a TryAgain,
    when a process has stopped giving signs of life, and when the network between them failed, with 1 for anything else.
    """

    def __init__(self, config: HostsConfig):
        self._config, self._clock = config, Clock()
        self._closed = threading.Event()
        self._heard = 0.0  # when the coordination service answered last; 0 before it did
        self._signs: dict[int, tuple[float, float]] = {}  # of each process: its last sign of life, and when that was first seen here
        self._calling: Job | None = None  # while the roll call lasts
        self._before: Any = signal.SIG_DFL  # what SIGTERM did

    def __enter__(self) -> Clock:
        backend.watch_gpus(self._config)
        self._before = signal.getsignal(signal.SIGTERM)
        interrupts.at_once(signal.SIGTERM, self._told, lambda: self._stop() if self._calling is None else None)
        threading.Thread(target=self._deadlines, name="deadlines", daemon=True).start()
        try:
            hosts.wait_for("the platform to say who the processes are")
            job = find(self._config)
            if job is not None:
                hosts.wait_for(f"all {job.count} processes to call at {job.address}")
                self._clock.begin_anew()
                self._calling = job
                rollcall.call(job, self._config.meet_seconds)
                self._calling = None
                self._clock.begin_anew()
                hosts.join(job, self._config)
        except (UserError, TryAgain):
            self._closed.set()
            raise
        finally:
            hosts.wait_for("")
        if job is not None:
            threading.Thread(target=self._news, name="news", daemon=True).start()
        return self._clock

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and hosts.several():
            if isinstance(error, (UserError, TryAgain)):
                hosts.leave(error.code, f"error: {sentence(error)}")
            if isinstance(error, KeyboardInterrupt):
                hosts.leave(INTERRUPTED, "interrupted.")
            # An error in a collective is the first that one hears of another's end.
            silent = [host.name for host in hosts.last_seen() if not host.alive]
            failure = hosts.failure_of_another()
            if failure is not None:
                failure.follow()
            broken = isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in BROKEN)
            told = "" if broken else "".join(traceback.format_exception(error))  # where this one stood when the network failed tells nothing
            if silent:
                hosts.leave(AGAIN, f"{told}no sign of {', '.join(silent)} any more; leaving with {AGAIN}, to be started again.")
            if broken:
                lost = f"{hosts.name()} lost its connection to the others, which are alive ({sentence(error)[:200]})"
                hosts.leave(AGAIN, f"{lost}; leaving with {AGAIN}, to be started again.")
            hosts.leave(1, f"{told}error: {type(error).__name__}: {sentence(error)}")
        self._closed.set()
        signal.signal(signal.SIGTERM, self._before)

    def _told(self, number: int, frame: Any) -> None:
        """SIGTERM while the process starts, or after its last step; in between training/stop.py hears it."""
        if self._calling is not None:  # the roll call tells the others
            raise TryAgain(f"process {self._calling.index} of {self._calling.count} on {socket.gethostname()} was told to stop (SIGTERM)")
        self._stop()

    def _stop(self) -> None:
        late = f"{hosts.name()} was told to stop (SIGTERM) after its last step; all is saved."
        hosts.leave(AGAIN, late if self._clock.steps else hosts.told_early())

    def deadline(self, phase: str) -> float:
        """How many seconds a phase may last without progress."""
        c = self._config
        if hosts.meeting():
            return c.meet_seconds + MARGIN
        if phase in WORKING and self._clock.steps:
            step = self._clock.step_seconds
            return c.stall_seconds or (max(60.0, 30.0 * step) if step is not None else c.compile_seconds)
        return getattr(c, self._key(phase))

    def _key(self, phase: str) -> str:
        """The key of config.hosts that bounds a phase."""
        if hosts.meeting():
            return "meet_seconds"
        if phase in WORKING:
            return "stall_seconds" if self._clock.steps else "compile_seconds"  # before the first step, data may be as slow
        return {"start": "start_seconds", "compile": "compile_seconds", "evaluation": "evaluation_seconds", "checkpoint": "save_seconds"}[phase]

    def silence(self, phase: str) -> float:
        """How many seconds another may give no sign of life while this process is in that phase.

        Only while it reads the text may a call hold Python's lock for long, and all have read it before any leaves the start.
        """
        return self.deadline(phase) if phase == "start" else max(10.0 * hosts.INTERVAL, self._config.stall_seconds or 60.0)

    def _deadlines(self) -> None:
        looked = time.monotonic()
        while not self._closed.wait(TICK):
            if time.monotonic() - looked > TICK + STOPPED:  # the whole process was stopped, by Ctrl-Z or a debugger, and goes on
                self.begin_anew()
            else:
                self.look()
            looked = time.monotonic()

    def look(self) -> None:
        """Leaves when the phase under way has lasted too long, or the coordination service been silent for too long."""
        phase, lasted = self._clock.now
        silent = time.monotonic() - self._heard
        if self._heard and silent > self.silence(phase):
            whose = "of this process" if hosts.first() else "in process 0"
            self._leave(f"the coordination service {whose}, by which all tell each other, has not answered for {silent:.0f} s", hosts.last_seen())
        if lasted <= self.deadline(phase):
            return
        seen = hosts.last_seen() if hosts.several() else []
        if phase in WORKING and any(host.alive and host.index != hosts.me() and host.lasted <= self.deadline(host.phase) for host in seen):
            return  # this one waits for another, which compiles, evaluates or saves in its own time, or has just come back from there
        if self._clock.now[0] == phase and self._clock.now[1] > lasted and not self._closed.is_set():
            waiting = f", waiting for {hosts.waiting()}" if hosts.waiting() else ""
            limit = f"its deadline, hosts.{self._key(phase)}, is {self.deadline(phase):.0f} s"
            self._leave(f"{hosts.name()} made no progress for {self._clock.now[1]:.0f} s (phase {phase}{waiting}; {limit})", seen)

    def begin_anew(self) -> None:
        """All deadlines, this process's and those that it sets the others, run from now on."""
        self._clock.begin_anew()
        self._heard = time.monotonic() if self._heard else 0.0
        self._signs.clear()

    def _leave(self, why: str, seen: list[hosts.Seen]) -> None:
        lines = stacks()
        lines += ["hosts last seen:", *(f"  {host.line()}" for host in seen)] if seen else []
        silent = [host.name for host in seen if not host.alive]
        culprit = f"; no sign of {', '.join(silent)} any more" if silent else ""
        lines.append(f"stalled: {why}; the last finished step is {self._clock.step:,}{culprit}; leaving with {AGAIN}, to be started again.")
        hosts.leave(AGAIN, "\n".join(lines))

    def _news(self) -> None:
        self.listen()  # at once: whoever gave no sign is taken for dead when something fails
        while not self._closed.wait(hosts.INTERVAL):
            self.listen()

    def listen(self) -> None:
        """Publishes what this process does, and leaves as soon as another has failed or, in the first, has given no sign of life for too long."""
        phase, lasted = self._clock.now
        if not hosts.publish(phase, lasted, self._clock.step):
            return
        self._heard = time.monotonic()
        failure = hosts.failure_of_another()
        if failure is not None:
            failure.follow()
        if not hosts.first():  # it holds the store, so that it looks after all the others, and they need to look only after it
            return
        for index, given in hosts.given_signs().items():
            before, since = self._signs.get(index, (-1.0, 0.0))
            if given != before:
                self._signs[index] = (given, self._heard)
            elif self._heard - since > self.silence(phase):
                self._leave(f"process {index} has given no sign of life for {self._heard - since:.0f} s", hosts.last_seen())


def stacks() -> list[str]:
    """Where each thread stands, innermost call first; not by faulthandler, which holds Python's lock while it writes, for ever where nobody reads."""
    names, lines = {thread.ident: thread.name for thread in threading.enumerate()}, []
    for number, innermost in sys._current_frames().items():
        lines.append(f"Thread 0x{number:016x} ({names.get(number, 'unknown')}):")
        frame: FrameType | None = innermost
        while frame is not None:
            lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
            frame = frame.f_back
    return lines
