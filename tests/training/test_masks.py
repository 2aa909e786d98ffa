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


def drawn(seed: int, prefix_fraction: float) -> np.ndarray:
    """8,000 masks of 8 positions: one shape for many tests, so that it is compiled once."""
    return np.asarray(masks.given_mask(key(seed), 8000, 8, 1.0, prefix_fraction))


@pytest.mark.parametrize("prefix_fraction", [0.0, 0.5, 1.0])
def test_the_number_of_given_tokens_is_uniform(prefix_fraction: float) -> None:
    """Over 0 .. L - 1: something is always left to generate."""
    count = drawn(1, prefix_fraction).sum(axis=1)
    assert count.max() == 7
    assert chi_square(np.bincount(count, minlength=8), 1000.0) > P_VALUE


def test_prefixes_are_the_first_tokens() -> None:
    assert prefixes(drawn(2, 1.0)).all()


def test_random_subsets_are_uniform_over_subsets() -> None:
    """All 28 pairs of the 8 positions, and all 56 triples, equally often; so no position and no neighbourhood is preferred."""
    mask = drawn(3, 0.0)
    for size in (2, 3):
        rows = mask[mask.sum(axis=1) == size]
        found = np.array([(rows == [i in chosen for i in range(8)]).all(axis=1).sum() for chosen in itertools.combinations(range(8), size)])
        assert found.sum() == len(rows) > 800
        assert chi_square(found, len(rows) / math.comb(8, size)) > P_VALUE


@pytest.mark.parametrize("prefix_fraction", [0.2, 0.5])
def test_prefixes_and_subsets_are_mixed(prefix_fraction: float) -> None:
    """A random subset of n tokens is a prefix once in (8 over n) times. The kind says nothing of the number."""
    mask = drawn(4, prefix_fraction)
    sizes = np.arange(2, 7)
    share = np.array([prefix_fraction + (1 - prefix_fraction) / math.comb(8, n) for n in sizes])
    rows = [mask[mask.sum(axis=1) == n] for n in sizes]
    first = np.array([prefixes(group).sum() for group in rows])
    expected = np.array([len(group) for group in rows]) * share
    assert gammaincc(len(sizes) / 2, ((first - expected) ** 2 / (expected * (1 - share))).sum() / 2) > P_VALUE


@pytest.mark.parametrize(("fraction", "number"), [(0.25, 4), (0.1, 2), (1.0, 16), (0.0, 0)])
def test_exactly_the_given_fraction_of_examples_has_given_tokens(fraction: float, number: int) -> None:
    """In long sequences, where a number of zero given tokens is rare: one row in 4,096."""
    for seed in range(3):
        assert np.asarray(masks.given_mask(key(seed), 16, 4096, fraction, 0.5)).any(axis=1).sum() == number


def test_given_examples_are_tied_to_no_row() -> None:
    """Self-conditioning takes every second row: over 300 batches, given tokens fall on each row of a batch equally often."""
    draw = jax.jit(jax.vmap(lambda k: masks.given_mask(k, 8, 32, 0.5, 0.5).any(axis=1)))
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
    many = np.asarray(jax.jit(jax.vmap(lambda k: masks.low_discrepancy(k, batch)))(jax.random.split(key(9), 2000)), np.float64)
    assert many.min() >= 0 and many.max() < 1
    for u in many[:20]:
        np.testing.assert_array_equal(np.sort(np.floor(u * batch)), np.arange(batch))
    np.testing.assert_allclose(np.diff(np.sort(many, axis=1), axis=1), 1 / batch, rtol=1e-4)
    for place in (0, 31, 63):
        assert chi_square(np.bincount((many[:, place] * 10).astype(int), minlength=10), 200.0) > P_VALUE
    assert abs(np.mean([np.corrcoef(u, np.arange(batch))[0, 1] for u in many])) < 4 / (batch * 2000) ** 0.5


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
    u, whole = masks.warped_times(key(0), 16, 10, 0.0)
    assert np.asarray(whole).all()
    np.testing.assert_array_equal(np.sort(np.floor(np.asarray(u)[:, 0] * 16)), np.arange(16))
