"""Two real processes with gloo: they agree with one, and when one of them is killed, stopped or told to stop, all leave and nothing is lost."""

import functools
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from tests import tiny
from tests.hosts import PATIENCE, Job
from tests.test_launch import started

STEPS, PROBE = 30, 15
# A step takes milliseconds; the deadlines leave room for a machine that does other things as well. Adam, because it is traced in half the time.
CHANGES = {
    "train.num_steps": STEPS, "checkpoint.every_steps": 5, "log.probe_every_steps": PROBE, "log.probe_sequences": 64, "optim.name": "adam",
    "hosts.stall_seconds": 6.0, "hosts.compile_seconds": 120.0, "hosts.evaluation_seconds": 60.0,
}  # fmt: skip
BOUND = 30.0  # seconds within which all processes must have left: the stall's deadline, a look at the others, and a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "corpus.txt").write_text(tiny.corpus(400))
    return folder


@pytest.fixture(scope="module")
def unbroken(folder: pathlib.Path) -> Job:
    """The run of one process that nobody disturbed."""
    job = Job(folder, "one", CHANGES)
    ended = job.live(1)
    assert ended.codes == [0], ended.logs
    return job


@pytest.fixture(scope="module")
def two(folder: pathlib.Path, unbroken: Job) -> Job:
    """The run of two processes that nobody disturbed."""
    job = Job(folder, "two", CHANGES)
    ended = job.live(2)
    assert ended.codes == [0, 0], ended.logs
    assert "Traceback" not in "".join(ended.logs)
    return job


def losses(job: Job) -> np.ndarray:
    lines = job.lines()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return np.array([line["loss"] for line in lines])


def test_two_processes_agree_with_one(unbroken: Job, two: Job) -> None:
    np.testing.assert_allclose(losses(two)[:20], losses(unbroken)[:20], rtol=1e-5)
    np.testing.assert_allclose(losses(two), losses(unbroken), rtol=1e-3)  # rounding grows with the steps
    probes = [job.lines("telemetry.jsonl") for job in (unbroken, two)]
    for one, other in zip(*probes, strict=True):
        assert one["step"] == other["step"] and other["bits_per_char"] == pytest.approx(one["bits_per_char"], rel=1e-3)


RANDOM = random.SystemRandom()
MOMENTS = {
    "in a step": lambda job: functools.partial(lambda step: job.reached() >= step, RANDOM.randrange(3, PROBE - 1)),
    "while compiling": lambda job: job.compiling,
    "while evaluating": lambda job: lambda: job.evaluating(PROBE),
}


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGKILL, "in a step"),
        (signal.SIGSTOP, "in a step"),
        (signal.SIGTERM, "while compiling"),
        (signal.SIGTERM, "while evaluating"),
        pytest.param(signal.SIGKILL, "while evaluating", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "in a step", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, "while compiling", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, "while compiling", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, "while evaluating", marks=pytest.mark.slow),
    ],
)
def test_all_leave_and_nothing_is_lost(folder: pathlib.Path, two: Job, number: signal.Signals, moment: str) -> None:
    victim = RANDOM.randrange(2)
    slow = number == signal.SIGSTOP and moment != "in a step"
    changes = CHANGES | ({"hosts.compile_seconds": 30.0, "hosts.evaluation_seconds": 30.0} if slow else {})
    job = Job(folder, f"{number.name}-{moment.replace(' ', '-')}", changes)
    ended = job.live(2, {victim: number}, MOMENTS[moment](job))
    told = f"victim {victim}, step {job.reached()}: {ended}"
    assert ended.codes[1 - victim] == 75, told
    assert ended.codes[victim] == (-signal.SIGKILL if number == signal.SIGKILL else 75), told
    assert max(ended.seconds) < BOUND + (20.0 if slow else 0.0), told
    if number == signal.SIGTERM:
        early = moment == "while compiling" and "was told to stop (SIGTERM) before its first step" in ended.logs[victim]
        assert early or "stopped and saved at step" in ended.logs[0], told
        said = rf"process {victim} of 2 on \S+ was told to stop \(SIGTERM\): .*, then saving"
        assert early or all(re.search(said, log) for log in ended.logs), told
    else:  # the log's last line names the culprit
        last = ended.logs[1 - victim].rstrip().splitlines()[-1]
        assert f"process {victim}" in last and "75" in last, told
    if number == signal.SIGSTOP:
        assert "Thread 0x" in ended.logs[1 - victim] and "hosts last seen" in ended.logs[1 - victim], told
    saved = tiny.saved(job.workdir)
    again = job.live(2)
    assert again.codes == [0, 0], again.logs
    assert f"going on from step {saved} of" in again.logs[0] if saved else "going on" not in again.logs[0], (saved, again.logs)
    np.testing.assert_array_equal(losses(job), losses(two))
    assert [line["step"] for line in job.lines("telemetry.jsonl")] == [PROBE, STEPS]
    assert job.lines("telemetry.jsonl")[-1] == two.lines("telemetry.jsonl")[-1]


def test_the_launcher_goes_on_after_a_kill(folder: pathlib.Path, two: Job, door_environment: dict[str, str]) -> None:
    """launch/local_multihost.sh with two real processes, one of which is killed: all leave, are started again, and not a bit of the run changes."""
    job = Job(folder, "launched", CHANGES)
    settings = {name.upper(): str(value) for name, value in job.settings.items()}
    said = folder / "launched.log"
    with said.open("w") as log:
        environment = door_environment | settings | {"PYTHON": sys.executable}
        with started("--max-restarts=2", "2", *job.flags, env=environment, stdout=log, stderr=log) as launcher:

            def wait_for(moment: Callable[[], object]) -> None:
                end = time.monotonic() + PATIENCE
                while not moment():
                    assert launcher.poll() is None and time.monotonic() < end, said.read_text()
                    time.sleep(0.005)

            wait_for(lambda: "compiling" in said.read_text())
            found = subprocess.run(["pgrep", "--full", "--", f"-m cdcd_jax.train.*{job.workdir}"], capture_output=True, text=True, check=True)
            wait_for(lambda: job.reached() >= 6)
            os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)  # the last one started
            assert launcher.wait(PATIENCE) == 0, said.read_text()
    assert "starting all 2 again (1 of at most 2 times)" in said.read_text(), said.read_text()
    assert "Traceback" not in said.read_text(), said.read_text()  # another's end is no error of the program
    np.testing.assert_array_equal(losses(job), losses(two))
    assert job.lines()[-1]["wall_seconds"]["lost"] > 0
    assert job.lines("telemetry.jsonl")[-1] == two.lines("telemetry.jsonl")[-1]


@pytest.mark.parametrize("axis", ["tensor", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_an_axis_between_processes_changes_nothing(folder: pathlib.Path, unbroken: Job, axis: str) -> None:
    """Tensor parallelism between processes: both must read the same rows. FSDP: the state is spread over both."""
    job = Job(folder, axis, CHANGES | {f"mesh.{axis}": 2})
    ended = job.live(2)
    assert ended.codes == [0, 0], ended.logs
    np.testing.assert_allclose(losses(job)[:20], losses(unbroken)[:20], rtol=1e-5)


def test_a_run_moves_between_one_and_two_processes(folder: pathlib.Path, unbroken: Job) -> None:
    job = Job(folder, "moving", CHANGES)
    for count, moment in ((1, 6), (2, 17), (1, 0)):
        ended = job.live(count, {0: signal.SIGTERM} if moment else None, lambda moment=moment: job.reached() >= moment)
        assert ended.codes == [75 if moment else 0] * count, ended.logs
        assert tiny.saved(job.workdir) >= moment
    np.testing.assert_allclose(losses(job)[:20], losses(unbroken)[:20], rtol=1e-5)
    np.testing.assert_allclose(losses(job), losses(unbroken), rtol=1e-3)


def test_two_hosts_with_two_texts_do_not_train(folder: pathlib.Path) -> None:
    job = Job(folder, "texts", CHANGES | {"data.source": "~/corpus.txt"})
    for index in range(2):
        (folder / f"home{index}").mkdir()
        (folder / f"home{index}" / "corpus.txt").write_text(tiny.corpus(400 + index))
    ended = job.live(2, homes=True)
    assert ended.codes == [2, 2], ended.logs
    assert "process 1 of 2" in ended.logs[0] and "has the text = " in ended.logs[0].rstrip().splitlines()[-1], ended.logs


def test_a_mistake_on_one_host_ends_all_and_names_both(folder: pathlib.Path) -> None:
    job = Job(folder, "differ", CHANGES)
    ended = job.live(2, extra={1: ["--config.train.seed=5"]})
    assert ended.codes == [2, 2], ended.logs
    for log in ended.logs:
        last = log.rstrip().splitlines()[-1]
        assert "train.seed = 5" in last and "process 1 of 2" in last and "process 0" in last and "has 0" in last, log
    assert "Traceback" not in "".join(ended.logs) and not (job.workdir / "config.json").exists()
