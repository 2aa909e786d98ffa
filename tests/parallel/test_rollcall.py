"""Whether all processes come, and what they are told when not: with real sockets, one thread for each process."""

import json
import os
import pathlib
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import portpicker
import pytest

from cdcd_jax.config import TryAgain, UserError
from cdcd_jax.parallel import rollcall
from cdcd_jax.parallel.job import EXPLICIT, Job
from cdcd_jax.parallel.rollcall import words
from tests import forked

HERE = socket.gethostname()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollcall, "TICK", 0.05)
    monkeypatch.setattr(rollcall, "DEAF", 0.5)
    monkeypatch.setattr(rollcall, "PORT_SECONDS", 0.3)


@pytest.fixture
def port() -> int:
    return portpicker.pick_unused_port()


def come(port: int, job: Job, after: float, seconds: float) -> str:
    """What the roll call tells one process: "" when all have come."""
    time.sleep(after)
    try:
        rollcall.call(job, seconds)
    except (UserError, TryAgain) as error:
        return f"{type(error).__name__}: {error}"
    if job.index == 0:
        with socket.create_server(("", port)):  # JAX's service would be there
            time.sleep(0.3)
    return ""


def meet(port: int, count: int, *processes: tuple[int, float, float]) -> list[str]:
    """What each process is told; processes are (index, seconds until it comes, seconds that it waits)."""
    with ThreadPoolExecutor() as pool:
        begun = [pool.submit(come, port, Job(f"localhost:{port}", count, index), after, seconds) for index, after, seconds in processes]
        return [process.result() for process in begun]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_all_come_in_any_order(port: int, order: tuple[int, ...]) -> None:
    began = time.monotonic()
    assert meet(port, 3, *((index, 0.1 * place, 9.0) for place, index in enumerate(order))) == ["", "", ""]
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize(
    "count, processes, said",
    [
        (3, [(0, 0.0, 0.4), (1, 0.0, 9.0)], "TryAgain: process 2 of 3 did not come to localhost:{port} within 0 s (hosts.meet_seconds)"),
        (3, [(0, 0.0, 9.0), (1, 0.0, 0.4)], "TryAgain: process 2 of 3 did not come to localhost:{port} within 0 s (hosts.meet_seconds)"),
        (4, [(0, 0.0, 0.9)], "TryAgain: processes 1, 2 and 3 of 4 did not come to localhost:{port} within 1 s (hosts.meet_seconds)"),
        (
            3, [(0, 0.0, 9.0), (1, 0.0, 9.0), (1, 0.0, 9.0)],
            f"UserError: two processes, on {HERE} and {HERE}, have called at localhost:{{port}} as process 1: give each process "
            "a JAX_PROCESS_ID of its own, and each job an address of its own.",
        ),
    ],
)  # fmt: skip
def test_all_sides_are_told_who_is_missing_or_wrong(port: int, count: int, processes: list[tuple[int, float, float]], said: str) -> None:
    began = time.monotonic()
    assert meet(port, count, *processes) == [said.format(port=port)] * len(processes)
    assert time.monotonic() - began < 4.0


def test_processes_that_count_differently_are_named(port: int) -> None:
    with ThreadPoolExecutor() as pool:
        jobs = [Job(f"localhost:{port}", 2, 0), Job(f"localhost:{port}", 3, 1)]
        told = list(pool.map(lambda job: come(port, job, 0.0, 9.0), jobs))
    assert told == [f"UserError: process 1 on {HERE} counts 3 processes, but process 0 on {HERE} 2: JAX_NUM_PROCESSES must be the same for all."] * 2


def test_a_first_process_that_never_comes_is_named_with_its_address(port: int) -> None:
    (said,) = meet(port, 2, (1, 0.0, 0.6))
    assert said.startswith(f"TryAgain: process 0 of 2, the coordinator at localhost:{port}, did not answer for 1 s (hosts.meet_seconds; "), said


def test_one_that_ends_while_it_waits_may_come_again(port: int) -> None:
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, port, 3, (0, 0.0, 9.0))
        call(port, 3).close()
        assert meet(port, 3, (2, 0.0, 9.0), (1, 0.3, 9.0)) == ["", ""] and first.result() == [""]


def test_a_call_that_was_cut_off_makes_way_for_a_new_one(port: int) -> None:
    """Its host went down, say, and the connection does not know it: nothing answers, and nothing closes."""
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, port, 3, (0, 0.0, 9.0))
        with call(port, 3):
            assert meet(port, 3, (1, 0.0, 9.0), (2, 0.0, 9.0)) == ["", ""] and first.result() == [""]


FOREIGN = [b"", b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"[1]\n", b'{"process": 5, "of": 2, "host": "h", "life": "l"}\n', b"x" * 9999]


@pytest.mark.parametrize("line", FOREIGN)
def test_whoever_else_connects_is_nobody(port: int, line: bytes) -> None:
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, port, 2, (0, 0.0, 9.0))
        with connect(port) as stranger:
            stranger.sendall(line)
            assert meet(port, 2, (1, 0.1, 9.0)) == [""] and first.result() == [""]


def test_a_port_that_is_taken(port: int) -> None:
    with socket.create_server(("", port)):
        assert meet(port, 2, (0, 0.0, 9.0)) == [f"TryAgain: process 0 cannot coordinate at localhost:{port}: another process holds port {port}"]
    with ThreadPoolExecutor() as pool, socket.create_server(("", port)) as before:
        told = pool.submit(meet, port, 2, (0, 0.0, 9.0), (1, 0.0, 9.0))
        time.sleep(0.1)
        before.close()  # the life before has left
        assert told.result() == ["", ""]


@pytest.mark.parametrize("bound, said", [("nowhere", "must be host:port."), ("203.0.113.1:5000", "process 0 cannot listen at 203.0.113.1:5000")])
def test_an_address_that_is_not_this_hosts(port: int, bound: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", bound)
    (told,) = meet(port, 2, (0, 0.0, 9.0))
    assert told.startswith("UserError") and said in told


@pytest.mark.parametrize(
    "indices, count, said",
    [
        ([1], 2, "process 1 of 2"),
        ([1, 3], 4, "processes 1 and 3 of 4"),
        (list(range(1, 64)), 64, "processes 1, 2, 3, 4, 5, 6, 7, 8 and 55 more of 64"),
    ],
)
def test_processes_as_words(indices: list[int], count: int, said: str) -> None:
    assert words(indices, count) == said


def connect(port: int) -> socket.socket:
    """A connection to the first process, as soon as it listens."""
    while True:
        try:
            return socket.create_connection(("localhost", port))
        except ConnectionRefusedError:
            time.sleep(0.02)


def call(port: int, count: int) -> socket.socket:
    """The call of a process 1 that says nothing more."""
    connection = connect(port)
    connection.sendall(json.dumps({"process": 1, "of": count, "host": HERE, "life": "before"}).encode() + b"\n")
    return connection


# As JAX reads it: the port follows from the job's number.
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
PORT = 65535 - 2**12 + 1 + 7


def explicit(address: str, count: str, index: str) -> dict[str, str]:
    return dict(zip(EXPLICIT, (address, count, index), strict=True))


@pytest.mark.parametrize(
    "environment, said",
    [
        (explicit("localhost:{port}", "2", "0"), "process 1 of 2 did not come to localhost:{port} within 1 s (hosts.meet_seconds); leaving with 75"),
        (explicit("localhost:{port}", "2", "1"), "process 0 of 2, the coordinator at localhost:{port}, did not answer for 1 s (hosts.meet_seconds;"),
        (SLURM | {"CDCD_MULTIHOST": "1"}, f"process 0 of 2, the coordinator at localhost:{PORT}, did not answer for 1 s (hosts.meet_seconds;"),
    ],
)
def test_a_job_that_does_not_meet_leaves_with_75(port: int, environment: dict[str, str], said: str, tmp_path: pathlib.Path) -> None:
    flags = ["--config=configs/demo.py", "--workdir=/nowhere/run", "--config.hosts.meet_seconds=1"]
    environment = {key: value.format(port=port) for key, value in environment.items()}
    began = time.monotonic()
    ended = forked.begin("train", flags, [os.devnull, str(tmp_path / "log")], environment=environment).finish(60)
    log = (tmp_path / "log").read_text()
    assert ended == 75 and log.startswith(f"error: {said.format(port=port)}") and log.count("\n") == 1, (ended, log)
    assert time.monotonic() - began < 20


def test_one_that_is_told_to_stop_meanwhile_tells_the_others(port: int, tmp_path: pathlib.Path) -> None:
    flags = ["--config=configs/demo.py", "--workdir=/nowhere/run"]
    said = f"process 1 of 3 on {HERE} was told to stop (SIGTERM)"
    with ThreadPoolExecutor() as pool:
        first = pool.submit(meet, port, 3, (0, 0.0, 60.0))
        process = forked.begin("train", flags, [os.devnull, str(tmp_path / "log")], environment=explicit(f"localhost:{port}", "3", "1"))
        while not called(port, 1):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        assert process.finish(30) == 75 and first.result() == [f"TryAgain: {said}"]
    assert (tmp_path / "log").read_text() == f"error: {said}; leaving with 75, to be started again.\n"


def called(port: int, index: int) -> bool:
    """Whether a process has called: the first says then that only others are missing."""
    with connect(port) as connection, connection.makefile("r") as stream:
        return f" {index}" not in json.loads(stream.readline())["missing"]
