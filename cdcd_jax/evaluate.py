"""python -m cdcd_jax.evaluate --workdir=runs/demo [--metrics=nll,entropy] [--split=valid] [--source=PLACE]: numbers of a run, in JSON."""

import json
from typing import Any

import rich.console
import rich.table
from absl import flags

from cdcd_jax import doors
from cdcd_jax.config import UserError, did_you_mean
from cdcd_jax.data import files, pipeline
from cdcd_jax.data.splits import SPLITS
from cdcd_jax.evaluation import metrics
from cdcd_jax.run import Run, load_run

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run, or gs://bucket/folder.", required=True)
METRICS = flags.DEFINE_list("metrics", ["nll", "entropy"], "nll: the held-out bound; entropy: samples' token entropy and valid words.")
SOURCE = flags.DEFINE_string("source", None, "Where the run's text or prepared folder lies now (default: where it was trained).")
SPLIT = flags.DEFINE_string("split", "valid", "train, valid or test: what nll scores.")
NUM_SEQUENCES = flags.DEFINE_integer("num_sequences", 0, "How many sequences of it, spread evenly over the split; 0: all.", lower_bound=0)
DRAWS = flags.DEFINE_integer("draws", 4, "Noise levels for each sequence scored.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "Samples drawn for entropy.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=2**32 - 1)


def nll(run: Run) -> tuple[str, dict[str, Any]]:
    split, splits = SPLIT.value, run.corpus().splits
    if split not in splits:
        raise UserError(f"the corpus of {run.workdir} has no split {split!r}, only {' and '.join(splits)}.")
    rows = pipeline.Spread(splits[split].rows, NUM_SEQUENCES.value) if NUM_SEQUENCES.value else splits[split].rows
    name = "nll.json" if split == "valid" else f"nll_{split}.json"
    return name, metrics.nll(run.model, rows, DRAWS.value, SEED.value) | {"split": split}


def entropy(run: Run) -> tuple[str, dict[str, Any]]:
    samples = run.sample(NUM_SAMPLES.value, seed=SEED.value)
    return "samples.json", metrics.sample_metrics(run.model, samples, run.corpus(), SEED.value)


UNITS = {
    "bits_per_char": "bits", "bits_per_char_stderr": "bits", "nats_per_token": "nats", "stderr": "nats per token", "reconstruction": "nats per token",
    "prior": "nats per token", "linearity": "of the range", "entropy": "nats", "entropy_heldout": "nats", "valid_word_rate": "of the words",
    "valid_word_rate_heldout": "of the words", "valid_word_rate_unigram": "of the words", "nfe": "denoiser calls a sample",
}  # fmt: skip
KNOWN = {"nll": nll, "entropy": entropy}


def main() -> int:
    if not METRICS.value:
        raise UserError(f"--metrics names no metric{did_you_mean('', KNOWN)}.")
    for name in METRICS.value:
        if name not in KNOWN:
            raise UserError(f"unknown metric {name!r}{did_you_mean(name, KNOWN)}.")
    if SPLIT.value not in SPLITS:
        raise UserError(f"unknown split {SPLIT.value!r}{did_you_mean(SPLIT.value, SPLITS)}.")
    if DRAWS.value < 1:
        raise UserError(f"draws must be at least 1, not {DRAWS.value}.")
    run = load_run(WORKDIR.value, SOURCE.value)
    table = rich.table.Table("metric", "value", "unit", title=f"{WORKDIR.value} at step {run.step:,}")
    for metric in METRICS.value:
        name, values = KNOWN[metric](run)
        files.write_whole(run.workdir / "eval" / name, json.dumps(values, indent=2) + "\n")
        for key, value in values.items():
            if not isinstance(value, list):
                table.add_row(f"{metric} {key}", f"{value:.4f}" if isinstance(value, float) else str(value), UNITS.get(key, ""))
    rich.console.Console().print(table)
    return 0


if __name__ == "__main__":
    doors.run(main)
