"""Rematerialisation: whatever the backward pass computes again, the gradients are the same, and what is not kept takes no memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdcd_jax.config import CHOICES
from cdcd_jax.model.denoiser import KEPT, Denoiser

V, B, L, D = 7, 16, 32, 3
FEATURES = jax.random.normal(jax.random.key(3), (B, L, 3 * D + 1))
SIGMA = jnp.linspace(0.5, 5.0, B)[:, None]


@functools.cache
def gradient(remat: str) -> tuple[Any, int]:
    """The gradient of a fixed function of the logits, and the bytes of temporary memory that it took."""
    network = Denoiser(V, 4, 16, 2, 32, 3, True, True, 1, jnp.dtype("float32"), remat)
    weights = jax.random.normal(jax.random.key(4), (B, L, V))
    params = jax.jit(network.init)(jax.random.key(0), FEATURES, SIGMA)["params"]
    params = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size, dtype=jnp.float32)).reshape(a.shape), params)  # nothing is zero

    @jax.jit
    @jax.grad
    def of(params: Any) -> jax.Array:
        return jnp.mean(weights * network.apply({"params": params}, FEATURES, SIGMA))

    return of(params), of.lower(params).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("remat", KEPT)
def test_the_gradients_are_the_same(remat: str) -> None:
    expected, _ = gradient("none")
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(gradient(remat)[0]), strict=True):
        largest = float(jnp.abs(leaf).max())
        assert largest > 0, jax.tree_util.keystr(path)
        np.testing.assert_allclose(other, leaf, rtol=1e-4, atol=1e-6 * largest, err_msg=jax.tree_util.keystr(path))


def test_what_is_kept_takes_memory() -> None:
    none, full, dots, names = (gradient(remat)[1] for remat in ("none", "full", "dots", "names"))
    assert full < names < dots < none
    assert full < 0.6 * none


def test_every_choice_of_the_config_is_a_policy() -> None:
    assert set(CHOICES["model.remat"]) == {"none", *KEPT}
