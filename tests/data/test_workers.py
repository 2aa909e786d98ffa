"""The pool of processes: results in order, mistakes in a sentence, and nothing left behind however it ends."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from cdcd_jax.config import TryAgain, UserError
from cdcd_jax.data import workers

ROOT = pathlib.Path(__file__).resolve().parents[2]  # tests.forked knows it as well, but imports JAX, and so would every worker


def slow_square(number: int) -> int:
    time.sleep(0.02 if number % 3 == 0 else 0.0)
    return number * number


def who(number: int) -> tuple[int, bool]:
    from cdcd_jax.data import preparation  # noqa: F401 (whatever a worker needs)

    return os.getpid(), "jax" in sys.modules


def refuse(number: int) -> int:
    if number == 3:
        raise UserError("three is too many.")
    return number


def postpone(number: int) -> int:
    raise TryAgain("the bucket is busy.")


def break_down(number: int) -> int:
    if number == 3:
        raise ZeroDivisionError
    return number


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture(scope="module")
def run():
    with workers.pool(2) as run:
        yield run


def test_results_come_in_order(run):
    for number in (0, 1, 2, 3, 50):
        assert list(run(slow_square, range(number))) == [i * i for i in range(number)]


def test_several_processes_work_and_jax_is_in_none(run):
    found = list(run(who, range(20)))
    assert len({process for process, _ in found} - {os.getpid()}) == 2 and not any(has_jax for _, has_jax in found)


def test_one_worker_is_this_process():
    with workers.pool(1) as run:
        assert {process for process, _ in run(who, range(3))} == {os.getpid()}


@pytest.mark.parametrize(
    "function, error, said",
    [
        (refuse, UserError, "three is too many."),
        (postpone, TryAgain, "the bucket is busy."),
        (die, UserError, r"a worker process was killed \(SIGKILL\), perhaps because memory was short: what is finished is kept"),
        (break_down, RuntimeError, "a worker process failed; its error is printed above"),
    ],
)
def test_what_goes_wrong_is_raised_here(function: Callable[[int], int], error: type[Exception], said: str, capfd):
    with pytest.raises(error, match=said), workers.pool(2) as run:
        list(run(function, range(10)))
    assert ("ZeroDivisionError" in capfd.readouterr().err) == (function is break_down)


def test_one_that_is_killed_while_more_is_sent_than_it_reads_was_killed():
    """The system then tells who sends to it of a reset connection, and not of a broken pipe."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ours, theirs = workers.Pipe()
    process.kill()
    os.set_blocking(ours.fileno(), False)
    with contextlib.suppress(BlockingIOError):  # until no more can be sent
        while True:
            os.write(ours.fileno(), b"\0")
    os.set_blocking(ours.fileno(), True)
    closing = threading.Timer(0.2, theirs.close)
    closing.start()
    with process, ours, pytest.raises(UserError, match=r"a worker process was killed \(SIGKILL\)"):
        list(workers._map([workers._Worker(process, ours)], slow_square, [1]))
    closing.join()


LOOP = """
import os, sys, time
from cdcd_jax.data import workers
from tests.data.test_workers import tell
with workers.pool(2) as run:
    list(run(tell, [sys.argv[1]] * 2))
"""


def tell(folder: str) -> None:
    """Says who works, and works for long."""
    with open(os.path.join(folder, str(os.getpid())), "w"):
        pass
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        sum(range(1000))


def is_alive(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at processes through /proc")
def test_workers_end_with_the_process_that_began_them(tmp_path):
    """Even in the middle of their work, and even if it is killed."""
    process = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE)
    while len(os.listdir(tmp_path)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    _, said = process.communicate(timeout=60)
    began = time.monotonic()
    while any(is_alive(int(name)) for name in os.listdir(tmp_path)):
        assert time.monotonic() < began + 20
        time.sleep(0.01)
    assert said == b""
