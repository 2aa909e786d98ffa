"""When a process gives up: each phase's deadline, the silence of others, and what does not count, in a time that the test lets pass."""

import time

import pytest

from cdcd_jax.config import HostsConfig
from cdcd_jax.parallel import hosts
from cdcd_jax.parallel.watch import Watch
from tests.store import Store

CONFIG = HostsConfig(start_seconds=200.0, compile_seconds=120.0, stall_seconds=30.0, evaluation_seconds=90.0, save_seconds=80.0)


class Life:
    """A process of three, and the signs of life of the others."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.store, self.patch, self.said = store, monkeypatch, capsys
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.pass_by)
        monkeypatch.setattr(hosts, "INTERVAL", 1.0)
        self.others: dict[int, str] = {}  # the phase of those that live
        self.began = self.now

    def begin(self, me: int, phase: str, others: dict[int, str], config: HostsConfig = CONFIG) -> None:
        """This process enters a phase, the others theirs."""
        self.patch.setattr(hosts.distributed.global_state, "process_id", me)
        self.others, self.watch = others, Watch(config)
        if phase != "start":
            self.watch._clock.enter("compile")
            if phase != "compile":
                self.watch._clock.finished(7)
                self.watch._clock.enter(phase)
        self.pass_by(0.0)
        self.watch.listen()
        self.began = self.now

    def pass_by(self, seconds: float) -> None:
        """Time, in which the others live on."""
        self.now += seconds
        for index, phase in self.others.items():
            self.store.sign(index, self.now, phase, self.now - self.began)

    def live(self, most: int) -> tuple[float, int, str]:
        """Looks about every second; (after how many seconds the process saw that it must leave, its code, its last line), or (most, 0, "")."""
        start = self.now
        while self.now < start + most:
            self.pass_by(1.0)
            looked = self.now
            try:
                self.watch.listen()
                self.watch.look()
            except SystemExit as end:
                assert isinstance(end.code, int)
                return round(looked - start), end.code, self.said.readouterr().err.splitlines()[-1]
        return most, 0, ""


@pytest.fixture
def life(store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Life:
    return Life(store, monkeypatch, capsys)


def test_each_phase_has_a_deadline_of_its_own(life: Life) -> None:
    watch = Watch(CONFIG)
    assert [watch.deadline(phase) for phase in ("start", "compile", "evaluation", "checkpoint")] == [200, 120, 90, 80]
    assert watch.deadline("step") == watch.deadline("data") == 120  # the first batch may be as slow as the first step
    watch._clock.finished(1)
    assert watch.deadline("step") == watch.deadline("data") == 30


def test_a_steps_deadline_follows_the_measured_time(life: Life) -> None:
    watch = Watch(HostsConfig(compile_seconds=2.0))
    clock = watch._clock
    clock.enter("compile")
    clock.finished(1)
    assert watch.deadline("step") == 2.0  # nothing is measured yet: that of the compilation
    for step in (2, 3, 4):
        life.pass_by(0.1)
        clock.finished(step)
    assert watch.deadline("step") == 60.0  # a minute at least
    life.pass_by(60)
    clock.finished(5)
    assert watch.deadline("step") == pytest.approx(30 * 60.3 / 4)


@pytest.mark.parametrize("phase, seconds", [("start", 200), ("compile", 120), ("step", 30), ("data", 30), ("evaluation", 90), ("checkpoint", 80)])
def test_a_process_that_stands_still_leaves(life: Life, phase: str, seconds: int) -> None:
    """While the others only wait for it, in a step."""
    life.begin(1, phase, {0: "step", 2: "step"})
    after, code, last = life.live(300)
    assert (after, code) == (seconds + 1, 75)
    key = {"checkpoint": "save", "step": "stall", "data": "stall"}.get(phase, phase)
    assert f" made no progress for {seconds + 3} s (phase {phase}; its deadline, hosts.{key}_seconds, is {seconds} s)" in last
    assert "no sign of" not in last and last.startswith("stalled: process 1 of 3 on ")


@pytest.mark.parametrize(
    "me, phase, others, config, seconds, said",
    [
        # The first looks after all others; how long it waits depends on what it does itself.
        (0, "step", {2: "step"}, CONFIG, 30, "process 1 has given no sign of life"),
        (0, "evaluation", {1: "evaluation"}, CONFIG, 30, "process 2 has given no sign of life"),
        (0, "compile", {1: "compile"}, HostsConfig(), 60, "process 2 has given no sign of life"),
        (0, "compile", {1: "compile"}, HostsConfig(stall_seconds=3.0), 10, "process 2 has given no sign of life"),
        (0, "start", {1: "start"}, CONFIG, 200, "process 2 has given no sign of life"),
        # The others look only after themselves, and say whom they miss.
        (1, "step", {0: "step"}, CONFIG, 30, "process 1 of 3 on "),
        # Who waits for others in a step has no hurry while they have a reason; but its own evaluation is its own.
        (1, "step", {0: "compile", 2: "step"}, CONFIG, 120, "process 1 of 3 on "),
        (1, "step", {0: "checkpoint", 2: "evaluation"}, CONFIG, 90, "process 1 of 3 on "),
        (1, "checkpoint", {0: "compile", 2: "compile"}, CONFIG, 80, "process 1 of 3 on "),
    ],
)
def test_silence_and_reasons_of_the_others(
    life: Life, me: int, phase: str, others: dict[int, str], config: HostsConfig, seconds: int, said: str
) -> None:
    life.begin(me, phase, others, config)
    after, code, last = life.live(400)
    assert abs(after - seconds) <= 4 and code == 75 and last.startswith(f"stalled: {said}"), (after, last)
    silent = [index for index in range(3) if index not in (me, *others)]
    assert [index for index in range(3) if f"no sign of process {index}" in last] == silent


@pytest.mark.parametrize(
    "me, said", [(0, "the coordination service of this process, by"), (1, "the coordination service in process 0, by which all tell each other, has")]
)
def test_a_coordination_service_that_answers_no_more(life: Life, me: int, said: str) -> None:
    life.begin(me, "evaluation", {0: "evaluation", 2: "evaluation"})
    life.store.reachable = False
    after, code, last = life.live(300)
    assert (after, code) == (31, 75) and last.startswith(f"stalled: {said}")
    assert ("no sign of process 0 (the coordinator, which does not answer) any more" in last) == (me == 1)
    assert f"no sign of process {me}" not in last.replace("process 0 (", "")


def test_all_leave_as_the_one_that_failed(life: Life) -> None:
    life.begin(1, "compile", {0: "compile", 2: "compile"})
    assert life.live(20) == (20, 0, "")
    life.store.values["cdcd/failed/2"] = '{"name": "process 2 of 3 on h2", "code": 2, "sentence": "no such file."}'
    assert life.live(20) == (1, 2, "process 2 of 3 on h2 left with 2, and said: no such file.")


@pytest.mark.parametrize("me, others", [(0, {1: "step", 2: "step"}), (1, {0: "step"})])
def test_what_lies_before_a_stop_does_not_count(life: Life, me: int, others: dict[int, str]) -> None:
    """Ctrl-Z and fg, of the whole job or of this process: all deadlines begin anew."""
    life.begin(me, "step", others)
    assert life.live(25) == (25, 0, "")
    spent = life.watch._clock.seconds["step"]
    life.others = {}
    life.pass_by(500)
    life.watch.begin_anew()
    assert life.live(25)[1] == 0
    after, code, last = life.live(25)
    assert 3 <= after <= 8 and code == 75, last
    assert life.watch._clock.seconds["step"] > spent + 500  # it is time all the same
