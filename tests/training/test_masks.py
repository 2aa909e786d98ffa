"""Given tokens and noise levels are drawn as the paper says: counts, shapes, exact fractions, strata, and independence of everything else.

Seeds are fixed; a chi-square test must have p > 0.001.
"""

import itertools
import math

import jax
import numpy as np
import pytest
from jax import Array
from jax.scipy.special import gammaincc

from cdcd_jax.training import masks

P_VALUE = 1e-3


def chi_square(observed: np.ndarray, expected: np.ndarray | float) -> float:
    """The p-value of counts that are expected so."""
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(gammaincc((observed.size - 1) / 2, statistic / 2))


def key(seed: int) -> Array:
    return jax.random.key(seed)


def prefixes(mask: np.ndarray) -> np.ndarray:
    """Which rows have their given tokens first and nowhere else."""
    return (np.diff(mask.astype(int), axis=1) <= 0).all(axis=1)


@pytest.mark.parametrize("prefix_fraction", [0.0, 0.5, 1.0])
def test_the_number_of_given_tokens_is_uniform(prefix_fraction: float) -> None:
    """Over 0 .. L - 1: something is always left to generate."""
    count = np.asarray(masks.given_mask(key(1), 8000, 8, 1.0, prefix_fraction)).sum(axis=1)
    assert count.max() == 7
    assert chi_square(np.bincount(count, minlength=8), 1000.0) > P_VALUE


def test_prefixes_are_the_first_tokens() -> None:
    assert prefixes(np.asarray(masks.given_mask(key(2), 500, 12, 1.0, 1.0))).all()


def test_random_subsets_are_uniform_over_subsets() -> None:
    """All 10 pairs out of 5 positions, and all 10 triples, equally often; so no position and no neighbourhood is preferred."""
    mask = np.asarray(masks.given_mask(key(3), 20_000, 5, 1.0, 0.0))
    for size in (2, 3):
        rows = mask[mask.sum(axis=1) == size]
        found = np.array([(rows == [i in chosen for i in range(5)]).all(axis=1).sum() for chosen in itertools.combinations(range(5), size)])
        assert found.sum() == len(rows) > 3000
        assert chi_square(found, len(rows) / math.comb(5, size)) > P_VALUE


@pytest.mark.parametrize("prefix_fraction", [0.2, 0.5])
def test_prefixes_and_subsets_are_mixed(prefix_fraction: float) -> None:
    """Among rows of 5 to 11 given tokens out of 16, a random subset is a prefix once in 4,368 times or less. The kind says nothing of the number."""
    mask = np.asarray(masks.given_mask(key(4), 8000, 16, 1.0, prefix_fraction))
    rows = mask[(mask.sum(axis=1) >= 5) & (mask.sum(axis=1) <= 11)]
    is_prefix = prefixes(rows)
    assert abs(is_prefix.mean() - prefix_fraction) < 3.3 * (prefix_fraction * (1 - prefix_fraction) / len(rows)) ** 0.5 + 1e-3
    for kind in (rows[is_prefix], rows[~is_prefix]):
        assert chi_square(np.bincount(kind.sum(axis=1) - 5, minlength=7), len(kind) / 7) > P_VALUE


@pytest.mark.parametrize(("batch", "fraction", "number"), [(16, 0.25, 4), (16, 0.1, 2), (8, 1.0, 8), (8, 0.0, 0)])
def test_exactly_the_given_fraction_of_examples_has_given_tokens(batch: int, fraction: float, number: int) -> None:
    """In long sequences, where a number of zero given tokens is rare: one row in 4,096."""
    for seed in range(3):
        assert np.asarray(masks.given_mask(key(seed), batch, 4096, fraction, 0.5)).any(axis=1).sum() == number


def test_given_examples_are_tied_to_no_row() -> None:
    """Self-conditioning takes every second row: over 300 batches, given tokens fall on each row of a batch equally often."""
    draw = jax.jit(jax.vmap(lambda k: masks.given_mask(k, 8, 64, 0.5, 0.5).any(axis=1)))
    rows = np.asarray(draw(jax.random.split(key(5), 300))).sum(axis=0)
    assert chi_square(rows, rows.sum() / 8) > P_VALUE


@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_choose_marks_exactly_so_many(count: int) -> None:
    chosen = [np.asarray(masks.choose(key(seed), 16, count)) for seed in range(4)]
    assert all(marks.sum() == count and marks.dtype == bool for marks in chosen)
    assert count in (0, 16) or any((marks != chosen[0]).any() for marks in chosen)


def test_low_discrepancy_covers_every_stratum_once() -> None:
    """The batch is spread evenly over [0, 1), in random order, and differently with every key."""
    batch = 64
    orders = []
    for seed in range(6):
        u = np.asarray(masks.low_discrepancy(key(seed), batch), np.float64)
        assert u.min() >= 0 and u.max() < 1
        np.testing.assert_array_equal(np.sort(np.floor(u * batch)), np.arange(batch))
        np.testing.assert_allclose(np.diff(np.sort(u)), 1 / batch, rtol=1e-4)
        orders.append(np.argsort(u))
    assert len({tuple(order) for order in orders}) == 6
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(batch))[0, 1]) < 0.5
    first = np.asarray(jax.vmap(lambda k: masks.low_discrepancy(k, 4)[0])(jax.random.split(key(9), 2000)))
    assert chi_square(np.bincount((first * 10).astype(int), minlength=10), 200.0) > P_VALUE


@pytest.mark.parametrize(("fraction", "own"), [(0.0, 0), (0.25, 4), (0.75, 12)])
def test_exactly_the_position_fraction_has_a_level_for_each_position(fraction: float, own: int) -> None:
    batch, length = 16, 10
    for seed in range(3):
        u, whole = (np.asarray(a) for a in masks.warped_times(key(seed), batch, length, fraction))
        assert u.shape == (batch, length) and (~whole).sum() == own
        assert (u[whole] == u[whole][:, :1]).all()
        assert len(np.unique(u[whole][:, 0])) == batch - own
        for row in u[~whole].astype(np.float64):  # each sequence's own levels are spread evenly, in random order
            np.testing.assert_allclose(np.diff(np.sort(row)), 1 / length, rtol=1e-4)
            assert 0 <= row.min() and row.max() < 1
        assert len({tuple(np.argsort(row)) for row in u[~whole]}) == own


def test_without_levels_per_position_the_whole_batch_is_stratified() -> None:
    u, whole = masks.warped_times(key(0), 32, 4, 0.0)
    assert np.asarray(whole).all()
    np.testing.assert_array_equal(np.sort(np.floor(np.asarray(u)[:, 0] * 32)), np.arange(32))
