"""python -m cdcd_jax.prepare --config=configs/c4.py --output=DIR [--workers=4] [--beam="--runner=DataflowRunner ..."]: text into records."""

import contextlib
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags

from cdcd_jax import doors, interrupts
from cdcd_jax.config import UserError, from_dict
from cdcd_jax.data import files, preparation, workers
from cdcd_jax.data.records import TOKENIZER, UNFINISHED, Manifest
from cdcd_jax.training.progress import progress

CONFIG = config_flags.DEFINE_config_file("config", None, "The config, a file of configs/; its section data counts. Any key: --config.data.key=value.")
OUTPUT = flags.DEFINE_string("output", None, "A new folder, or gs://bucket/folder, for records, tokenizer and manifest; what was begun goes on.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes that work; 0: one for each core.", lower_bound=0)
BEAM = flags.DEFINE_string("beam", None, "Work by Apache Beam instead, with these flags of its own, --runner=... among them.")
flags.mark_flags_as_required(["config", "output"])
COUNTS = {
    "documents": "num_documents", "left out, empty": "empty_documents", "characters": "num_characters", "tokens": "num_tokens",
    "dropped at the end": "tokens_dropped", "records": "num_records",
}  # fmt: skip


def watch(what: str, total: int, results: Iterable[Any]) -> Iterator[Any]:
    """Shows how many results of a stage have come."""
    with progress(total, what) as bar:
        for done, result in enumerate(results, start=1):
            bar.update(done)
            yield result


def work(output: Any) -> contextlib.AbstractContextManager[workers.Map]:
    """The map that the flags ask for. Raises UserError for two that exclude each other."""
    if BEAM.value is None:
        return workers.pool(WORKERS.value or workers.cores())
    if WORKERS.present:
        raise UserError(f"--workers={WORKERS.value} counts processes of this machine, and --beam works with its runner's: give one of them alone.")
    from cdcd_jax.data import beam  # an optional package

    return contextlib.nullcontext(beam.mapping(shlex.split(BEAM.value), output))


def show(manifest: Manifest, seconds: float | None) -> None:
    """What was prepared, a column a split, whatever the width of the terminal; and how to train on it. seconds: if all was done in them."""
    splits = manifest.splits.values()
    rows = [(name, [f"{getattr(about, key):,}" for about in splits]) for name, key in COUNTS.items()]
    rows.append(("characters per token", [f"{about.num_characters / about.num_tokens:.2f}" for about in splits]))
    width = max(len(cell) for _, cells in rows for cell in cells)
    for name, cells in [("", list(manifest.splits)), *rows]:
        print(f"{name:<20}", *(cell.rjust(width) for cell in cells), sep="  ")
    tokens = sum(about.num_tokens for about in splits)
    speed = f" in {seconds:,.1f} s, {tokens / seconds:,.0f} a second" if seconds else ", some of them finished before"
    print(f"{tokens:,} tokens{speed}; train on them with")
    print("  python -m cdcd_jax.train", *map(shlex.quote, training_flags(manifest)))


def training_flags(manifest: Manifest) -> list[str]:
    """The flags that train on what was prepared: those given, in whatever form, but where the tokenizer was taken from, which the folder has."""
    (name, given), asked = doors.given_config(), from_dict(CONFIG.value).data
    values = {key: value for key, value in given.items() if key not in ("data.source", "data.tokenizer_from")}
    values |= {f"data.{key}": manifest.config[key] for key in ("tokenizer", "vocab_size") if manifest.config[key] != getattr(asked, key)}
    values["data.source"] = OUTPUT.value
    return [f"--config={name}", "--workdir=runs/NAME", *(f"--config.{key}={values[key]}" for key in values)]


def main() -> int:
    interrupts.say("interrupted; the same command goes on from there.")
    began, config, output = time.monotonic(), from_dict(CONFIG.value).data, files.locate(OUTPUT.value)
    with files.writing(output):
        anew = not (output / UNFINISHED / TOKENIZER).exists()  # which is the first that is finished
    with work(output) as run:
        manifest, was_whole = preparation.prepare(config, output, run, watch, lambda sentence: print(sentence, file=sys.stderr))
    if was_whole:
        print(f"{output} is complete: {manifest.num_records:,} records, every one of them as it was written.")
    else:
        show(manifest, time.monotonic() - began if anew else None)
    return 0


if __name__ == "__main__":
    doors.run(main)
