"""How a process leaves: whoever reads its last lines or does not, and what the others hear of it."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from cdcd_jax.config import HostsConfig, TryAgain, UserError
from cdcd_jax.parallel import hosts
from cdcd_jax.parallel.hosts import Failure, Seen
from cdcd_jax.parallel.watch import Watch
from tests.forked import ROOT
from tests.store import Store


@pytest.mark.parametrize(
    "me, again, silent",
    [
        (0, [], ["process 1 of 3 on h1", "process 2, which gave none yet"]),
        (0, [1], ["process 2, which gave none yet"]),
        (1, [], ["process 0 of 3 on h0", "process 2, which gave none yet"]),
        (2, [0], ["process 1 of 3 on h1"]),
        (1, [0, 2], []),
        (2, [0, 1], []),
    ],
)
def test_who_is_silent_is_said_of_the_others_only(
    store: Store, me: int, again: list[int], silent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts.distributed.global_state, "process_id", me)
    timer = threading.Timer(0.05, lambda: [store.sign(index, time=2.0) for index in again])
    timer.start()
    seen = hosts.last_seen()
    timer.join()
    assert len(seen) == 3 and [host.name for host in seen if not host.alive] == silent
    assert Seen(0, "process 0 of 3 on h0", "step", 2.0, 7, me == 0 or 0 in again) in seen


def test_a_store_that_is_gone_is_the_first_processes_and_its_own_says_nothing_of_itself(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.reachable = False
    (seen,) = hosts.last_seen()
    assert (seen.index, seen.alive) == (0, False) and seen.line().startswith("process 0 (the coordinator, which does not answer): SILENT")
    assert hosts.signs() is None and hosts.failure_of_another() is None and not hosts.publish("step", 1.0, 7)
    monkeypatch.setattr(hosts.distributed.global_state, "process_id", 0)
    assert hosts.last_seen() == []


def test_who_fails_tells_the_others_which_leave_alike(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        hosts.leave(2, "many\nlines\nerror: a mistake.")
    assert end.value.code == 2 and capsys.readouterr().err == "many\nlines\nerror: a mistake.\n"
    assert hosts.failure_of_another() is None  # it is one's own
    monkeypatch.setattr(hosts.distributed.global_state, "process_id", 2)
    monkeypatch.setattr(hosts, "_leaving", threading.Lock())
    heard = hosts.failure_of_another()
    assert heard == Failure(f"process 1 of 3 on {socket.gethostname()}", 2, "a mistake.")
    with pytest.raises(SystemExit) as end:
        heard.follow()
    assert end.value.code == 2 and capsys.readouterr().err == f"{heard.name} left with 2, and said: a mistake.\n"
    assert "cdcd/failed/2" not in store.values  # whose failure it is not


@pytest.mark.parametrize(
    "error, silent, code, last",
    [
        (UserError("no such file."), [], 2, "error: no such file."),
        (TryAgain("the bucket is busy"), [], 75, "error: the bucket is busy; leaving with 75, to be started again."),
        (KeyboardInterrupt(), [], 130, "interrupted."),
        (ZeroDivisionError("by zero"), [], 1, "error: ZeroDivisionError: by zero."),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GB"), [], 1, "error: JaxRuntimeError: RESOURCE_EXHAUSTED: 3 GB."),
        (jax.errors.JaxRuntimeError("Gloo: no answer"), [], 75, "lost its connection to the others, which are alive (Gloo: no answer.); "),
        (jax.errors.JaxRuntimeError("Gloo: no answer"), [2], 75, "no sign of process 2 of 3 on h2 any more; leaving with 75, to be started again."),
    ],
)  # fmt: skip
def test_each_error_has_its_code(
    store: Store, error: BaseException, silent: list[int], code: int, last: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.sign(2, time=1.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: [store.sign(index, time=2.0) for index in (0, 2) if index not in silent])
    with pytest.raises(SystemExit) as end:
        Watch(HostsConfig()).__exit__(type(error), error, None)
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == code and last in lines[-1]
    assert (len(lines) > 1) == (code == 1)  # its whole story is told of an error of the program alone


ABORTED = """
import os
from cdcd_jax.parallel import hosts
hosts._leave_when_aborted(hosts.Job("localhost:{port}", 2, {index}))
os.abort()
"""


@pytest.mark.parametrize("index, service", [(1, "is gone"), (1, "is there"), (0, "is gone")])
def test_an_abort_names_the_first_process_only_where_its_service_is_gone(index: int, service: str) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("localhost", 0)))
        port = server.getsockname()[1]
        if service == "is gone":
            server.close()
        code = ABORTED.format(port=port, index=index)
        ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    gone = f"process 0, the coordinator at localhost:{port}, is gone or does not answer"
    aborted = f"process {index} of 2 on {os.uname().nodename} was aborted from within (SIGABRT; the lines above may say why)"
    said = gone if index and service == "is gone" else aborted
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (75, f"{said}; leaving with 75, to be started again."), ended.stderr

# Stdout and stderr are pipes that nobody reads: full, or with no other end any more.
UNREAD = """
import os, signal, sys, time
from cdcd_jax import interrupts
from cdcd_jax.config import HostsConfig
from cdcd_jax.parallel import hosts
from cdcd_jax.parallel.watch import Watch

hosts.WRITE_SECONDS = 0.5
sys.stdin.readline()  # the other ends are closed by now, where they should be
for stream in (1, 2):
    os.set_blocking(stream, False)
    try:
        while True:
            os.write(stream, b"x" * 4096)
    except OSError:
        os.set_blocking(stream, True)
sys.stdout = os.fdopen(os.dup(1), "w")  # with a buffer, whatever the environment says
print("something that is still to be written")
"""
WAYS = {
    "stalled": "with Watch(HostsConfig(start_seconds=0.5)):\n    time.sleep(60)",
    "left": "hosts.leave(75, 'said')",
    "departed": "hosts._exit(75)",
    "interrupted": "interrupts.arm()\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)",
}


@pytest.mark.parametrize(
    "way, pipes", [("stalled", "full"), ("left", "broken"), ("departed", "full"), ("interrupted", "full"), ("interrupted", "broken")]
)
def test_a_process_leaves_though_nobody_reads_what_it_says(way: str, pipes: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", UNREAD + WAYS[way]], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        if pipes == "broken":
            process.stdout.close()
            process.stderr.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        began = time.monotonic()
        assert process.wait(30) == (130 if way == "interrupted" else 75)
        assert time.monotonic() - began < 15
    finally:
        process.kill()
        process.stdout.close()
        process.stderr.close()
