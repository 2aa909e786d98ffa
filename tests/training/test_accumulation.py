"""Gradient accumulation: the update of a batch computed in parts is that of the whole, in less memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdcd_jax.training.loss import Examples
from cdcd_jax.training.state import TrainState
from cdcd_jax.training.step import split
from tests import tiny

BATCH = 64
CHANGES: dict[str, Any] = {"train.batch_size": BATCH, "optim.name": "adam"}
# What a part must not tear from its batch: pairs of self-conditioning, levels of sequences and of positions, the number of noisy tokens.
CONFIGS = {"the demo's": {}, "plain": {"train.self_conditioning": False, "train.position_sigma_fraction": 0.0}}


@functools.cache
def step(kind: str, parts: int) -> tuple[Any, TrainState, dict[str, float], int]:
    """(parameters before, state after, metrics, bytes of temporary memory) of the first step."""
    work = tiny.trainer(tiny.config(CHANGES | CONFIGS[kind] | {"train.accumulation_steps": parts}), tiny.mesh())
    memory = work.lowered().compile().memory_analysis()
    before = work.init()
    params = jax.tree.map(np.array, before.params)
    after, metrics = work.run(before, 1)
    return params, after, metrics[0], memory.temp_size_in_bytes


def size(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree))))


@pytest.mark.parametrize("kind, parts", [("the demo's", 4), ("plain", 8)])
def test_the_update_in_parts_is_the_whole_batchs(kind: str, parts: int) -> None:
    (params, whole, metrics, _), (_, found, found_metrics, _) = step(kind, 1), step(kind, parts)
    assert found_metrics == pytest.approx(metrics, rel=1e-5)
    for (path, moment), other in zip(jax.tree_util.tree_leaves_with_path(whole.opt_state), jax.tree.leaves(found.opt_state), strict=True):
        # Adam's first moment is now a tenth of the gradient, the second a hundredth of its square.
        assert size(other - moment) <= 1e-5 * size(moment), jax.tree_util.keystr(path)
    for branch, values in params.items():
        update = size(jax.tree.map(np.subtract, whole.params[branch], values))
        error = size(jax.tree.map(np.subtract, found.params[branch], whole.params[branch]))
        assert update > 0 and error <= 1e-5 * update + 2.0**-24 * size(values), branch  # and what adding to the parameters rounds off


def test_parts_take_less_memory() -> None:
    whole, quarters = (step("the demo's", parts)[3] for parts in (1, 4))
    assert quarters < 0.5 * whole


def test_rows_are_dealt_out_in_pairs() -> None:
    """Every part has a share of each stretch of rows, and so of each device's, in order, and no pair is torn."""
    rows = jnp.arange(16)
    batch = Examples(jnp.stack([rows, -rows], axis=1), *[rows] * 5)
    parts = split(batch, 2, 2)
    assert parts.sigma.tolist() == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    np.testing.assert_array_equal(parts.tokens, jnp.stack([parts.sigma, -parts.sigma], axis=-1))
    assert split(batch, 4, 1).eps.tolist() == [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]
