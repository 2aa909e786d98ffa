"""The roll call: all processes call at the coordinator's address before JAX starts its service there, so that whoever does not come is named.

JAX's own meeting says only that it lasted too long. Here the first process listens until all have called, says every second who is missing, and then
leaves the port to JAX. Whoever has waited too long, or hears that the first has, leaves to be started again, since the next time all may come.
"""

import collections
import contextlib
import dataclasses
import errno
import json
import math
import os
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from cdcd_jax.config import TryAgain, UserError
from cdcd_jax.parallel.job import Job

TICK = 1.0  # seconds between two words of the first process
DEAF = 5.0  # seconds without an answer after which the other side counts as gone
PORT_SECONDS = 10.0  # how long the first process waits for a port that the life before still holds
LONGEST = 4096  # bytes of a line


@dataclasses.dataclass
class Caller:
    """A connection to the first process; what it is for is known when it has said so."""

    connection: socket.socket
    text: bytes = b""  # what came after the last whole line
    index: int = 0
    count: int = 0
    host: str = ""
    life: str = ""  # the same only in two calls of one process
    called: float = 0.0
    heard: float = 0.0  # when it answered last
    over: str = ""  # why it has given up


def call(job: Job, seconds: float) -> None:
    """Returns when all processes of the job are there, and JAX's service may start (in the first) or can be reached (from the others).

    Raises TryAgain, which names the missing, when that takes longer than `seconds`, and UserError when two processes contradict each other.
    """
    if job.index == 0:
        _gather(job, seconds)
    else:
        _report(job, seconds)


def _gather(job: Job, seconds: float) -> None:
    """The first process: listens until all others have called."""
    end = time.monotonic() + seconds
    callers: list[Caller] = []
    last_word: dict[str, Any] = {"over": f"process 0 of {job.count} on {socket.gethostname()} has ended while the others came"}
    server = _listen(job.address)
    try:
        said, asked = 0.0, math.inf  # when the missing were named last, and when all were there and asked once more
        with selectors.DefaultSelector() as selector:
            server.setblocking(False)
            selector.register(server, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                if wrong := contradiction(callers, job):
                    raise UserError(wrong)
                missing = absent(callers, job.count, now)
                if missing:
                    asked = math.inf
                elif asked == math.inf:  # some may have given up on a slow answer, and be about to call again
                    asked = now
                    for caller in callers:
                        _say(caller, {"missing": ""})
                elif all(caller.heard > asked for caller in callers if caller.index and now - caller.heard < DEAF):
                    break
                given_up = next((caller.over for caller in callers if caller.over), "")
                if given_up or now > end:
                    raise TryAgain(given_up or _late(words(missing, job.count), job, seconds))
                if missing and now - said > TICK:
                    said = now
                    for caller in callers:
                        _say(caller, {"missing": words(missing, job.count)})
                for key, _ in selector.select(max(0.01, min(said + TICK, end) - now)):
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError, ConnectionError):  # whoever knocked is gone again
                            caller = Caller(server.accept()[0])
                            caller.connection.setblocking(False)
                            callers.append(caller)
                            selector.register(caller.connection, selectors.EVENT_READ, caller)
                    elif not _hear(key.data):
                        selector.unregister(key.data.connection)
                        callers.remove(key.data)
                        key.data.connection.close()
        last_word = {"come": True}
    except (TryAgain, UserError) as error:
        last_word = {"over": str(error)} | ({"mistake": True} if isinstance(error, UserError) else {})
        raise
    finally:
        server.close()  # before the word to come: whoever reaches the port after it reaches JAX
        _part(callers, last_word)


def _listen(address: str) -> socket.socket:
    """Listens where JAX's service will."""
    bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or f"[::]:{address.rpartition(':')[2]}"
    if not bound.rpartition(":")[2].isdigit():
        raise UserError(f"JAX_COORDINATOR_BIND_ADDRESS={bound} must be host:port.")
    host, port = _split(bound)
    everywhere = host in ("", "::")
    both = everywhere and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or (":" in host and not everywhere) else socket.AF_INET
    end = time.monotonic() + PORT_SECONDS
    while True:
        try:
            return socket.create_server(("" if everywhere else host, port), family=family, backlog=4096, dualstack_ipv6=both)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"process 0 cannot listen at {bound} as the coordinator at {address} ({reason}): name another port.") from error
            if time.monotonic() > end:
                raise TryAgain(f"process 0 cannot coordinate at {address}: another process holds port {port}") from error
        time.sleep(0.2)


def absent(callers: list[Caller], count: int, now: float) -> list[int]:
    """Who has not called, or answers no more, and who has called twice as long as it is not known which call counts."""
    there = collections.Counter(caller.index for caller in callers if now - caller.heard < DEAF)
    return [index for index in range(1, count) if there[index] != 1]


def contradiction(callers: list[Caller], job: Job) -> str:
    """What is wrong when processes disagree on how many they are, or two take themselves for the same; "" when nothing is.

    A call that was cut off can look alive for a while: two processes there are only when both have answered after the later call.
    """
    before: dict[int, Caller] = {}
    for caller in callers:  # in the order in which they came
        if not caller.index:
            continue
        if caller.count != job.count:
            return (
                f"process {caller.index} on {caller.host} counts {caller.count} processes, but process 0 on {socket.gethostname()} {job.count}: "
                "JAX_NUM_PROCESSES must be the same for all."
            )
        other = before.setdefault(caller.index, caller)
        if other.life != caller.life and min(other.heard, caller.heard) > caller.called:
            return (
                f"two processes, on {other.host} and {caller.host}, have called at {job.address} as process {caller.index}: "
                "give each process a JAX_PROCESS_ID of its own, and each job an address of its own."
            )
    return ""


def words(indices: list[int], count: int) -> str:
    """Some of the processes, as in a sentence; of many the first few."""
    shown = [str(index) for index in indices[:8]] + ([f"{len(indices) - 8} more"] if len(indices) > 8 else [])
    if len(shown) == 1:
        return f"process {shown[0]} of {count}"
    return f"processes {', '.join(shown[:-1])} and {shown[-1]} of {count}"


def _hear(caller: Caller) -> bool:
    """Reads what a caller sent; False when it is gone, or is none of our processes."""
    try:
        received = caller.connection.recv(LONGEST)
    except BlockingIOError:
        return True
    except OSError:
        return False
    *lines, caller.text = (caller.text + received).split(b"\n")
    if not received or len(caller.text) > LONGEST:
        return False
    for line in lines:
        caller.heard = time.monotonic()
        try:
            said = json.loads(line)
            if caller.index:
                caller.over = str(said["over"]) if said else ""
                continue
            index, count, host, life = int(said["process"]), int(said["of"]), str(said["host"]), str(said["life"])
        except (ValueError, KeyError, TypeError):
            return False
        if not 0 < index < count:
            return False
        caller.index, caller.count, caller.host, caller.life, caller.called = index, count, host, life, caller.heard
    return True


def _say(caller: Caller, word: dict[str, Any]) -> None:
    """Nothing where nobody listens any more, which the next reading shows."""
    with contextlib.suppress(OSError):
        caller.connection.send(_line(word))


def _part(callers: list[Caller], word: dict[str, Any]) -> None:
    """Says the last word and waits until the others have read it: to close what was not read to its end would destroy it."""
    for caller in callers:
        _say(caller, word)
    end = time.monotonic() + 2.0
    for caller in callers:
        with caller.connection, contextlib.suppress(OSError):
            caller.connection.settimeout(max(0.01, end - time.monotonic()))
            while caller.index and caller.connection.recv(LONGEST):
                pass


def _report(job: Job, seconds: float) -> None:
    """The other processes: call the first, and wait for its word that all have come."""
    end = time.monotonic() + seconds
    reason = "no answer"
    hello = {"process": job.index, "of": job.count, "host": socket.gethostname(), "life": f"{os.getpid()} {time.time()}"}
    while time.monotonic() < end:
        try:
            word = _converse(job, hello, end, seconds)
            if "over" in word:
                raise (UserError if "mistake" in word else TryAgain)(word["over"])
            if "come" in word:
                return _reach(job.address)
            reason = "what answers there does not speak as process 0 does"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    raise TryAgain(
        f"process 0 of {job.count}, the coordinator at {job.address}, did not answer for {seconds:.0f} s (hosts.meet_seconds; {reason}): "
        "start it there, or correct the address"
    )


def _converse(job: Job, hello: dict[str, Any], end: float, seconds: float) -> dict[str, Any]:
    """One call; returns the last word of the first process, or {} where the call breaks off. Who gives up meanwhile tells the first, and so all."""
    missing, left = "", max(0.1, end - time.monotonic())
    with socket.create_connection(_split(job.address), timeout=min(DEAF, left)) as connection, connection.makefile("rb") as stream:
        connection.sendall(_line(hello))
        try:
            for word in _words_from(connection, stream, end):
                if "missing" not in word:
                    return word
                missing = str(word["missing"])
                connection.sendall(_line({}))
            if missing and time.monotonic() >= end:
                raise TryAgain(_late(missing, job, seconds))
        except TryAgain as error:
            with contextlib.suppress(OSError):
                connection.sendall(_line({"over": str(error)}))
            raise
    return {}


def _words_from(connection: socket.socket, stream: BinaryIO, end: float) -> Iterator[dict[str, Any]]:
    """What the first process says; ends when it falls silent, says what is none of its words, or the time is over."""
    while (left := end - time.monotonic()) > 0:
        connection.settimeout(min(DEAF, left))
        try:
            word = json.loads(stream.readline(LONGEST))
        except (ValueError, TimeoutError):
            return
        if not isinstance(word, dict) or not {"missing", "over", "come"} & word.keys():
            return
        yield word


def _late(missing: str, job: Job, seconds: float) -> str:
    return f"{missing} did not come to {job.address} within {seconds:.0f} s (hosts.meet_seconds)"


def _line(word: dict[str, Any]) -> bytes:
    return json.dumps(word).encode() + b"\n"


def _reach(address: str) -> None:
    """Waits for JAX's service, for a while: JAX itself would wait a whole second after a first attempt that comes too early."""
    end = time.monotonic() + DEAF
    while not reachable(address) and time.monotonic() < end:
        time.sleep(0.05)


def reachable(address: str) -> bool:
    """Whether anything listens there."""
    try:
        socket.create_connection(_split(address), timeout=2.0).close()
    except OSError:
        return False
    return True


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
