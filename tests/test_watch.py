"""The clock without gaps, and the deadlines of each phase; the processes themselves are in test_hosts.py."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import pytest

from cdcd_jax.config import UserError
from cdcd_jax.parallel import agreement, hosts
from cdcd_jax.parallel import clock as clock_module
from cdcd_jax.parallel.clock import PHASES, Clock
from tests.forked import ROOT


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass, and nothing else does."""
    now = [100.0]
    monkeypatch.setattr(clock_module.time, "monotonic", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def test_the_phases_divide_the_time_without_a_gap(tick: Callable[[float], None]) -> None:
    clock = Clock()
    tick(1)
    clock.enter("compile")
    tick(10)
    with clock.phase("evaluation"):
        tick(5)
        with clock.phase("checkpoint"):
            tick(2)
        assert clock.now == ("evaluation", 0.0)
        tick(1)
    clock.finished(1)
    assert clock.now == ("step", 0.0)  # the first step ends the compilation
    tick(3)
    assert clock.seconds == dict.fromkeys(PHASES, 0.0) | {"start": 1, "compile": 10, "evaluation": 6, "checkpoint": 2, "step": 3}
    assert clock.now == ("step", 3.0)
    clock.finished(2)
    assert clock.now == ("step", 0.0) and clock.step == 2


def test_a_phase_ends_when_its_block_fails(tick: Callable[[float], None]) -> None:
    clock = Clock()
    with pytest.raises(KeyError), clock.phase("evaluation"):
        raise KeyError
    assert clock.now[0] == "start"


def test_the_measured_step_leaves_out_the_first_and_what_is_no_step(tick: Callable[[float], None]) -> None:
    clock = Clock()
    clock.enter("compile")
    tick(50)
    assert clock.step_seconds is None
    for step in range(1, 6):
        clock.finished(step)
        with clock.phase("data"):
            tick(0.5)
        tick(1.5)
        with clock.phase("evaluation"):
            tick(100)
    clock.finished(6)
    assert clock.step_seconds == pytest.approx(2.0)


STALLS = """
import sys, time
from cdcd_jax.config import HostsConfig
from cdcd_jax.parallel.watch import Watch
with Watch(HostsConfig(start_seconds=60.0, {setting}=0.5)) as clock:
    clock.enter({phase!r})
    if {phase!r} == "step":
        clock.finished(41)
    time.sleep(60)
"""


@pytest.mark.parametrize(("phase", "setting"), [("step", "stall_seconds"), ("checkpoint", "save_seconds")])
def test_a_process_that_stands_still_leaves_with_75_and_says_where(phase: str, setting: str) -> None:
    began = time.monotonic()
    code = STALLS.format(phase=phase, setting=setting)
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 75, ended.stderr
    assert time.monotonic() - began < 30
    assert "time.sleep" not in ended.stderr and 'File "<string>"' in ended.stderr  # the main thread's stack, as far as it has a source
    last = ended.stderr.rstrip().splitlines()[-1]
    assert f"stalled: this process made no progress for 0 s (phase {phase}" in last or f"for 1 s (phase {phase}" in last, last
    assert f"the last finished step is {41 if phase == 'step' else 0};" in last and last.endswith("leaving with 75, to be started again.")


def test_one_process_alone_has_nobody_to_ask() -> None:
    assert not hosts.several() and hosts.first() and hosts.name() == "this process"
    assert agreement.largest(3) == 3 and hosts.depart(75) == 75
    agreement.compare("start", {"a": 1})
    agreement.barrier("anything")


def test_another_version_of_the_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    first = json.dumps({"host": "a", "values": {"x": "1", "the code": "0123", "jax": jax.__version__}})
    monkeypatch.setattr(hosts, "_joined", True)
    monkeypatch.setattr(hosts, "me", lambda: 1)
    monkeypatch.setattr(agreement, "agree", lambda about, word: word or first)
    monkeypatch.setattr(hosts, "name", lambda: "process 1 of 2 on b")
    with pytest.raises(UserError) as error:
        agreement.compare("start", {"x": 1})
    assert str(error.value).startswith(f"process 1 of 2 on b has the code = {agreement.code_version()}, but process 0 on a has 0123: ")


def test_a_process_that_was_stopped_and_goes_on_is_not_stalled() -> None:
    """Ctrl-Z and fg: the time that it stood still is nobody's."""
    code = "import time\nfrom cdcd_jax.config import HostsConfig\nfrom cdcd_jax.parallel import watch\nwatch.STOPPED = 1.0\n" \
        "with watch.Watch(HostsConfig(start_seconds=2.0)):\n    print('in', flush=True)\n    time.sleep(0.5)\nprint('out')\n"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and said == "out\n", errors
