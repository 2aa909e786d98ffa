"""The loop: when the model is examined, what is done again after a resume, and what is said when a step goes wrong.

Everything is the real thing but for the step, which adds one, and the measuring, whose time and values do not matter here; test_step.py and
test_telemetry.py have them, test_resume.py and tests/test_hosts.py all together.
"""

import json
import math
import os
import pathlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data import pipeline
from cdcd_jax.parallel.clock import Clock
from cdcd_jax.training import goodput, telemetry, workdir
from cdcd_jax.training.checkpoint import Checkpoints, newest_step
from cdcd_jax.training.journal import Journal
from cdcd_jax.training.loop import Loop, never
from cdcd_jax.training.stop import Stop
from tests import tiny

STEPS, PROBES = 6, [2, 4, 6]
CONFIG = tiny.config({"train.num_steps": STEPS, "log.probe_every_steps": 2, "checkpoint.every_steps": 3, "checkpoint.keep_last": 9})
TOKENS = tiny.tokens(16).reshape(-1)
LINE = {"bits_per_char": 2.0, "half_information_sigma": 1.0, "context_gain": 1.0, "nearest_distance_quantiles": [1.0] * 5, "sigma": [1.0],
        "cross_entropy": [1.0], "warp_sigma": [1.0], "warp_entropy": [1.0], "unigram_entropy": 3.0}  # fmt: skip


Event = Callable[[int], float | None]  # called in each step, with its number; a number takes the place of its loss


class Life:
    """A run in a workdir, from its newest checkpoint on."""

    def __init__(self, folder: pathlib.Path):
        self.directory, self.clock = epath.Path(folder), Clock()
        if not workdir.prepare(self.directory, CONFIG):
            workdir.write(self.directory, CONFIG, tiny.TOKENIZER, "f")
        self.checkpoints = Checkpoints(self.directory, CONFIG.checkpoint)
        self.start = self.checkpoints.latest_step() or 0
        self.stop = Stop(self.clock)
        held_out = pipeline.Split(pipeline.Windows(TOKENS, tiny.LENGTH), len(TOKENS), len(TOKENS))
        self.rows = pipeline.Crops(TOKENS, tiny.LENGTH)
        corpus = pipeline.Corpus(self.rows, {"valid": held_out}, np.bincount(TOKENS), tiny.TOKENIZER, "f")
        self.loop = Loop(CONFIG, self.directory, corpus, self.checkpoints, {}, tiny.mesh(), self.clock, self.stop, never)

    def run(self, event: Event = lambda step: None) -> int:
        def step(state: Any, batch: Any) -> Any:
            number = int(state.step) + 1
            loss = event(number)
            return state.replace(step=jnp.int32(number)), {"loss": jnp.float32(1.0 if loss is None else loss), "grad_norm": jnp.float32(1.0)}

        batches = pipeline.batches(self.rows, CONFIG.train.batch_size, 0, 0, 1)
        batches.set_state({"global_next_index": self.start * CONFIG.train.batch_size})
        with self.stop.listening():
            try:
                return self.loop.run(step, tiny.small_state().replace(step=jnp.int32(self.start)), self.start, batches)
            finally:
                batches.close()
                self.checkpoints.close()

    def lines(self, name: str) -> list[int]:
        """The steps of the lines of a file."""
        return [line["step"] for line in workdir.lines(self.directory / name)]


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, Callable[[], None]]]:
    """What happens in the nth probe, counted from 0: nothing, if it is not said here."""
    events: dict[int, Callable[[], None]] = {}
    count = iter(range(1000))

    def probe(*args: Any) -> dict[str, Any]:
        events.get(next(count), lambda: None)()
        args[-1]()  # before every batch the loop is asked whether a signal came
        return dict(LINE)

    monkeypatch.setattr(telemetry, "probe", probe)
    yield events


def tell(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_a_whole_run(tmp_path: pathlib.Path) -> None:
    life = Life(tmp_path)
    assert life.run() == 0
    assert life.lines("metrics.jsonl") == list(range(1, STEPS + 1)) and life.lines("telemetry.jsonl") == PROBES
    assert life.checkpoints.steps == [3, 6]
    assert json.loads((tmp_path / "checkpoints" / "6" / "data.json").read_text()) == {"global_next_index": 6 * CONFIG.train.batch_size}
    assert (tmp_path / "saved_step").read_text() == "6\n"


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_evaluation_that_was_cut_short_is_done_again_once(
    which: int, number: signal.Signals, code: int, tmp_path: pathlib.Path, measured: Any
) -> None:
    """Also the last one, after the last step."""
    measured[which] = lambda: tell(number)
    first = Life(tmp_path)
    assert first.run() == code
    assert first.lines("telemetry.jsonl") == PROBES[:which] and newest_step(first.directory) == PROBES[which]
    second = Life(tmp_path)
    assert second.start == PROBES[which] and second.run() == 0
    assert second.lines("telemetry.jsonl") == PROBES and second.lines("metrics.jsonl") == list(range(1, STEPS + 1))


def test_one_that_is_cut_short_when_it_is_done_again_is_done_a_third_time(tmp_path: pathlib.Path, measured: Any) -> None:
    for which in (0, 1):
        measured[which] = lambda: tell(signal.SIGTERM)
    assert [Life(tmp_path).run() for _ in range(3)] == [75, 75, 0]
    assert Life(tmp_path).lines("telemetry.jsonl") == PROBES


def test_a_signal_in_a_step_ends_the_run_with_a_saved_step(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    life = Life(tmp_path)
    assert life.run(lambda step: tell(signal.SIGTERM) if step == 1 else None) == 75
    saved = newest_step(life.directory)
    assert saved in (1, 2) and life.lines("metrics.jsonl")[-1] == saved and life.lines("telemetry.jsonl") == []
    said = capfd.readouterr().err
    assert "told to stop (SIGTERM): " in said and f"stopped and saved at step {saved} of {STEPS}; the same command goes on from there." in said
    again = Life(tmp_path)
    assert again.run() == 0 and again.lines("telemetry.jsonl") == PROBES and again.lines("metrics.jsonl") == list(range(1, STEPS + 1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step, said", [(2, "nothing is saved yet"), (5, "the last checkpoint is step 3")])
def test_a_loss_that_is_not_finite_names_the_last_checkpoint(step: int, said: str, value: float, tmp_path: pathlib.Path) -> None:
    life = Life(tmp_path)
    with pytest.raises(UserError, match=f"the loss is not finite at step {step}, and {said}: train in another workdir with lower rates"):
        life.run(lambda number: value if number == step else None)
    assert newest_step(life.directory) == (3 if step > 3 else None) and life.lines("metrics.jsonl") == list(range(1, step))


@pytest.mark.parametrize("saved, probes, missing", [
    (0, [], False), (2, [], True), (2, [2], False), (3, [2], False), (4, [2], True), (4, [2, 4, 6], False), (STEPS, [2, 4], True),
])  # fmt: skip
def test_what_a_resume_has_to_do_again(saved: int, probes: list[int], missing: bool, tmp_path: pathlib.Path) -> None:
    life = Life(tmp_path)
    for name, steps in (("telemetry.jsonl", probes), ("metrics.jsonl", range(1, 7))):
        (tmp_path / name).write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
    with Journal(life.directory, never) as journal:
        assert life.loop.go_on(saved, journal) is missing
    assert life.lines("telemetry.jsonl") == [step for step in probes if step <= saved]
    assert life.lines("metrics.jsonl") == list(range(1, saved + 1)) and life.loop.before == goodput.nothing()
    life.checkpoints.close()


def test_the_last_step_is_examined_whether_it_is_its_turn_or_not(tmp_path: pathlib.Path) -> None:
    loop = Life(tmp_path).loop
    assert [step for step in range(1, STEPS + 1) if loop.probe_due(step)] == PROBES
    loop.config = tiny.config({"train.num_steps": 5, "log.probe_every_steps": 2})
    assert [step for step in range(1, 6) if loop.probe_due(step)] == [2, 4, 5]
