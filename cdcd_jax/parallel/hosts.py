"""The processes of one job: how they meet, give signs of life, tell each other of a failure, and leave. What they decide alike is in agreement.py.

Everything here does nothing, or is about one process, where no launcher says that there are several. What they tell each other goes through the
key-value store of JAX's coordination service, which lives in process 0.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, NamedTuple, NoReturn

import jax
from jax._src import distributed, hardware_utils  # the coordination service's client, and a count of TPUs, have no public names yet

from cdcd_jax.config import AGAIN, HostsConfig, UserError, sentence

INTERVAL = 1.0  # seconds between two signs of life
LISTEN = "CDCD_MULTIHOST"  # 1: let JAX find out from the platform (TPU pods, GKE, SLURM, MPI) who the processes are
EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # or these say so: host:port, N, 0 .. N - 1
# mallopt's numbers in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8

_joined = False  # whether the processes have met
_waiting = ""  # what this process waits for while it meets the others
_final: int | None = None  # the exit code, once the job has ended well
_leaving = threading.Lock()  # held by the first thread that ends the process
_abort_handler: Any = None  # a reference, or Python would collect what C calls


class Failure(NamedTuple):
    """What a process said before it left."""

    name: str
    code: int
    sentence: str

    def follow(self) -> NoReturn:
        """Ends this process as that one ended."""
        leave(self.code, f"{self.name} failed, and said: {self.sentence}", tell=False)


class Seen(NamedTuple):
    """The last sign of life of a process."""

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


def _index() -> int:
    return distributed.global_state.process_id


def name() -> str:
    """How this process is called in the log."""
    return _called(_index(), socket.gethostname()) if several() else "this process"


def _called(index: int, host: str) -> str:
    return f"process {index} of {distributed.global_state.num_processes} on {host}"


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


def join(config: HostsConfig) -> None:
    """Meets the other processes, if a launcher says that there are any; before the first use of a device.

    Raises UserError for settings that make no sense, and when the coordinator's address answers nobody within hosts.meet_seconds.
    """
    global _joined
    _watch_gpus(config)
    arguments = told()
    if os.environ.get(LISTEN) != "1" and not arguments:
        return
    if arguments:
        if arguments["num_processes"] == 1:
            return
        wait_for(f"the coordinator at {arguments['coordinator_address']} (process 0)")
        if arguments["process_id"] != 0:
            knock(arguments["coordinator_address"], 0.9 * config.meet_seconds)  # before the watch's deadline
        wait_for(f"all {arguments['num_processes']} processes to meet at {arguments['coordinator_address']}")
    _leave_when_aborted(arguments.get("coordinator_address", "the coordinator's address"))
    # Deaths are noticed and told here, not by JAX, which would end the others with an abort and no word of who is to blame.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)
    patience = int(config.meet_seconds) + 60  # the watch's deadline comes first
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=patience, heartbeat_timeout_seconds=3600, shutdown_timeout_seconds=60)
    except RuntimeError as error:  # a port that the life before still holds, say
        place = arguments.get("coordinator_address", "their coordinator")
        leave(AGAIN, f"the processes cannot meet at {place} ({sentence(error)[:200]}); leaving with {AGAIN}, to be started again.")
    except ValueError as error:
        raise UserError(f"{LISTEN}=1, but JAX finds no job here that it knows ({sentence(error)}): set {', '.join(EXPLICIT)} instead.") from error
    wait_for("")
    _joined = True


def told() -> dict[str, Any]:
    """What a launcher says in EXPLICIT, as arguments of jax.distributed.initialize; {} if nothing. Raises UserError for what makes no sense."""
    given = {name: os.environ[name] for name in EXPLICIT if os.environ.get(name)}
    if not given:
        return {}
    if len(given) < len(EXPLICIT):
        missing = " and ".join(name for name in EXPLICIT if name not in given)
        raise UserError(f"{' and '.join(given)} is set, but not {missing}: set all three, or none of them.")
    address, number, index = (given[name] for name in EXPLICIT)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{EXPLICIT[0]}={address} must be host:port.")
    if not number.isdigit() or int(number) < 1 or not index.isdigit() or int(index) >= int(number):
        raise UserError(f"{EXPLICIT[2]}={index} must be a number from 0 to {EXPLICIT[1]} - 1, and {EXPLICIT[1]}={number} at least 1.")
    return {"coordinator_address": address, "num_processes": int(number), "process_id": int(index)}


def knock(address: str, seconds: float) -> None:
    """Returns when something listens at the address. Raises UserError when nothing does for so long."""
    host, _, port = address.rpartition(":")
    end, reason = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, int(port)), timeout=max(0.1, min(5.0, end - time.monotonic()))):
                return
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
    raise UserError(
        f"the coordinator at {address} did not answer for {seconds:.1f} s ({reason}): start process 0 there, or mend {EXPLICIT[0]}; "
        "hosts.meet_seconds is how long to wait."
    )


def _leave_when_aborted(address: str) -> None:
    """JAX's client aborts the process when the coordination service is gone: the code for that is 75 here, and the last line says who is."""
    global _abort_handler

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(_: int) -> None:
        if _final is not None:
            _exit(_final)
        leave(AGAIN, f"process 0, the coordinator at {address}, is gone or does not answer; leaving with {AGAIN}, to be started again.", tell=False)

    _abort_handler = handler
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal(int(signal.SIGABRT), handler)


def _watch_gpus(config: HostsConfig) -> None:
    """On GPUs XLA has a watchdog of its own; the user's setting comes first."""
    set_by_user = "--xla_gpu_execution_terminate_timeout" in os.environ.get("XLA_FLAGS", "")
    if any(entry.name.startswith(("cuda", "xla_cuda", "rocm")) for entry in entry_points(group="jax_plugins")) and not set_by_user:
        seconds = int(max(config.compile_seconds, config.stall_seconds))
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_execution_terminate_timeout={seconds}s".strip()


def first() -> bool:
    """Whether this is the process that writes for all of them; known before any device is used."""
    return not several() or _index() == 0


def publish(phase: str, lasted: float, step: int) -> bool:
    """A sign of life, with what this process is doing. False when nobody took it: an abort follows then, which says so."""
    sign = {"host": socket.gethostname(), "phase": phase, "lasted": lasted, "step": step, "time": time.time()}
    try:
        _client().key_value_set(f"cdcd/seen/{_index()}", json.dumps(sign), allow_overwrite=True)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def failure_of_another() -> Failure | None:
    """What another process said when it failed, if one did."""
    try:
        told = _client().key_value_dir_get("cdcd/failed/")
    except jax.errors.JaxRuntimeError:
        return None
    others = [text for key, text in told if key.rpartition("/")[2] != str(_index())]
    return Failure(**json.loads(others[0])) if others else None


def last_seen() -> list[Seen]:
    """All processes' last signs of life; takes a little more than two intervals, to see who gives another."""
    before = signs()
    if before is not None:
        time.sleep(2.2 * INTERVAL)
    after = signs()
    if before is None or after is None:
        return [Seen("process 0 (the coordinator, which does not answer)", "unknown", 0.0, 0, False)]
    never = [index for index in range(distributed.global_state.num_processes) if str(index) not in after]
    return [Seen(f"process {index}, which gave none yet", "start", 0.0, 0, False) for index in never] + [
        Seen(_called(int(index), sign["host"]), sign["phase"], sign["lasted"], sign["step"], before.get(index, {}).get("time") != sign["time"])
        for index, sign in sorted(after.items(), key=lambda item: int(item[0]))
    ]


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


def depart(code: int) -> int:
    """The end of a job, when all processes have come to it: returns the code where this one is alone; of several each ends with its code."""
    global _final
    if not several():
        return code
    _final = code
    if _index() == 0:
        time.sleep(INTERVAL)  # the others lose the coordination service with this process
    _exit(code)


def _exit(code: int) -> NoReturn:
    """Ends the process without JAX's own farewell, which waits for hosts that may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave(code: int, text: str, tell: bool = True) -> NoReturn:
    """Ends this process at once, from any thread, with a last line on stderr; the others are told first and leave with the same code."""
    if not _leaving.acquire(blocking=False):
        threading.Event().wait()  # another thread of this process is at it, with a better reason
    if not tell and several() and first():
        time.sleep(2.0 * INTERVAL)  # the others must hear of it as well, and the store goes with this process
    if tell and several():
        told = threading.Thread(target=_tell, args=(code, text), daemon=True)
        told.start()
        told.join(2.0 * INTERVAL)
    print(text, file=sys.stderr)
    _exit(code)


def _tell(code: int, text: str) -> None:
    last = text.rstrip().rpartition("\n")[2].removeprefix("error: ")
    try:
        _client().key_value_set(f"cdcd/failed/{_index()}", json.dumps({"name": name(), "code": code, "sentence": last}), allow_overwrite=True)
    except jax.errors.JaxRuntimeError:
        return  # nobody to tell
    if _index() == 0:
        time.sleep(1.8 * INTERVAL)  # the store goes with this process


def leave_out_absent_tpu() -> None:
    """Lets JAX use the CPU where libtpu is installed, to plan with, but no TPU is there: it would look for one, and complain of what it finds.

    Does nothing where the user said what to use, or where a GPU may be there. Call it before the backend starts.
    """
    chosen = jax.config.jax_platforms or entry_points(group="jax_plugins")  # type: ignore[attr-defined]
    if chosen or find_spec("libtpu") is None or hardware_utils.has_visible_nvidia_gpu():
        return
    if hardware_utils.num_available_tpu_chips_and_device_id()[0] == 0:
        jax.config.update("jax_platforms", "cpu")


def keep_freed_memory() -> None:
    """On Linux with glibc, where JAX will run on the CPU: lets the allocator keep what it frees instead of giving it back to the kernel.

    XLA's CPU client allocates its temporary buffers anew in every call, and by default each is mapped, faulted in and unmapped again; keeping them
    makes a train step of the demo 1.3 to 2 times faster (docs/RESULTS.md). Elsewhere this does nothing. Call it before the backend starts.
    """
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    accelerator = platforms != "cpu" if platforms else bool(entry_points(group="jax_plugins")) or find_spec("libtpu") is not None
    if accelerator or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_ARENA_MAX, 1)
