"""How fast records become batches."""

import contextlib
import dataclasses
import json
import os
import string
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from benchmarks.ratios import Result
from cdcd_jax.config import Config, DataConfig
from cdcd_jax.data import pipeline, preparation

ROWS = 60_000  # of each kind, about: many times what any cache of a processor holds
# name: what it changes in the config
KINDS: dict[str, dict[str, Any]] = {"wrap": {}, "pack": {"packing": "pack"}, "pad": {"packing": "pad"}, "pad_insertion": {"pad_insertion": 0.1}}


def loader_tokens_per_second(config: Config, repeats: int, num_steps: int) -> Result:
    """Tokens that `pipeline.batches` makes of ArrayRecord files in a second, on one core of this machine; the slowest kind of rows counts.

    The records are of the config's length, prepared from random letters in documents of one to twice as many, and lie in the system's cache. A repeat
    is num_steps batches of the config's size. Every position of a row counts as a token, padding and PAD included, since each is read and moved.
    """
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = epath.Path(name)
        _write_documents(folder / "documents.jsonl", config.data.sequence_length)
        for kind, changes in KINDS.items():
            data = DataConfig(source=str(folder / "documents.jsonl"), tokenizer="char", sequence_length=config.data.sequence_length, **changes)
            preparation.prepare(data, folder / kind)
            corpus = pipeline.load_corpus(dataclasses.replace(data, source=str(folder / kind)), share=(0, 1))
            found[kind] = _speed(corpus, config, repeats, num_steps)
    details = {"steps": num_steps, "repeats": repeats, "batch_size": config.train.batch_size, "length": config.data.sequence_length}
    return Result(min(found.values()), "tokens/s", "one core, records in the system's cache", found | details)


def _write_documents(path: epath.Path, length: int) -> None:
    generator = np.random.default_rng(0)
    letters = np.frombuffer(string.ascii_lowercase.encode(), np.uint8)
    sizes = generator.integers(1, 2 * length, ROWS)
    texts = (generator.choice(letters, size).tobytes().decode() for size in sizes)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def _speed(corpus: pipeline.Corpus, config: Config, repeats: int, num_steps: int) -> float:
    """The most tokens per second of any repeat: whatever else the machine does only takes from it."""
    best = 0.0
    with _one_core():
        batches = pipeline.batches(corpus.train, config.train.batch_size, config.train.seed, 0, 1, corpus.pads)
        for _ in range(repeats + 1):  # the first opens the shards
            began = time.perf_counter()
            tokens = sum(next(batches)["tokens"].size for _ in range(num_steps))
            best = max(best, tokens / (time.perf_counter() - began))
        batches.close()
    return best


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """Keeps this thread, and those that it starts, on one core, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
