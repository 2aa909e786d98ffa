"""What preparing data costs, against SentencePiece's own batch encoding, with one worker and with two, and in memory as the corpus grows.

Each measurement prepares the text of the config's source, with the config's tokenizer, which is made once and then given (data.tokenizer_from): to
make one takes its own time, once, and none of it grows with the corpus. What is prepared lies in the system's cache.
"""

import contextlib
import dataclasses
import functools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from benchmarks.ratios import Result
from cdcd_jax.config import Config, DataConfig
from cdcd_jax.data import preparation, sources, tokenizers, workers

SHORT = re.compile(r"\S.{132,}?(?=\s)|\S.*", re.DOTALL)  # documents of 137 characters, as LM1B's sentences are on average
DOCUMENTS = 256  # that SentencePiece is given at a time
CHARACTERS = 1 << 20  # the same of a long text
TIMES = 10
# Prepares with two workers, in a process without JAX: the peak memory of this process and of the larger worker, in bytes.
PEAKS = """
import json, resource, sys
from etils import epath
from cdcd_jax.config import DataConfig
from cdcd_jax.data import preparation, workers
with workers.pool(2) as run:
    preparation.prepare(DataConfig(**json.loads(sys.argv[1])), epath.Path(sys.argv[2]), run)
print([resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)])
"""


@contextlib.contextmanager
def corpora(config: Config, copies: int) -> Iterator[tuple[epath.Path, DataConfig, list[str]]]:
    """A folder with the config's text, so many copies of it, as long.txt and short.jsonl; how to prepare it; and its short documents."""
    documents = SHORT.findall("".join(sources.load_texts(config.data).values()))
    text = "\n".join(documents)  # so that the tokenizer knows what joins documents
    documents *= copies
    with tempfile.TemporaryDirectory() as name:
        folder = epath.Path(name)
        tokenizers.train(config.data, text, text).save(folder / "tokenizer")
        (folder / "long.txt").write_text(text * copies)
        with (folder / "short.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": document}) + "\n" for document in documents)
        data = dataclasses.replace(config.data, alphabet="text", text_key="text", tokenizer_from=str(folder / "tokenizer"), packing="wrap")
        yield folder, data, documents


def once(config: DataConfig, folder: epath.Path, run: workers.Map = map) -> tuple[float, float]:
    """(wall time, processor time of this process) of preparing, into a folder that is removed."""
    began, cpu_began = time.perf_counter(), time.process_time()
    preparation.prepare(config, folder, run)
    seconds = time.perf_counter() - began, time.process_time() - cpu_began
    folder.rmtree()
    return seconds


def _ratio(config: Config, repeats: int, copies: int, name: str) -> Result:
    found: dict[str, list[float]] = {"seconds": [], "cpu": [], "reference_seconds": [], "reference_cpu": []}
    with corpora(config, copies) as (folder, data, documents):
        data = dataclasses.replace(data, source=str(folder / name))
        tokenizer = tokenizers.named(data)
        assert isinstance(tokenizer, tokenizers.SentencePieceTokenizer)
        text = (folder / "long.txt").read_text()
        if name == "long.txt":
            batches = [[text[at : at + CHARACTERS]] for at in range(0, len(text), CHARACTERS)]
        else:
            batches = [documents[at : at + DOCUMENTS] for at in range(0, len(documents), DOCUMENTS)]
        for _ in range(repeats):
            wall, cpu = once(data, folder / "out")
            found["seconds"].append(wall)
            found["cpu"].append(cpu)
            began, cpu_began = time.perf_counter(), time.process_time()
            for batch in batches:
                tokenizer.processor.encode(batch, num_threads=1)
            found["reference_seconds"].append(time.perf_counter() - began)
            found["reference_cpu"].append(time.process_time() - cpu_began)
    middle = {key: statistics.median(values) for key, values in found.items()}
    details = middle | {"characters": len(text), "documents": 1 if name == "long.txt" else len(documents), "repeats": repeats}
    details["characters_per_second"] = len(text) / middle["seconds"]
    return Result(middle["cpu"] / middle["reference_cpu"], "ratio of processor time", "SentencePiece's batch encoding, one thread", details)


def prepare_ratio(config: Config, repeats: int, copies: int) -> Result:
    """Preparing one long text in one process, end to end, over SentencePiece encoding it a million characters at a time.

    In it: listing, hashing, reading, tokenising, the files of tokens, cutting rows, ArrayRecord, their digests, the manifest.
    """
    return _ratio(config, repeats, copies, "long.txt")


def prepare_short_ratio(config: Config, repeats: int, copies: int) -> Result:
    """The same for JSON lines of some hundred characters each, which SentencePiece is given as lists of 256 texts, already read."""
    return _ratio(config, repeats, copies, "short.jsonl")


def prepare_workers_ratio(config: Config, repeats: int, copies: int) -> Result:
    """Wall time with two workers over that with one, processes both; their start, a second once, is not in it."""
    times: dict[int, list[float]] = {1: [], 2: []}
    with corpora(config, copies) as (folder, data, _), workers.pool(1, own=True) as one, workers.pool(2) as two:
        data = dataclasses.replace(data, source=str(folder / "long.txt"))
        for _ in range(repeats):
            for number, run in ((1, one), (2, two)):
                times[number].append(once(data, folder / "out", run)[0])
        characters = len((folder / "long.txt").read_text())
    seconds = {number: statistics.median(values) for number, values in times.items()}
    details = {"seconds": seconds[2], "reference_seconds": seconds[1], "characters": characters, "repeats": repeats}
    return Result(seconds[2] / seconds[1], "ratio of wall time", "one worker", details)


def prepare_memory_ratio(config: Config, repeats: int, copies: int) -> Result:
    """The peak memory of the largest process with ten times the text over that with the text, tokenizer's training included, with two workers."""
    peaks: dict[str, list[int]] = {}
    with corpora(config, copies) as (folder, data, _):
        text = (folder / "long.txt").read_text()
        with (folder / "ten.txt").open("w") as file:
            for _ in range(TIMES):
                file.write(text)
        for name in ["long.txt", "ten.txt"] * repeats:
            asked = dataclasses.asdict(dataclasses.replace(data, source=str(folder / name), tokenizer_from=""))
            command = [sys.executable, "-c", PEAKS, json.dumps(asked), str(folder / "out")]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            (folder / "out").rmtree()
            peaks.setdefault(name, []).append(json.loads(done.stdout))
        characters = len(text)
    small, large = (functools.reduce(lambda a, b: [max(*pair) for pair in zip(a, b, strict=True)], peaks[name]) for name in ("long.txt", "ten.txt"))
    details: dict[str, Any] = {"characters": characters, "times": TIMES, "bytes": max(large), "reference_bytes": max(small)}
    details |= {"driver_bytes": large[0], "worker_bytes": large[1], "reference_driver_bytes": small[0], "reference_worker_bytes": small[1]}
    return Result(max(large) / max(small), "ratio of bytes", f"a text of {characters:,} characters", details)
