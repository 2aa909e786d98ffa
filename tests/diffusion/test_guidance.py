"""Classifier-free guidance as a function of denoisers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from cdcd_jax.diffusion import guidance, kernel

L, D, B = 3, 6, 4
GIVEN = jnp.array([[True, False, False], [False, True, False], [True, True, False], [False, False, False]])
TOKENS = jnp.array([[1, 2, 3], [4, 0, 1], [2, 2, 0], [1, 1, 1]])
SIGMA = jnp.array([0.8, 1.5, 3.0, 6.0])
X = 2.0 * jax.random.normal(jax.random.key(0), (B, L, D))
PREVIOUS = jnp.zeros_like(X)


def pair(world: Any) -> kernel.Denoise:
    """The denoiser of 2 B rows, the last B of which are not shown what is given."""
    given, tokens = jnp.concatenate([GIVEN, GIVEN]), jnp.concatenate([TOKENS, TOKENS])
    clean = world.table[tokens] * (given & (jnp.arange(2 * B) < B)[:, None])[..., None]
    return kernel.make_denoise(world.network(kernel.Options()), world.table, given, clean, world.log_prior, kernel.Options())


def test_scale_one_is_the_conditional_model_and_scale_zero_the_dropped_one(world: Any) -> None:
    for scale, hidden in ((1.0, False), (0.0, True)):
        guided = guidance.classifier_free(pair(world), scale)(X, SIGMA, PREVIOUS)
        alone = world.denoise(GIVEN, TOKENS, hidden=hidden)(X, SIGMA, PREVIOUS)
        np.testing.assert_allclose(guided.x0, alone.x0, atol=1e-5)
        np.testing.assert_allclose(guided.logits, alone.logits, rtol=1e-5, atol=1e-4)


def test_guidance_is_linear_in_its_scale(world: Any) -> None:
    at = [guidance.classifier_free(pair(world), scale)(X, SIGMA, PREVIOUS) for scale in (0.0, 1.0, 2.5)]
    for zero, one, more in zip(*at, strict=True):
        np.testing.assert_allclose(more, zero + 2.5 * (one - zero), rtol=1e-4, atol=1e-4)
    moved = np.abs(np.asarray(at[2].x0 - at[1].x0)).max(axis=(1, 2))
    assert (moved[:3] > 1e-3).all() and moved[3] < 1e-5  # the last row is given nothing: both of its halves are one


def test_both_halves_are_fed_the_same(world: Any) -> None:
    """One call of 2 B rows: x, sigma and previous twice."""
    calls = []

    def denoise(*arguments: Array) -> kernel.Denoised:
        calls.append(arguments)
        return pair(world)(*arguments)

    previous = jax.random.normal(jax.random.key(1), X.shape)
    guidance.classifier_free(denoise, 3.0)(X, SIGMA, previous)
    assert len(calls) == 1
    for argument, whole in zip(calls[0], (X, SIGMA, previous), strict=True):
        np.testing.assert_array_equal(argument, np.concatenate([whole, whole]))
