"""Which shards a split has, and which stretches of the parts' files of tokens make up each, wherever one part ends and the next begins."""

import bisect
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import records
from cdcd_jax.data.stages import Filling, Stretch
from cdcd_jax.data.streams import Stream

LEAST_SHARD, MOST_SHARD, SHARDS = 1 << 22, 1 << 28, 16  # bytes, and how many shards a split has if these bounds allow
Streams = list[dict[str, Stream]]  # of each part, by split


class Layout(NamedTuple):
    """A split's tokens, the shards that are made of them, and those after the last whole row, which are dropped."""

    tokens: int
    dropped: int
    fillings: list[Filling]

    @property
    def records(self) -> int:
        return sum(filling.num_records for filling in self.fillings)


def lay_out(config: DataConfig, vocabulary: int, streams: Streams, split: str) -> Layout:
    """Which bytes of the parts' files of tokens make up each shard of a split. Raises UserError if documents cannot be joined."""
    stretches = list(_stretches(streams, split))
    ends = list(itertools.accumulate(stretch.last - stretch.first for stretch in stretches))
    size = ends[-1] if ends else 0
    dtype = records.dtype_for(vocabulary)
    width = records.record_bytes(config.sequence_length, dtype, config.packing)
    rows = size // width
    shards = -(-rows * width // min(max(rows * width // SHARDS, LEAST_SHARD), MOST_SHARD))
    bounds = [rows * k // shards for k in range(shards + 1)] if shards else [0]
    fillings = [
        Filling(f"{split}-{k:05d}-of-{shards:05d}.array_record", split, last - first, list(_cut(stretches, ends, first * width, last * width)))
        for k, (first, last) in enumerate(itertools.pairwise(bounds))
    ]
    if config.packing == "wrap":
        return Layout(size // np.dtype(dtype).itemsize, size % width // np.dtype(dtype).itemsize, fillings)
    return Layout(sum(of_part[split].tokens for of_part in streams if split in of_part), 0, fillings)


def _stretches(streams: Streams, split: str) -> Iterator[Stretch]:
    """What of the files of tokens makes up a split: the first document as it is, the others joined to the one before."""
    first = True
    for number, of_part in enumerate(streams):
        if split in of_part:
            stream = of_part[split]
            if stream.alone and not first:
                raise UserError(
                    "the tokenizer lacks the line break or space that joins one document to the next; take another data.tokenizer_from, or "
                    'data.packing = "pack" or "pad", which join none.'
                )
            if first and stream.bare:
                yield Stretch(number, split, 0, stream.bare)
                yield Stretch(number, split, stream.bare + stream.joined, stream.bytes)
            else:
                yield Stretch(number, split, stream.bare, stream.bytes)
            first = False


def _cut(stretches: list[Stretch], ends: list[int], first: int, last: int) -> Iterator[Stretch]:
    """Bytes [first, last) of stretches laid one after the other, where they end at `ends`."""
    for i in range(bisect.bisect_right(ends, first), len(stretches)):
        number, split, begin, end = stretches[i]
        at = ends[i] - (end - begin)
        if at >= last:
            return
        yield Stretch(number, split, begin + max(first - at, 0), begin + min(last - at, end - begin))


def check_sizes(config: DataConfig, layouts: dict[str, Layout]) -> None:
    """Raises UserError where a split is too small to be used: one row to train on, two to score, of which alone there is a standard error."""
    for split, least in (("train", 1), ("valid", 2), ("test", 2)):
        tokens, rows = layouts[split].tokens, layouts[split].records
        if rows < least and (tokens or split != "test"):
            raise UserError(
                f"the {split} split of {config.source!r} has {tokens:,} tokens, fewer than {'two rows' if least == 2 else 'one row'} of "
                f"data.sequence_length = {config.sequence_length}; give more text or a shorter sequence, or change data.valid_fraction = "
                f"{config.valid_fraction} and data.test_fraction = {config.test_fraction}."
            )
