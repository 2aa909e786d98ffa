"""Prepared data as it lies in a folder: what a record holds, how a shard of records is written, and the manifest that says what is there.

    manifest.json                          written last: a folder without one is not whole
    tokenizer/                             as tokenizers.save writes it
    token_counts.json                      how often each token occurs in the records of the train split
    train-00000-of-00007.array_record      and so on, for each split

A record is a row of L token ids, little-endian. Where rows hold whole documents (packing "pack" or "pad"), L segment numbers of two bytes each
follow: 1, 2, ... in the order of the documents in the row, 0 for the padding at its end, whose ids are 0.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from jaxtyping import Int, Int64, UInt8

from cdcd_jax.config import UserError
from cdcd_jax.data import files

FORMAT = 2
MANIFEST, UNFINISHED, TOKENIZER, TOKEN_COUNTS = "manifest.json", "unfinished", "tokenizer", "token_counts.json"
RESULTS = "results-"  # how the names begin, in unfinished/, of what is handed back by machines
SEGMENT = np.dtype("<u2")
# Records are found in groups of 16: alone, the place of each would take half as much room as a short record. Packing them would save a third of the
# room and take most of the time of a read.
OPTIONS = "group_size:16,uncompressed"


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    """What a split holds. Characters are those of its text, with the line breaks that join documents where rows are cut from joined ones."""

    num_records: int
    num_tokens: int
    num_characters: int
    num_documents: int
    tokens_dropped: int  # of num_tokens, those after the last whole row
    empty_documents: int  # which are left out


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of records."""

    name: str
    split: str
    num_records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What manifest.json says. Two preparations of the same data, in the same way, have the same `data_fingerprint`."""

    format: int
    source: str
    num_records: int
    record_length: int
    num_characters: int
    tokenizer_fingerprint: str
    data_fingerprint: str
    plan: dict[str, Any]  # what decided the records, before there was a tokenizer
    dtype: str  # of the ids: "uint16" or "uint32"
    packing: str
    config: dict[str, Any]  # the config's section data
    inputs: list[dict[str, Any]]  # what was read: name (of data sets with the version), bytes and sha256
    splits: dict[str, SplitCounts]
    shards: list[Shard]


def write_manifest(folder: epath.Path, manifest: Manifest) -> None:
    """Makes the folder whole."""
    files.write_whole(folder / MANIFEST, json.dumps(sealed(dataclasses.asdict(manifest)), indent=2) + "\n")


def sealed(about: dict[str, Any]) -> dict[str, Any]:
    """What manifest.json holds, with the SHA-256 of all that stands there besides."""
    rest = {key: value for key, value in about.items() if key != "sha256"}
    return rest | {"sha256": digest_of_values(rest)}


def digest_of_values(values: Any) -> str:
    """The SHA-256 of what JSON can hold, whatever the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: epath.Path) -> Manifest:
    """The manifest of a folder that has one. Raises UserError if it is damaged, of another version, or not as it was written."""
    path = folder / MANIFEST
    try:
        with files.reading(path):
            about = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise UserError(f"{path} has the format {about['format']!r}, and this version reads {FORMAT}: prepare the text anew.")
        if about != sealed(about):
            raise UserError(f"{path} was changed after it was written: prepare the text anew.")
        del about["sha256"]
        about["splits"] = {name: SplitCounts(**counts) for name, counts in about["splits"].items()}
        about["shards"] = [Shard(**shard) for shard in about["shards"]]
        return Manifest(**about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): prepare the text anew.") from error


def dtype_for(vocab_size: int) -> str:
    """The type in which ids of such a vocabulary are kept."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def record_bytes(length: int, dtype: str, packing: str) -> int:
    """The size of a record."""
    return length * (np.dtype(dtype).itemsize + (0 if packing == "wrap" else SEGMENT.itemsize))


def to_bytes(tokens: Int[np.ndarray, "n L"], segments: Int[np.ndarray, "n L"] | None, dtype: str) -> list[bytes]:
    """Rows as records."""
    rows = _little(tokens, dtype) if segments is None else np.concatenate([_little(tokens, dtype), _little(segments, SEGMENT)], axis=1)
    return [row.tobytes() for row in rows]


def from_bytes(found: list[bytes], manifest: Manifest) -> dict[str, Int[np.ndarray, "n L"]]:
    """Records as rows: "tokens" int32 [n, L], and "segments" int32 [n, L] where there are any."""
    return split_rows(b"".join(found), manifest.record_length, manifest.dtype, manifest.packing)


def split_rows(data: bytes, length: int, dtype: str, packing: str) -> dict[str, Int[np.ndarray, "n L"]]:
    """The same from records that lie one after the other."""
    ids = np.dtype(dtype).newbyteorder("<")
    table = np.frombuffer(data, np.uint8).reshape(-1, record_bytes(length, dtype, packing))
    width = length * ids.itemsize
    batch = {"tokens": table[:, :width].copy().view(ids).astype(np.int32)}
    if packing != "wrap":
        batch["segments"] = table[:, width:].copy().view(SEGMENT).astype(np.int32)
    return batch


def _little(values: Int[np.ndarray, "n L"], dtype: Any) -> UInt8[np.ndarray, "n w"]:
    return np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<")).view(np.uint8)


def write_shard(path: epath.Path, found: Iterable[bytes]) -> None:
    """Writes records into a file on this machine's disk. Raises OSError when it cannot be written."""
    try:
        writer = ArrayRecordWriter(str(path), OPTIONS)
        for record in found:
            writer.write(record)
        writer.close()
    except RuntimeError as error:  # whatever it is, ArrayRecord raises this
        raise OSError(str(error).partition(";")[0]) from error


def read_shard(path: epath.Path, size: int = 4096) -> Iterable[list[bytes]]:
    """The records of a file on this machine's disk, in order, so many at a time. Raises UserError when one is damaged.

    ArrayRecord takes a file that was cut short for an empty one: whether it is whole, `fault` tells.
    """
    try:
        reader = ArrayRecordReader(str(path))
        for first in range(0, reader.num_records(), size):
            yield reader.read(list(range(first, min(first + size, reader.num_records()))))
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read ({str(error).partition(';')[0]}).") from error


def digest(path: epath.Path) -> tuple[int, str]:
    """The size and the SHA-256 of a file."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), found


def fault(folder: str, shard: Shard) -> str:
    """What is wrong with a shard, in words that follow its name; "" if every byte is as it was written."""
    try:
        size, found = digest(epath.Path(folder) / shard.name)
    except files.failures() as error:
        return f"cannot be read ({files.reason(error)})"
    if size != shard.bytes:
        return f"has {size:,} bytes instead of {shard.bytes:,}"
    return "" if found == shard.sha256 else "has another content than was written"


def read_token_counts(folder: epath.Path) -> Int64[np.ndarray, "V"]:
    """How often each token occurs in the records of the train split. Raises UserError when the file is damaged."""
    path = folder / TOKEN_COUNTS
    try:
        with files.reading(path):
            counts = np.array(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): prepare the text anew.") from error
    if counts.ndim != 1 or counts.dtype != np.int64 or counts.min() < 0:
        raise UserError(f"{path} is damaged: it must hold a list of counts; prepare the text anew.")
    return counts
