"""A run that is killed, interrupted or told to stop goes on as if nothing had happened, to the last bit. Real processes, real signals."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from tests import forked, tiny

STEPS, EVERY = 600, 40
CHANGES = {"train.num_steps": STEPS, "checkpoint.every_steps": EVERY}
SAME = ("loss", "warp_loss", "grad_norm", "learning_rate")  # of a line of metrics.jsonl; the others are times


class Life(NamedTuple):
    """One process of a run."""

    code: int | None
    stderr: str
    reached: int  # the last step in metrics.jsonl when the process was gone
    saved: int  # the newest checkpoint that counts then; 0 if there is none


class Train:
    """Starts and stops the train door on the tiny run in one workdir: `python -m cdcd_jax.train`, or a forked copy of it."""

    def __init__(self, folder: pathlib.Path, name: str, environment: dict[str, str], fork: bool = False):
        self.workdir, self.log = folder / name, folder / f"{name}.log"
        self.flags = tiny.flags(folder / "corpus.txt", self.workdir, CHANGES)
        # Each program is compiled once for all of these processes, which changes no bit of it.
        self.cache = {"jax_compilation_cache_dir": str(folder / "cache"), "jax_persistent_cache_min_compile_time_secs": 0}
        self.environment = environment | {name.upper(): str(value) for name, value in self.cache.items()}
        self.fork = fork

    def lines(self) -> list[dict[str, Any]]:
        """Those of metrics.jsonl."""
        return [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]

    def reached(self) -> int:
        """The last whole line's step."""
        path = self.workdir / "metrics.jsonl"
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        return json.loads(whole.rpartition(b"\n")[2])["step"] if whole else 0

    def live(self, stop: signal.Signals | None = None, after: int = 0) -> Life:
        """One life, which ends by itself, or gets a signal once it has logged a step beyond `after`."""
        process = self.begin()
        try:
            deadline = time.monotonic() + 250
            while stop is not None and self.reached() <= after:
                assert process.poll() is None, f"it ended before step {after}: {self.log.read_text()}"
                assert time.monotonic() < deadline
                time.sleep(0.005)
            if stop is not None:
                os.kill(process.pid, stop)
            code = process.wait(250)
        finally:
            process.kill()
        return Life(code, " ".join(self.log.read_text().split()), self.reached(), tiny.saved(self.workdir))

    def begin(self) -> "subprocess.Popen[bytes] | forked.Process":
        if self.fork:
            return forked.begin("train", self.flags, [os.devnull, str(self.log)], self.cache)
        command = [sys.executable, "-m", "cdcd_jax.train", *self.flags]
        with self.log.open("w") as log:
            return subprocess.Popen(command, cwd=forked.ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


class Story(NamedTuple):
    """What became of three runs of the same config: one that nobody disturbed, one killed three times, one stopped by Ctrl-C and by SIGTERM."""

    whole: Train
    killed: Train
    stopped: Train
    lives: dict[str, list[Life]]
    seed: int


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, door_environment: dict[str, str]) -> Story:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "corpus.txt").write_text(tiny.corpus())
    trains = [Train(folder, name, door_environment, fork=name == "killed") for name in ("whole", "killed", "stopped")]
    seed = random.randrange(1000)
    generator = random.Random(seed)
    points = sorted(generator.sample(range(5, STEPS // 2), 3))

    def killed() -> list[Life]:
        lives = []
        for point in points:
            # A resume cuts the lines after its checkpoint away, so the file may say less than the last life reached: the point counts from there.
            lives.append(trains[1].live(signal.SIGKILL, max(point, lives[-1].reached if lives else 0)))
        return [*lives, trains[1].live()]

    def stopped() -> list[Life]:
        first = trains[2].live(signal.SIGINT, points[0])
        return [first, trains[2].live(signal.SIGTERM, max(points[1], first.reached)), trains[2].live()]

    lives = {"whole": [trains[0].live()]}  # first, so that the others find its programs in the cache
    with ThreadPoolExecutor(2) as pool:
        lives |= dict(zip(("killed", "stopped"), [future.result() for future in [pool.submit(killed), pool.submit(stopped)]], strict=True))
    return Story(*trains, lives, seed)


def test_the_undisturbed_run_logs_every_step(story: Story) -> None:
    assert story.lives["whole"][0].code == 0, story.lives["whole"][0].stderr
    assert [line["step"] for line in story.whole.lines()] == list(range(1, STEPS + 1))


def test_it_was_really_killed_three_times(story: Story) -> None:
    *lives, last = story.lives["killed"]
    assert [life.code for life in lives] == [-signal.SIGKILL] * 3 and last.code == 0, last.stderr
    assert 0 < lives[0].reached < lives[1].reached < lives[2].reached < STEPS
    for before, after in zip(story.lives["killed"], story.lives["killed"][1:], strict=False):
        assert before.reached - before.saved < 3 * EVERY, "saves fall behind"
        if before.saved:
            assert f"going on from step {before.saved:,} of" in after.stderr


@pytest.mark.parametrize("name", ["killed", "stopped"])
def test_the_same_losses_to_the_bit(story: Story, name: str) -> None:
    """Also that each step is there once, and that the data went on where they were."""
    other: Train = getattr(story, name)
    for one, two in zip(story.whole.lines(), other.lines(), strict=True):
        assert one["step"] == two["step"]
        assert [one[key] for key in SAME] == [two[key] for key in SAME], f"step {one['step']}, points from seed {story.seed}: {story.lives[name]}"


@pytest.mark.parametrize("name", ["killed", "stopped"])
def test_the_same_checkpoint_in_the_end(story: Story, name: str) -> None:
    """The data position, and the last probe, which says the bound of the averaged weights."""
    other: Train = getattr(story, name)
    for path in (f"checkpoints/{STEPS}/data.json", "config.json", "tokenizer/tokenizer.json"):
        assert (story.whole.workdir / path).read_bytes() == (other.workdir / path).read_bytes()
    position = json.loads((other.workdir / f"checkpoints/{STEPS}/data.json").read_text())
    assert position == {"global_next_index": STEPS * tiny.TINY["train.batch_size"]}
    probes = [[json.loads(line) for line in (train.workdir / "telemetry.jsonl").read_text().splitlines()] for train in (story.whole, other)]
    assert probes[0][-1] == probes[1][-1] and probes[0][-1]["step"] == STEPS


def test_ctrl_c_saves_and_says_how_to_go_on(story: Story) -> None:
    first, second, _ = story.lives["stopped"]
    assert first.code == 130
    assert "told to stop (Ctrl-C): " in first.stderr
    assert f"stopped and saved at step {first.reached:,} of {STEPS:,}; the same command goes on from there." in first.stderr
    assert f"going on from step {first.reached:,} of" in second.stderr
    assert "Traceback" not in first.stderr


def test_sigterm_saves_and_asks_to_be_started_again(story: Story) -> None:
    _, second, third = story.lives["stopped"]
    assert second.code == 75
    assert "told to stop (SIGTERM): " in second.stderr
    assert f"stopped and saved at step {second.reached:,} of {STEPS:,}" in second.stderr
    assert f"going on from step {second.reached:,} of" in third.stderr
    assert third.code == 0


def test_a_finished_run_says_so_and_touches_nothing(story: Story) -> None:
    before = tiny.snapshot(story.whole.workdir)
    times = {path: os.stat(story.whole.workdir / path).st_mtime_ns for path in (".", "checkpoints")}
    life = story.whole.live()
    assert life.code == 0
    assert f"is complete: {STEPS:,} steps of {STEPS:,} are done." in life.stderr
    assert tiny.snapshot(story.whole.workdir) == before
    assert {path: os.stat(story.whole.workdir / path).st_mtime_ns for path in times} == times
