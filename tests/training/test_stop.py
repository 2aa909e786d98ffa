"""What signals do to a run: before there is something to save, and afterwards. Real signals, to this process or to one of its own."""

import contextlib
import os
import pathlib
import signal
import time

import pytest

from cdcd_jax.parallel import hosts
from cdcd_jax.parallel.clock import Clock
from cdcd_jax.training.stop import FIRST, Stop
from tests import forked


@pytest.fixture
def stop() -> Stop:
    return Stop(Clock())


@pytest.mark.parametrize("phase", FIRST)
@pytest.mark.parametrize("number, word, code, again", [
    (signal.SIGTERM, "SIGTERM", 75, ""), (signal.SIGINT, "Ctrl-C", 130, "; once more stops at once"),
])  # fmt: skip
def test_what_is_still_done_is_said_at_once(
    phase: str, number: signal.Signals, word: str, code: int, again: str, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    stop = Stop(clock)
    with stop.listening():
        stop.begin()
        clock.enter(phase)
        os.kill(os.getpid(), number)
        assert (stop.code, stop.why) == (code, f"this process was told to stop ({word})")
    assert capfd.readouterr().err == f"told to stop ({word}): {FIRST[phase]}, then saving{again}.\n"


def test_what_came_first_counts_and_a_second_ctrl_c_stops_at_once(stop: Stop, capfd: pytest.CaptureFixture[str]) -> None:
    with stop.listening():
        stop.begin()
        for number in (signal.SIGTERM, signal.SIGTERM):  # a launcher repeats itself
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.code == 75 and capfd.readouterr().err.count("told to stop") == 1


def test_afterwards_signals_do_what_they_did(stop: Stop) -> None:
    before = [signal.getsignal(number) for number in Stop.CODES]
    with contextlib.suppress(ZeroDivisionError), stop.listening():
        stop.begin()
        assert [signal.getsignal(number) for number in Stop.CODES] == [stop._note] * 2
        1 // 0  # noqa: B018
    assert [signal.getsignal(number) for number in Stop.CODES] == before


def test_nobody_needs_to_read_it(stop: Stop) -> None:
    kept = os.dup(2)
    try:
        os.close(2)
        with stop.listening():
            stop.begin()
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert stop.code == 75


def test_all_hosts_say_once_who_was_told(stop: Stop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """One that was not, and hears of it by the agreement."""
    stop.tell("finishing step 7")  # alone there is nobody to tell
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(hosts, "several", lambda: True)
    monkeypatch.setattr("cdcd_jax.parallel.agreement.agree", lambda about, word: word or "process 1 of 2 on h was told to stop (SIGTERM)")
    stop.tell("finishing step 7")
    stop.tell("cutting the evaluation of step 7 short")
    assert capfd.readouterr().err == "process 1 of 2 on h was told to stop (SIGTERM): finishing step 7, then saving.\n"


def early(log: str) -> None:
    """Runs in a process of its own: a launcher tells it to stop, twice, while it reads its text."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
    with Stop(Clock()).listening():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)


def test_before_there_is_something_to_save_sigterm_ends_the_process(tmp_path: pathlib.Path) -> None:
    process = forked.CONTEXT.Process(target=early, args=(str(tmp_path / "log"),))
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 75
    assert (tmp_path / "log").read_text() == "this process was told to stop (SIGTERM) before its first step; there was nothing to save.\n"
