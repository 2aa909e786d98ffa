"""One trainer to a workdir (docs/DESIGN.md, 10)."""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data import files
from cdcd_jax.training.progress import console

BEAT = 15.0  # seconds between two signs of life in a bucket
STALE = 60.0  # seconds without one, after which its trainer counts as dead
LOOK = 2.0  # seconds between two looks at a lock that may be stale


@contextlib.contextmanager
def locked(workdir: epath.Path) -> Iterator[Callable[[], None]]:
    """Keeps a second trainer out of the workdir while the block runs. Of many hosts one takes the lock, for all of them.

    Yields a function to call before a checkpoint is saved: it raises UserError if the lock has been lost to another trainer. Raises UserError if
    another process trains there.

    On disk the system keeps the lock, and lets go when the process dies, however it dies; the file only names the last holder.

    A bucket knows no locks. There the trainer creates the object `lock`, which only one of several can (where the store honours such conditions), and
    changes it every BEAT seconds as a sign of life. Who finds it asks this machine, if its process was one of this machine's: after a kill -9 the
    lock is taken over at once. Otherwise it is taken over once it has stood unchanged for STALE seconds, by the finder's own clock: after a crash
    elsewhere a start waits that long. The limits: a trainer that was stopped, or cut off from the bucket, for longer than STALE seconds loses the
    lock and learns of it at its next beat or check, so for BEAT seconds at most, or while a save ends that had begun, two may write.
    """
    if files.in_bucket(workdir):
        lease = _Lease(workdir)
        lease.take()
        try:
            yield lease.check
        finally:
            lease.release()
        return
    path = workdir / "lock"
    with path.open("a") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _taken(_parse(path.read_bytes()), workdir) from error
        with contextlib.suppress(OSError):  # a full disk takes no name; the lock holds without
            file.truncate(0)
            file.write(json.dumps(_me()))
            file.flush()
        yield lambda: None


class _Lease:
    """The lock object of a workdir in a bucket."""

    def __init__(self, workdir: epath.Path):
        self.workdir, self.path = workdir, workdir / "lock"
        self.me = _me()
        self.beats, self.lost, self.done = 0, False, threading.Event()
        self.thread = threading.Thread(target=self._live, name="lock", daemon=True)

    def take(self) -> None:
        """Returns when the lock is held; waits for a stale one."""
        seen, since = b"", 0.0
        with files.writing(self.path):
            while True:
                there = self._read()
                if there is None:
                    if self._create() and self._mine():
                        self.thread.start()
                        return
                    continue
                holder = _parse(there)
                lives = True if seen and there != seen else _lives(holder)
                if lives:
                    raise _taken(holder, self.workdir)
                if lives is None and not seen:
                    console.print(f"{self.path} is there: waiting up to {STALE:.0f} s to see whether its trainer lives.", soft_wrap=True)
                    seen, since = there, time.monotonic()
                if lives is False or time.monotonic() - since > STALE:
                    self.path.unlink(missing_ok=True)
                    seen = b""
                else:
                    time.sleep(LOOK)

    def check(self) -> None:
        """Raises UserError if another trainer has taken the lock over."""
        if not self.lost:
            with contextlib.suppress(*files.failures()):  # what cannot be asked just now is not lost
                self.lost = not self._mine()
        if self.lost:
            raise UserError(f"another trainer has taken over {self.workdir} while this one gave no sign of life: nothing more is saved here.")

    def release(self) -> None:
        """Ends the signs of life and gives the lock back."""
        self.done.set()
        self.thread.join()
        with contextlib.suppress(*files.failures()):  # what stays is the lock of a process that has ended
            if self._mine():
                self.path.unlink(missing_ok=True)

    def _live(self) -> None:
        while not self.lost and not self.done.wait(BEAT):
            with contextlib.suppress(*files.failures()):  # the next beat tries again
                self.lost = not self._mine()
                if not self.lost:
                    self.path.write_bytes(self._content())

    def _content(self) -> bytes:
        self.beats += 1
        return json.dumps(self.me | {"beats": self.beats}).encode()

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def _mine(self) -> bool:
        holder = _parse(self._read() or b"")
        return holder is not None and holder["token"] == self.me["token"]

    def _create(self) -> bool:
        """Whether the lock was made; not if somebody else has made it."""
        try:
            fsspec.core.url_to_fs(str(self.path))[0].pipe_file(str(self.path), self._content(), mode="create")
        except FileExistsError:
            return False
        return True


def _me() -> dict[str, Any]:
    """What this process writes into a lock: who it is, and since when it trains."""
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    here = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid())}
    return {"token": secrets.token_hex(8), "since": now} | here


def _taken(holder: dict[str, Any] | None, workdir: epath.Path) -> UserError:
    who = f"process {holder['pid']} of {holder['host']}" if holder else "another process"
    since = f" since {holder['since']}" if holder else ""
    return UserError(f"{who} has been training in {workdir}{since}: stop it, or name another --workdir.")


def _parse(content: bytes) -> dict[str, Any] | None:
    """What a lock says; None for what no trainer wrote."""
    try:
        holder = json.loads(content)
        return holder if {"token", "since", "host", "machine", "pid", "born"} <= set(holder) else None
    except (TypeError, ValueError):
        return None


def _lives(holder: dict[str, Any] | None) -> bool | None:
    """Whether the process that wrote a lock lives; None where this machine cannot tell."""
    if holder is None or holder["machine"] != _machine():
        return None
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return _born(holder["pid"]) in (holder["born"], "unknown")


def _machine() -> str:
    """This machine since it was started, and in it the set of processes that this one can see: where a process id means something."""
    if sys.platform != "linux":
        return socket.gethostname()
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def _born(pid: int) -> str:
    """When a process of this machine began, in the kernel's ticks, for ids are used again; "ended" for a zombie; "unknown" where this is not said."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "unknown"
    return "ended" if fields[0] in "ZX" else fields[19]
