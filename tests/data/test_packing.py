"""Documents into rows: nothing is lost, nothing lies over anything else, and few positions stay empty."""

import numpy as np
import pytest

from cdcd_jax.data import packing


@pytest.mark.parametrize(
    "lengths, stretches",
    [
        ([], []),
        ([0], []),
        ([3, 4, 5], [3, 4, 4, 1]),
        ([8, 0, 1, 0], [4, 4, 1]),
        ([9], [4, 4, 1]),
    ],
)
def test_long_documents_are_cut_into_full_rows_and_a_rest(lengths, stretches):
    assert packing.stretches(np.array(lengths, np.int64), 4).tolist() == stretches


def check(lengths: np.ndarray, places: packing.Places, length: int) -> np.ndarray:
    """Fills rows with tokens that tell what they are, and finds them again; returns the segments."""
    tokens = np.arange(1, lengths.sum() + 1)
    rows, segments = packing.fill(tokens, lengths, places, length)
    assert rows.shape == segments.shape == (places.number, length)
    assert sorted(rows[segments > 0].tolist()) == tokens.tolist() and not rows[segments == 0].any()
    for row, column, segment, size, end in zip(*places[:3], lengths, np.cumsum(lengths), strict=True):
        assert rows[row, column : column + size].tolist() == list(range(end - size + 1, end + 1))
        assert set(segments[row, column : column + size].tolist()) == {segment}
    for row in segments:  # 1, 2, ... from the left, then padding
        inside = row[row > 0]
        assert row[: len(inside)].all() and np.isin(np.diff(inside, prepend=0), (0, 1)).all()
    return segments


@pytest.mark.parametrize("seed", range(3))
def test_documents_are_packed_into_few_rows(seed):
    lengths = np.random.default_rng(seed).integers(1, [41, 65][seed % 2], 500)
    places = packing.best_fit(lengths, 64)
    segments = check(lengths, places, 64)
    assert places.number <= 1.03 * max(lengths.sum() / 64, (lengths > 32).sum())  # fewer are not possible
    assert segments.max() > 2
    assert check(lengths, packing.one_a_row(lengths), 64).max() == 1


def test_odd_documents():
    for lengths, rows in (([], 0), ([4], 1), ([4, 4], 2), ([1, 1, 1, 1, 1], 2), ([3, 2, 1, 2], 2)):
        places = packing.best_fit(np.array(lengths, np.int64), 4)
        assert places.number == rows
        check(np.array(lengths, np.int64), places, 4)
