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


def test_scales_zero_and_one_are_the_two_models_and_the_others_lie_on_their_line(world: Any) -> None:
    """At scale 1 the conditional model's answer, at 0 that of the model which is not shown what is given."""

    @jax.jit
    def answers(x: Array) -> tuple[list[kernel.Denoised], list[kernel.Denoised]]:
        guided = [guidance.classifier_free(pair(world), scale)(x, SIGMA, PREVIOUS) for scale in (0.0, 1.0, 2.5)]
        return guided, [world.denoise(GIVEN, TOKENS, hidden=hidden)(x, SIGMA, PREVIOUS) for hidden in (True, False)]

    at, alone = answers(X)
    for guided, one in zip(at, alone, strict=False):
        np.testing.assert_allclose(guided.x0, one.x0, atol=1e-5)
        np.testing.assert_allclose(guided.logits, one.logits, rtol=1e-5, atol=1e-4)
    for zero, one, more in zip(*at, strict=True):
        np.testing.assert_allclose(more, zero + 2.5 * (one - zero), rtol=1e-4, atol=1e-4)
    moved = np.abs(np.asarray(at[2].x0 - at[1].x0)).max(axis=(1, 2))
    assert (moved[:3] > 1e-3).all() and moved[3] < 1e-5  # the last row is given nothing: both of its halves are one


def test_both_halves_are_fed_the_same() -> None:
    """One call of 2 B rows: x, sigma and previous twice."""
    calls = []

    def denoise(*arguments: Array) -> kernel.Denoised:
        calls.append(arguments)
        return kernel.Denoised(arguments[0], arguments[0])

    previous = jax.random.normal(jax.random.key(1), X.shape)
    guidance.classifier_free(denoise, 3.0)(X, SIGMA, previous)
    assert len(calls) == 1
    for argument, whole in zip(calls[0], (X, SIGMA, previous), strict=True):
        np.testing.assert_array_equal(argument, np.concatenate([whole, whole]))


def test_a_restricted_token_has_the_posterior_given_the_restriction(world: Any) -> None:
    """Bayes: the allowed tokens' probabilities over their sum, and x0 their mean; at other positions nothing changes."""
    allowed = np.arange(len(world.table)) % 2 == 1
    positions = np.zeros((B, L), bool)
    positions[:, 2] = True

    @jax.jit
    def answers(x: Array) -> tuple[kernel.Denoised, kernel.Denoised]:
        free = world.denoise(GIVEN, TOKENS)
        return free(x, SIGMA, PREVIOUS), guidance.restricted(free, world.table, jnp.asarray(positions), jnp.asarray(allowed))(x, SIGMA, PREVIOUS)

    free, bound = answers(X)
    p = np.asarray(jax.nn.softmax(free.logits, axis=-1), np.float64)[:, 2] * allowed
    p /= p.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(bound.logits, axis=-1)[:, 2], p, atol=1e-6)
    np.testing.assert_allclose(bound.x0[:, 2], p @ np.asarray(world.table), atol=1e-4)
    np.testing.assert_array_equal(np.asarray(bound.x0)[~positions], np.asarray(free.x0)[~positions])
    np.testing.assert_array_equal(np.asarray(bound.logits)[~positions], np.asarray(free.logits)[~positions])
