"""Processes that work through a list: `with pool(2) as run: results = run(function, items)`, where `run` stands in for `map`.

Each is a fresh Python, so that nothing of this process, JAX least of all, is in it; function and items reach it pickled. It ends as soon as its
connection is closed, which happens however this process ends. Ctrl-C is this process's affair alone. There are no semaphores to be left behind.
"""

import collections
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from cdcd_jax.config import TryAgain, UserError

# What `map` is, and what does the same with several processes or machines: the results, in the order of the items.
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


class _Worker(NamedTuple):
    process: subprocess.Popen[bytes]
    connection: Connection


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def pool(number: int, own: bool = False) -> Iterator[Map]:
    """A map over so many worker processes, which are there until the block ends; a single one is this process, unless it is to be one of its own.

    Functions must be module-level, or functools.partial of such. A UserError or TryAgain of one is raised here; a UserError says that one was killed.
    """
    if number == 1 and not own:
        yield map
        return
    workers = [_start() for _ in range(number)]
    try:
        yield lambda function, items: _map(workers, function, items)
    finally:
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.process.wait()


def _start() -> _Worker:
    ours, theirs = Pipe()
    program = f"import sys; sys.path[:] = {sys.path!r}; from cdcd_jax.data import workers; workers.serve({theirs.fileno()})"
    # glibc keeps the memory that numpy frees: to have it mapped and cleared anew for each array costs as much as the work on it.
    environment = os.environ | {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    # In a session of its own the worker does not hear of Ctrl-C on the terminal.
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment, start_new_session=True
    )
    theirs.close()
    return _Worker(process, ours)


def _map(workers: list[_Worker], function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Every worker has one item at work and one to go on with. Results wait here until those before them have come."""
    waiting = enumerate(items)
    at_work: dict[Connection, collections.deque[int]] = {worker.connection: collections.deque() for worker in workers}
    done: dict[int, Any] = {}
    following = 0

    def give(connection: Connection) -> None:
        for number, item in waiting:
            # Who is dead, or died with work unread, is found out when it is asked for a result.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send((function, item))
            at_work[connection].append(number)
            return

    for _ in range(2):
        for worker in workers:
            give(worker.connection)
    while any(at_work.values()):
        for connection in wait([connection for connection, numbers in at_work.items() if numbers]):
            assert isinstance(connection, Connection)
            try:
                told, result = connection.recv()
            except (EOFError, ConnectionResetError) as error:
                raise _death(next(worker.process for worker in workers if worker.connection is connection)) from error
            if told is not None:
                raise told
            done[at_work[connection].popleft()] = result
            give(connection)
        while following in done:
            yield done.pop(following)
            following += 1


def _death(process: subprocess.Popen[bytes]) -> Exception:
    code = process.wait()
    if code >= 0:
        return RuntimeError("a worker process failed; its error is printed above")
    return UserError(
        f"a worker process was killed ({signal.Signals(-code).name}), perhaps because memory was short: what is finished is kept, so give the same "
        "command again, with fewer --workers if it is killed again."
    )


def serve(descriptor: int) -> None:
    """What a worker does: calls functions until the connection is closed. An error that is not for the user to read ends it, with its traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, tasks), daemon=True).start()
    while True:
        function, item = tasks.get()
        try:
            answer: tuple[Exception | None, Any] = (None, function(item))
        except (UserError, TryAgain) as error:
            answer = (error, None)
        try:
            connection.send(answer)
        except OSError:  # nobody is there any more
            return


def _listen(connection: Connection, tasks: queue.SimpleQueue[Any]) -> None:
    """A thread, so that a worker in the middle of its work ends as well."""
    code = 1  # what came cannot be read: the other side must hear that nobody works at it
    try:
        while True:
            tasks.put(connection.recv())
    except (EOFError, OSError):
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)
