"""PAD tokens inserted at random into training rows, from which a model learns texts of any length (Strudel et al. 2022).

A sample of so many tokens is then a text of fewer: decoding leaves PAD out. Rows that are scored have none.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Pads(NamedTuple):
    """What is inserted: the id of PAD, and its share of the tokens, below 1."""

    id: int
    share: float


def insert(batch: dict[str, np.ndarray], pads: Pads, seed: int, first: int) -> dict[str, np.ndarray]:
    """The batch with PAD at each position by chance, independently; the rest of the row moves right, and what overflows is cut off.

    The rows are those at positions first, first + 1, ... of the endless stream, and what is drawn for one depends on nothing but its position and the
    seed. PAD belongs to the document whose token follows it; there is none in padding, which is no document.
    """
    rows, length = batch["tokens"].shape
    draws = -(-length // 4)  # for a row: the generator counts in fours
    drawn = np.random.Philox(key=seed, counter=first * draws).random_raw(rows * draws * 4).reshape(rows, -1)[:, :length]
    pad = drawn < np.uint64(pads.share * 2.0**64)
    following = np.minimum(np.cumsum(~pad, axis=1) - ~pad, length - 1)  # the place that a token comes from, or that the next one after PAD comes from
    moved = {name: np.take_along_axis(values, following, axis=1) for name, values in batch.items()}
    if "segments" in moved:
        pad &= moved["segments"] > 0
    return moved | {"tokens": np.where(pad, np.int32(pads.id), moved["tokens"])}


def with_pads(counts: Int[np.ndarray, "V"], pads: Pads) -> Int[np.ndarray, "V+1"]:
    """How often each token occurs in rows with PAD in them, whose id is the next after all others."""
    return np.append(counts, round(counts.sum() * pads.share / (1.0 - pads.share)))
