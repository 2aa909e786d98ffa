"""How a process leaves: whoever reads its last lines or does not, and what the others hear of it."""

import subprocess
import sys
import time

import pytest

from tests.forked import ROOT

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
