"""python -m cdcd_jax.prepare --config=configs/c4.py --output=DIR [--workers=4] [--beam="--runner=DataflowRunner ..."]: text into records."""

import contextlib
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import rich.console
import rich.table
from absl import flags
from ml_collections import config_flags

from cdcd_jax import doors
from cdcd_jax.config import from_dict
from cdcd_jax.data import files, preparation, workers
from cdcd_jax.data.records import Manifest
from cdcd_jax.training.progress import progress

CONFIG = config_flags.DEFINE_config_file("config", None, "The config, a file of configs/; its section data counts. Any key: --config.data.key=value.")
OUTPUT = flags.DEFINE_string("output", None, "A new folder, or gs://bucket/folder, for records, tokenizer and manifest; what was begun goes on.")
WORKERS = flags.DEFINE_integer("workers", 0, "Processes that work; 0: one for each core.", lower_bound=0)
BEAM = flags.DEFINE_string("beam", None, "Work by Apache Beam instead, with these flags of its own, --runner=... among them.")
flags.mark_flags_as_required(["config", "output"])


def watch(what: str, total: int, results: Iterable[Any]) -> Iterator[Any]:
    """Shows how many results of a stage have come."""
    with progress(total, what) as bar:
        for done, result in enumerate(results, start=1):
            bar.update(done)
            yield result


def work(output: Any) -> contextlib.AbstractContextManager[workers.Map]:
    """The map that the flags ask for."""
    if BEAM.value is None:
        return workers.pool(WORKERS.value or workers.cores())
    from cdcd_jax.data import beam  # an optional package

    return contextlib.nullcontext(beam.mapping(shlex.split(BEAM.value), output))


def show(manifest: Manifest, seconds: float) -> None:
    """A table of what was prepared, and how to train on it."""
    table = rich.table.Table("split", "documents", "left out, empty", "characters", "tokens", "characters per token", "records", title=OUTPUT.value)
    for split, about in manifest.splits.items():
        counts = [about.num_documents, about.empty_documents, about.num_characters, about.num_tokens]
        table.add_row(split, *(f"{n:,}" for n in counts), f"{about.num_characters / about.num_tokens:.2f}", f"{about.num_records:,}")
    rich.console.Console().print(table)
    tokens = sum(about.num_tokens for about in manifest.splits.values())
    print(f"{tokens:,} tokens in {seconds:,.1f} s, {tokens / seconds:,.0f} a second; train on them with")
    print("  python -m cdcd_jax.train", *map(shlex.quote, training_flags(manifest)))


def training_flags(manifest: Manifest) -> list[str]:
    """The flags that train on what was prepared: those given, in whatever form, and of the tokenizer's what its folder decided.

    The folder has its tokenizer, so where that was taken from is left out.
    """
    flag, asked = flags.FLAGS["config"], from_dict(CONFIG.value).data
    values = {key: value for key, value in config_flags.get_override_values(flag).items() if key not in ("data.source", "data.tokenizer_from")}
    values |= {f"data.{key}": manifest.config[key] for key in ("tokenizer", "vocab_size") if manifest.config[key] != getattr(asked, key)}
    values["data.source"] = OUTPUT.value
    return [f"--config={config_flags.get_config_filename(flag)}", "--workdir=runs/NAME", *(f"--config.{key}={values[key]}" for key in values)]


def main() -> int:
    began, config, output = time.monotonic(), from_dict(CONFIG.value).data, files.locate(OUTPUT.value)
    with work(output) as run:
        manifest, was_whole = preparation.prepare(config, output, run, watch, lambda sentence: print(sentence, file=sys.stderr))
    if was_whole:
        print(f"{output} is complete: {manifest.num_records:,} records, every one of them as it was written.")
    else:
        show(manifest, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    doors.run(main)
