"""The processes of one job: how they meet, give signs of life, tell each other of a failure, and leave. What they decide alike is in agreement.py.

Everything here does nothing, or is about one process, where no launcher says that there are several. What they tell each other goes through the
key-value store of JAX's coordination service, which lives in process 0.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the coordination service's client has no public name yet

from cdcd_jax.config import AGAIN, HostsConfig, sentence
from cdcd_jax.parallel.job import Job
from cdcd_jax.parallel.rollcall import reachable

INTERVAL = 1.0  # seconds between two signs of life
WRITE_SECONDS = 2.0  # how long a process that leaves waits for whoever reads its last lines

_joined = False  # whether the processes have met
_waiting = ""  # what this process waits for while it meets the others
_final: int | None = None  # the exit code, once the job has ended well
_leaving = threading.Lock()  # held by the first thread that ends the process
_leaver: tuple[int, int, str] | None = None  # that thread, the code, the last lines
_abort_handler: Any = None  # a reference, or Python would collect what C calls


@dataclasses.dataclass(frozen=True)
class Failure:
    """What a process said before it left."""

    name: str
    code: int
    sentence: str

    def follow(self) -> NoReturn:
        """Ends this process as that one ended."""
        leave(self.code, f"{self.name} left with {self.code}, and said: {self.sentence}", tell=False)


@dataclasses.dataclass(frozen=True)
class Seen:
    """The last sign of life of a process."""

    index: int
    name: str
    phase: str
    lasted: float  # seconds in that phase
    step: int
    alive: bool  # whether it gave another sign just now

    def line(self) -> str:
        """For the log."""
        return f"{self.name}: {'alive' if self.alive else 'SILENT'}, {self.phase} for {self.lasted:.0f} s, last finished step {self.step:,}"


def _client() -> Any:
    return distributed.global_state.client


def several() -> bool:
    """Whether this process is one of several."""
    return _joined


def me() -> int:
    """Which of the processes this one is."""
    return distributed.global_state.process_id


def name() -> str:
    """How this process is called in the log."""
    return _called(me(), socket.gethostname()) if several() else "this process"


def _called(index: int, host: str) -> str:
    return f"process {index} of {distributed.global_state.num_processes} on {host}"


def told_early() -> str:
    """What a process says that is told to stop while it starts."""
    return f"{name()} was told to stop (SIGTERM) before its first step; there was nothing to save."


def meeting() -> bool:
    """Whether this process still waits for the others to come."""
    return bool(_waiting) and not _joined


def waiting() -> str:
    """What this process waits for outside of JAX; empty when for nothing."""
    return _waiting


def wait_for(what: str) -> None:
    """Says what this process waits for from here on; "" for nothing."""
    global _waiting
    _waiting = what


def join(job: Job, config: HostsConfig) -> None:
    """Starts or reaches JAX's coordination service, once all have answered the roll call; before the first use of a device."""
    global _joined
    wait_for(f"JAX's coordination service at {job.address}")
    _leave_when_aborted(job)
    # Deaths are noticed and told here, not by JAX, which would end the others with an abort and no word of who is to blame.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)
    patience = int(config.meet_seconds) + 60  # the watch's deadline comes first
    method = "deactivate" if job.detected else None  # where a launcher names the processes, the platform may still say which devices are whose
    try:
        jax.distributed.initialize(
            job.address, job.count, job.index, job.local_device_ids, method, initialization_timeout=patience,
            heartbeat_timeout_seconds=3600, shutdown_timeout_seconds=60,
        )  # fmt: skip
    except RuntimeError as error:  # another program took the port in the very moment, say
        leave(AGAIN, f"the processes cannot meet at {job.address} ({sentence(error)[:200]}); leaving with {AGAIN}, to be started again.")
    _joined = True


def _leave_when_aborted(job: Job) -> None:
    """JAX's client aborts the process when the coordination service is gone, and XLA for reasons of its own: the code for both is 75 here."""
    global _abort_handler

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(_: int) -> None:
        if _final is not None:
            _exit(_final)
        service_is_gone = job.index > 0 and not reachable(job.address)
        if service_is_gone:
            said = f"process 0, the coordinator at {job.address}, is gone or does not answer"
        else:
            said = f"process {job.index} of {job.count} on {socket.gethostname()} was aborted from within (SIGABRT; the lines above may say why)"
        leave(AGAIN, f"{said}; leaving with {AGAIN}, to be started again.", tell=not service_is_gone)

    _abort_handler = handler
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal(int(signal.SIGABRT), handler)


def first() -> bool:
    """Whether this is the process that writes for all of them; known before any device is used."""
    return not several() or me() == 0


def publish(phase: str, lasted: float, step: int) -> bool:
    """A sign of life, with what this process is doing. False when nobody took it: an abort follows then, which says so."""
    sign = {"host": socket.gethostname(), "phase": phase, "lasted": lasted, "step": step, "time": time.time()}
    try:
        _client().key_value_set(f"cdcd/seen/{me()}", json.dumps(sign), allow_overwrite=True)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def failure_of_another() -> Failure | None:
    """What another process said when it failed, if one did."""
    try:
        told = _client().key_value_dir_get("cdcd/failed/")
    except jax.errors.JaxRuntimeError:
        return None
    others = [text for key, text in told if key.rpartition("/")[2] != str(me())]
    return Failure(**json.loads(others[0])) if others else None


def last_seen() -> list[Seen]:
    """All processes' last signs of life; takes a little more than two intervals, to see who gives another.

    Whoever asks is alive, though its own signs may have come to nobody.
    """
    before = signs()
    if before is not None:
        time.sleep(2.2 * INTERVAL)
    after = signs()
    if before is None or after is None:
        return [] if first() else [Seen(0, "process 0 (the coordinator, which does not answer)", "unknown", 0.0, 0, False)]
    found = []
    for index in range(distributed.global_state.num_processes):
        sign = after.get(str(index))
        if sign is None:
            found.append(Seen(index, f"process {index}, which gave none yet", "start", 0.0, 0, index == me()))
        else:
            alive = index == me() or before.get(str(index)) != sign
            found.append(Seen(index, _called(index, sign["host"]), sign["phase"], sign["lasted"], sign["step"], alive))
    return found


def signs() -> dict[str, Any] | None:
    """What each process published last; None when the coordinator does not answer. In a thread of its own, because the call knows no deadline."""
    found: list[dict[str, Any]] = []

    def ask() -> None:
        try:
            found.append({key.rpartition("/")[2]: json.loads(value) for key, value in _client().key_value_dir_get("cdcd/seen/")})
        except jax.errors.JaxRuntimeError:
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(3.0 * INTERVAL)
    return found[0] if found else None


def given_signs() -> dict[int, float]:
    """When each of the other processes gave its last sign of life, by its own clock; 0 where it gave none. Empty when nobody can say."""
    found = signs()
    others = () if found is None else (index for index in range(distributed.global_state.num_processes) if index != me())
    return {index: found[str(index)]["time"] if found and str(index) in found else 0.0 for index in others}


def depart(code: int) -> int:
    """The end of a job, when all processes have come to it: returns the code where this one is alone; of several each ends with its code."""
    global _final
    if not several():
        return code
    _final = code
    if me() == 0:
        time.sleep(INTERVAL)  # the others lose the coordination service with this process
    _exit(code)


def _exit(code: int, text: str = "") -> NoReturn:
    """Ends the process with some last lines on stderr, but without JAX's own farewell, which waits for hosts that may be gone."""
    _write("", sys.stdout)
    _write(text, sys.stderr)
    os._exit(code)


def _write(text: str, stream: Any) -> None:
    """Writes lines, and what was written there before, for as long as somebody reads them: nobody may, and the pipe be full or broken."""

    def write() -> None:
        with contextlib.suppress(OSError, ValueError):
            print(text, end="\n" if text else "", file=stream, flush=True)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(WRITE_SECONDS)


def leave(code: int, text: str, tell: bool = True) -> NoReturn:
    """Ends this process at once, from any thread, with a last line on stderr; the others are told first and leave with the same code."""
    global _leaver
    if _final is not None:
        _exit(_final)
    if not _leaving.acquire(blocking=False):
        if _leaver is not None and _leaver[0] == threading.get_ident():  # a signal's handler, in the midst of the lines below
            _exit(*_leaver[1:])
        threading.Event().wait()  # another thread of this process is at it, with a better reason
    _leaver = (threading.get_ident(), code, text)
    if not tell and several() and first():
        time.sleep(2.0 * INTERVAL)  # the others must hear of it as well, and the store goes with this process
    if tell and several():
        told = threading.Thread(target=_tell, args=(code, text), daemon=True)
        told.start()
        told.join(2.0 * INTERVAL)
    _exit(code, text)


def _tell(code: int, text: str) -> None:
    last = text.rstrip().rpartition("\n")[2].removeprefix("error: ")
    try:
        _client().key_value_set(f"cdcd/failed/{me()}", json.dumps({"name": name(), "code": code, "sentence": last}), allow_overwrite=True)
    except jax.errors.JaxRuntimeError:
        return  # nobody to tell
    if me() == 0:
        time.sleep(1.8 * INTERVAL)  # the store goes with this process
