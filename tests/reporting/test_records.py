"""Reading a workdir: the numbers of a run of several lives, and one sentence for every kind of damage."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from cdcd_jax.config import UserError
from cdcd_jax.reporting import page, records


def test_a_whole_workdir_is_read(new_run: pathlib.Path) -> None:
    run = records.load(str(new_run))
    assert list(run.samples) == ["unconditional", "prompt", "template"]
    assert run.metrics[-1]["step"] == 500 and len(run.telemetry) == 2 and run.config is not None and run.config.train.num_steps == 500
    numbers = page.summary(run)
    assert numbers["nll"] == {"step": 500, "bits_per_char": 2.0964, "bits_per_char_stderr": 0.0177, "nats_per_token": 3.7051, "stderr": 0.0312,
                              "linearity": 0.031}  # fmt: skip
    assert numbers["training_seconds"] == pytest.approx(500 * 0.092), "both lives of the run count"
    assert numbers["valid_word_rate_unigram"] == 0.528
    facts = {fact.name: fact.value for fact in page.facts(run)}
    assert facts["bits per character"] == "2.096 ± 0.018" and facts["valid words"] == "81.2%" and facts["entropy linearity"] == "3.1%"
    assert facts["goodput"] == "75.0%"
    [went] = [fact.note for fact in page.facts(run) if fact.name == "goodput"]
    assert went.endswith("steps 46 s, stopped, or lost to restarts 20 s, compiling 12 s, starting 5 s, evaluating 3 s, waiting for checkpoints 1 s")
    assert facts["training steps"] == "500 of 500" and facts["training time"] == "0 min 46 s"


@pytest.mark.parametrize(("seconds", "total"), [([1.0, 2.0], 2.0), ([1.0, 2.0, 0.5, 4.0], 6.0), ([3.0, 1.0, 1.0], 4.0), ([1.0, float("nan")], 1.0)])
def test_training_time_is_over_all_lives(seconds: list[float], total: float) -> None:
    assert records.training_seconds([{"seconds": value} for value in seconds]) == total


def change(name: str, edit: Callable[[Any], Any]) -> Callable[[pathlib.Path], None]:
    """A damage: the first line's (or the whole file's) object, edited."""

    def damage(run: pathlib.Path) -> None:
        lines = (run / name).read_text(encoding="utf-8").splitlines() if name.endswith("l") else [(run / name).read_text(encoding="utf-8")]
        lines[0] = json.dumps(edit(json.loads(lines[0])))
        (run / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return damage


def torn(run: pathlib.Path) -> None:
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + '{"step": 510, "lo\n')


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {name: value for name, value in record.items() if name != key}


def with_frame(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: record | {"frames": [record["frames"][0] | values, *record["frames"][1:]]}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "metrics.jsonl").unlink(), r"has no metrics yet: train first, as with python -m cdcd_jax.train --config=configs/demo.py"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "has no metrics yet"),
        (torn, r"metrics.jsonl line 51 is not JSON .*mend or remove it"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00"), r"metrics.jsonl is not UTF-8 text \(byte 0\)"),
        (change("metrics.jsonl", without("loss")), "metrics.jsonl line 1 has no 'loss', which must be a number"),
        (change("metrics.jsonl", lambda record: record | {"loss": "low"}), "has 'low' as 'loss', which must be a number"),
        (change("metrics.jsonl", lambda record: record | {"step": None}), "has None as 'step', which must be a whole number"),
        (change("metrics.jsonl", lambda record: [1, 2]), "where a JSON object"),
        (change("telemetry.jsonl", lambda record: record | {"sigma": record["sigma"][1:]}), "telemetry.jsonl at step 250 has lists of wrong lengths"),
        (change("telemetry.jsonl", lambda record: record | {"embedding_norm_quantiles": [1.0]}), "lists of wrong lengths"),
        (change("telemetry.jsonl", lambda record: record | {"u": []}), "must be a list of numbers"),
        (change("samples/prompt.jsonl", without("text")), "prompt.jsonl line 1 has no 'text'"),
        (change("samples/trajectory.json", without("frames")), "trajectory.json has no 'frames'"),
        (change("samples/trajectory.json", with_frame(entropy=[1.0])), "trajectory.json frame 0 does not hold"),
        (change("samples/trajectory.json", with_frame(u="half")), "trajectory.json frame 0 does not hold"),
        (change("samples/trajectory.json", lambda record: record | {"frames": [1]}), "trajectory.json frame 0 does not hold"),
        (change("samples/trajectory.json", lambda record: record | {"pieces": ["a"]}), "all of its 1 positions"),
        (change("eval/nll.json", lambda record: record | {"stderr": "wide"}), "nll.json has 'wide' as 'stderr'"),
        (lambda run: (run / "eval/samples.json").write_text("{"), "samples.json is not JSON"),
        (change("config.json", lambda record: record | {"sed": 1}), "config.json: unknown config key 'sed'"),
    ],
)
def test_damage_is_one_sentence(new_run: pathlib.Path, damage: Callable[[pathlib.Path], None], said: str) -> None:
    damage(new_run)
    with pytest.raises(UserError, match=said) as caught:
        page.write(new_run)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert not (new_run / "report.html").exists()


def test_a_missing_workdir_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="there is no workdir '.*/nowhere'"):
        records.load(tmp_path / "nowhere")


def test_a_line_that_is_still_being_written_is_left_out(new_run: pathlib.Path) -> None:
    whole = len(records.load(new_run).metrics)
    (new_run / "metrics.jsonl").write_text((new_run / "metrics.jsonl").read_text() + '{"step": 510, "lo')
    assert len(records.load(new_run).metrics) == whole
