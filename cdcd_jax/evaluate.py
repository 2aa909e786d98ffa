"""python -m cdcd_jax.evaluate --workdir=runs/demo [--metrics=nll,entropy] [--split=valid]: numbers for a trained run, as JSON and a table."""

import json
from typing import Any

import rich.console
import rich.table
from absl import flags

from cdcd_jax import doors
from cdcd_jax.config import UserError, did_you_mean
from cdcd_jax.data import files
from cdcd_jax.evaluation import metrics
from cdcd_jax.run import Run, load_run

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run, or gs://bucket/folder.", required=True)
METRICS = flags.DEFINE_list("metrics", ["nll", "entropy"], "nll: the held-out bound; entropy: samples' token entropy and valid words.")
SPLIT = flags.DEFINE_string("split", "valid", "valid or train.")
DRAWS = flags.DEFINE_integer("draws", 4, "Noise levels for each sequence scored.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "Samples drawn for entropy.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=2**32 - 1)


def nll(run: Run) -> tuple[str, dict[str, Any]]:
    corpus = run.corpus()
    tokens, name = (corpus.valid, "nll.json") if SPLIT.value == "valid" else (corpus.train, "nll_train.json")
    return name, metrics.nll(run.model, tokens, DRAWS.value, SEED.value) | {"split": SPLIT.value}


def entropy(run: Run) -> tuple[str, dict[str, Any]]:
    samples = run.sample(NUM_SAMPLES.value, seed=SEED.value)
    return "samples.json", metrics.sample_metrics(run.model, samples, run.corpus(), SEED.value)


KNOWN = {"nll": nll, "entropy": entropy}


def main() -> int:
    if not METRICS.value:
        raise UserError(f"--metrics names no metric{did_you_mean('', KNOWN)}.")
    for name in METRICS.value:
        if name not in KNOWN:
            raise UserError(f"unknown metric {name!r}{did_you_mean(name, KNOWN)}.")
    if SPLIT.value not in ("valid", "train"):
        raise UserError(f"unknown split {SPLIT.value!r}{did_you_mean(SPLIT.value, ('valid', 'train'))}.")
    if DRAWS.value < 1:
        raise UserError(f"draws must be at least 1, not {DRAWS.value}.")
    run = load_run(WORKDIR.value)
    table = rich.table.Table("metric", "value", title=f"{WORKDIR.value} at step {run.step:,}")
    for metric in METRICS.value:
        name, values = KNOWN[metric](run)
        files.write_whole(run.workdir / "eval" / name, json.dumps(values, indent=2) + "\n")
        for key, value in values.items():
            if not isinstance(value, list):
                table.add_row(f"{metric} {key}", f"{value:.4f}" if isinstance(value, float) else str(value))
    rich.console.Console().print(table)
    return 0


if __name__ == "__main__":
    doors.run(main)
