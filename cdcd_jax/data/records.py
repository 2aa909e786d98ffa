"""The format of prepared data: what a record holds, and what the manifest says of a folder. Stands in for the real one until that is merged."""

import dataclasses
import json
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath
from jaxtyping import Int

from cdcd_jax.config import UserError

FORMAT = 1
MANIFEST, UNFINISHED, TOKENIZER, TOKEN_COUNTS = "manifest.json", "unfinished", "tokenizer", "token_counts.json"


@dataclasses.dataclass(frozen=True)
class SplitCounts:
    num_records: int
    num_tokens: int
    num_characters: int
    num_documents: int
    tokens_dropped: int
    empty_documents: int


@dataclasses.dataclass(frozen=True)
class Shard:
    name: str
    split: str
    num_records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    format: int
    source: str
    num_records: int
    record_length: int
    num_characters: int
    tokenizer_fingerprint: str
    data_fingerprint: str
    dtype: str
    packing: str
    config: dict[str, Any]
    inputs: list[dict[str, Any]]
    splits: dict[str, SplitCounts]
    shards: list[Shard]


def read_manifest(folder: epath.Path) -> Manifest:
    """The manifest of a folder that has one. Raises UserError if it is damaged."""
    path = folder / MANIFEST
    try:
        about = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise UserError(f"{path} has the format {about['format']!r}, and this version reads {FORMAT}: prepare the text anew.")
        about["splits"] = {name: SplitCounts(**counts) for name, counts in about["splits"].items()}
        about["shards"] = [Shard(**shard) for shard in about["shards"]]
        manifest = Manifest(**about)
        for name, counts in manifest.splits.items():
            if sum(shard.num_records for shard in manifest.shards if shard.split == name) != counts.num_records:
                raise ValueError(f"its shards do not have the {counts.num_records} records of the split {name}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): prepare the text anew.") from error
    return manifest


def to_bytes(tokens: Int[np.ndarray, "n L"], segments: Int[np.ndarray, "n L"] | None, dtype: str) -> list[bytes]:
    """Rows as records."""
    rows = tokens.astype(np.dtype(dtype).newbyteorder("<"))
    if segments is None:
        return [row.tobytes() for row in rows]
    return [row.tobytes() + of.tobytes() for row, of in zip(rows, segments.astype("<u2"), strict=True)]


def from_bytes(found: list[bytes], manifest: Manifest) -> dict[str, np.ndarray]:
    """Records as rows: "tokens" int32 [n, L], and "segments" where there are any."""
    width = manifest.record_length * np.dtype(manifest.dtype).itemsize
    table = np.frombuffer(b"".join(found), np.uint8).reshape(len(found), -1)
    batch = {"tokens": table[:, :width].copy().view(np.dtype(manifest.dtype).newbyteorder("<")).astype(np.int32)}
    if manifest.packing != "wrap":
        batch["segments"] = table[:, width:].copy().view("<u2").astype(np.int32)
    return batch


def write_shard(path: epath.Path, found: list[bytes]) -> None:
    """A shard of these records."""
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:32,uncompressed")
    for record in found:
        writer.write(record)
    writer.close()
