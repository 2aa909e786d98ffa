"""What a signal does at once, while the main thread is in a call that does not come back."""

import signal
import subprocess
import sys
import time

import pytest

from tests.forked import ROOT

STUCK = """
import hashlib, os, signal
from cdcd_jax import interrupts
interrupts.arm()
interrupts.at_once(signal.SIGTERM, lambda *_: os._exit(1), lambda: os._exit(75))
{later}
print("stuck", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
"""


@pytest.mark.parametrize(
    "later, rounds, code",
    [("", 10**9, 75), ("signal.signal(signal.SIGTERM, lambda *_: os._exit(3))", 10**6, 3)],
    ids=["its action is taken", "nothing is, where another handler was set"],
)
def test_sigterm_in_a_call_that_does_not_come_back(later: str, rounds: int, code: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", STUCK.format(later=later, rounds=rounds)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "stuck\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == code
    finally:
        process.kill()
        process.communicate()
