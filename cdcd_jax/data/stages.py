"""What is done to the parts of a source, and to the shards made of them: pure functions of pickled arguments, for `map` of any kind.

survey, sample: what a tokenizer is made from. tokenise: a part's text as files of tokens, one for each split. fill: a shard from a stretch of these
files, laid one after the other, wherever that stretch lies. Each file is written whole, beside a note of what is in it; who finds the note, and the
file as the note says, has nothing left to do.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int64

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import files, records, sources, unigram
from cdcd_jax.data.streams import BATCH, Job, Stream, Writer, next_word

SAMPLED = 1024  # characters of a stretch of a sample
READ = 1 << 22  # bytes


class Survey(NamedTuple):
    """The characters of a part's train split, how often it has each character, and the splits that it has; what joins documents is before each."""

    train: int
    counts: dict[str, int]
    splits: set[str]


def survey(config: DataConfig, part: sources.Part) -> Survey:
    """Counts the characters of a part."""
    train, found, splits = 0, np.zeros(0, np.int64), set()
    for split, text, _ in _joined(config, part):
        splits.add(split)
        train += len(text) if split == "train" else 0
        counts = np.bincount(np.frombuffer(text.encode("utf-32-le"), np.uint32))
        longer, shorter = (counts, found) if len(counts) > len(found) else (found, counts)
        longer[: len(shorter)] += shorter
        found = longer
    return Survey(train, {chr(point): int(found[point]) for point in np.flatnonzero(found)}, splits)


def sample(config: DataConfig, fraction: float, numbered: tuple[int, sources.Part]) -> list[str]:
    """The text of a part's train split, in pieces, if the fraction is 1; else sentences of it, about that fraction, drawn as the part's number says.

    Stretches are drawn, and not sentences: to find all sentences of a corpus would take longer than to tokenise it.
    """
    number, part = numbered
    texts = (text for split, text, _ in _joined(config, part) if split == "train")
    if fraction >= 1:
        return list(texts)
    generator = np.random.default_rng([0, number])
    found: list[str] = []
    at, drawn = 0, SAMPLED * int(generator.geometric(fraction) - 1)  # characters before this text; where the next stretch begins
    for text in texts:
        while drawn < at + len(text):
            first, last = next_word(text, drawn - at), next_word(text, drawn + SAMPLED - at)
            found += unigram.SENTENCE.findall(text[first:last])
            if drawn + SAMPLED > at + len(text):
                break  # the stretch goes on in the next text
            drawn += SAMPLED * int(generator.geometric(fraction))
        at += len(text)
    return found


def _joined(config: DataConfig, part: sources.Part) -> Iterator[sources.Piece]:
    """Pieces of a part, gathered into texts that are long enough to be worth a call; what joins documents stands before each of them."""
    join, texts, sizes = sources.joiner(config), dict[str, list[str]](), dict[str, int]()
    for split, some, begins in sources.read_some(part, config):
        mine = texts.setdefault(split, [])
        mine += (join + text for text in some) if begins else some
        sizes[split] = sizes.get(split, 0) + sum(map(len, some))
        if sizes[split] >= BATCH:
            yield sources.Piece(split, "".join(mine), False)
            texts[split], sizes[split] = [], 0
    for split, mine in texts.items():
        if mine:
            yield sources.Piece(split, "".join(mine), False)


def tokenise(job: Job, numbered: tuple[int, sources.Part]) -> dict[str, Stream]:
    """Writes the tokens of a part: what the files hold, by split. Raises UserError as source and tokenizer do, and if they cannot be written."""
    number, part = numbered
    path = job.unfinished / "tokens" / f"{number:06d}"
    note = _note(path.with_name(f"{path.name}.json"), job.key)
    if note is not None:
        kept = {split: Stream(*about) for split, about in note.items()}
        if all(_is(stream_path(job, number, split), stream.bytes, stream.sha256) for split, stream in kept.items()):
            return kept
    writers: dict[str, Writer] = {}
    with contextlib.ExitStack() as stack:
        try:
            for split, texts, begins in sources.read_some(part, job.config):
                if split not in writers:
                    writers[split] = Writer(job, stack.enter_context(_opened(stream_path(job, number, split))))
                writers[split].add(texts, begins)
            streams = {split: writer.finish() for split, writer in writers.items()}
        except UserError as error:
            raise UserError(str(error) if part.name in str(error) else f"in {part.name}: {error}") from error
    files.write_whole(path.with_name(f"{path.name}.json"), json.dumps({"key": job.key, "content": streams}))
    return streams


def stream_path(job: Job, number: int, split: str) -> epath.Path:
    """Where the tokens of a part lie."""
    return job.unfinished / "tokens" / f"{number:06d}.{split}"


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Any]:
    with files.writing(path), files.filling(path, path.parent) as local, local.open("wb") as file:
        yield file


class Stretch(NamedTuple):
    """Bytes of a file of tokens."""

    number: int
    split: str
    first: int
    last: int


class Filling(NamedTuple):
    """A shard that is to be written: so many records, which are the bytes of these stretches, one after the other."""

    name: str
    split: str
    num_records: int
    stretches: list[Stretch]


class Filled(NamedTuple):
    """A shard that was written, and how often each token is in it, if it is of the train split."""

    shard: records.Shard
    counts: list[int]


def fill(job: Job, filling: Filling) -> Filled:
    """Writes a shard. Raises UserError if it cannot be written, or the files of tokens are not what they were."""
    note_path, path = job.unfinished / "shards" / f"{filling.name}.json", epath.Path(job.folder) / filling.name
    note = _note(note_path, job.key)
    if note is not None and _is(path, note["bytes"], note["sha256"]):
        return Filled(records.Shard(filling.name, filling.split, filling.num_records, note["bytes"], note["sha256"]), note["counts"])
    vocabulary = job.tokenizer().vocab_size
    dtype, counts = records.dtype_for(vocabulary), np.zeros(vocabulary, np.int64)
    width = records.record_bytes(job.config.sequence_length, dtype, job.config.packing)
    written = 0

    def rows() -> Iterator[bytes]:
        nonlocal written
        for data in _whole_rows(job, filling.stretches, width):
            if filling.split == "train":
                counts[:] += _counted(job.config, data, dtype, vocabulary)
            yield from (data[at : at + width] for at in range(0, len(data), width))
            written += len(data) // width

    with files.writing(path), files.filling(path, note_path.parent) as local:
        records.write_shard(local, rows())
        if written != filling.num_records:
            raise UserError(f"files of tokens in {job.unfinished} changed while they were read: remove {job.unfinished}, and begin again.")
        size, sha256 = records.digest(local)
    listed = counts.tolist() if filling.split == "train" else []
    files.write_whole(note_path, json.dumps({"key": job.key, "content": {"bytes": size, "sha256": sha256, "counts": listed}}))
    return Filled(records.Shard(filling.name, filling.split, filling.num_records, size, sha256), listed)


def _whole_rows(job: Job, stretches: list[Stretch], width: int) -> Iterator[bytes]:
    """The bytes of the stretches, in blocks of whole records."""
    rest = b""
    for number, split, first, last in stretches:
        # One that is gone is one that has changed.
        with contextlib.suppress(FileNotFoundError), stream_path(job, number, split).open("rb") as file:
            file.seek(first)
            while first < last and (data := file.read(min(READ, last - first))):
                first += len(data)
                rest += data
                whole = len(rest) // width * width
                yield rest[:whole]
                rest = rest[whole:]


def _counted(config: DataConfig, data: bytes, dtype: str, vocabulary: int) -> Int64[np.ndarray, "V"]:
    rows = records.split_rows(data, config.sequence_length, dtype, config.packing)
    tokens = rows["tokens"][rows["segments"] > 0] if "segments" in rows else rows["tokens"].ravel()
    return np.bincount(tokens, minlength=vocabulary)


def _note(path: epath.Path, key: str) -> Any:
    """The content of a note of this preparation; None if there is none."""
    try:
        about = json.loads(path.read_text())
        return about["content"] if about["key"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _is(path: epath.Path, size: int, sha256: str) -> bool:
    """Whether a file is there and as it was written."""
    try:
        return path.stat().length == size and records.digest(path)[1] == sha256
    except FileNotFoundError:
        return False
