"""The bound against known entropies: tight with the exact denoiser, and above by what a wrong denoiser does not know."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from cdcd_jax.diffusion import kernel, likelihood
from cdcd_jax.diffusion.warp import Warp

L, D, V = 3, 6, 5
CHUNKS, ROWS = 8, 50_000
SIGMA_MAX = 100.0


@functools.cache
def estimator(world: Any) -> Callable[..., tuple[Array, Array]]:
    """A jitted (warp, probabilities [S], scale, shift) -> means and variances of the bound on sequences of the world, nats, in 8 chunks.

    The denoiser is the exact one of a world with these probabilities, its logits times `scale` and moved by `shift` positions. u is spread evenly.
    """

    @jax.jit
    def estimate(warp: Warp, probabilities: Array, scale: Array, shift: Array) -> tuple[Array, Array]:
        network = dataclasses.replace(world, probabilities=probabilities).network(kernel.Options())
        # The barrier keeps XLA from folding what is done with the zeros, slowly.
        nothing, no_token = jax.lax.optimization_barrier((jnp.zeros((ROWS, L), bool), jnp.zeros((ROWS, L, D))))
        denoise = kernel.make_denoise(
            lambda features, sigma: jnp.roll(scale * network(features, sigma), shift, axis=1), world.table, nothing, no_token, world.log_prior,
            kernel.Options(),
        )  # fmt: skip
        return chunks(world, warp, denoise)

    return estimate


def chunks(world: Any, warp: Warp, denoise: kernel.Denoise) -> tuple[Array, Array]:
    def chunk(index: Array) -> tuple[Array, Array]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(20), index), 3)
        tokens = world.draw(keys[0], ROWS)
        x0, u = world.table[tokens], (jnp.arange(ROWS) + (index + 0.5) / CHUNKS) / ROWS
        terms = likelihood.terms(denoise, warp, x0, tokens, u, keys[1], 1)
        cost = (terms.diffusion + likelihood.reconstruction(denoise, warp, x0, tokens, keys[2], 1)).sum(axis=-1)
        return cost.mean(), cost.var()

    return jax.lax.map(chunk, jnp.arange(CHUNKS))


def summary(means: Array, variances: Array) -> tuple[float, float]:
    """(the bound on a sequence in nats, its standard error): 400,000 sequences."""
    return float(means.mean()) + L * likelihood.prior(D, SIGMA_MAX), float((variances.mean() / (CHUNKS * ROWS)) ** 0.5)


def bound(world: Any, warp: Warp, of: Any, scale: float = 1.0, shift: int = 0) -> tuple[float, float]:
    return summary(*estimator(world)(warp, jnp.asarray(of.probabilities, jnp.float32), scale, shift))


@pytest.mark.parametrize("warp_name", ["log_warp", "fitted_warp"])
def test_the_exact_denoisers_bound_is_the_entropy(world: Any, warp_name: str, request: pytest.FixtureRequest) -> None:
    """Never below the entropy by more than 2.5 standard errors, and within 1 % of it, whatever the warp."""
    value, error = bound(world, request.getfixturevalue(warp_name), world)
    assert value > world.entropy - 2.5 * error
    assert error < 0.005 * world.entropy and value < 1.01 * world.entropy


def test_a_denoiser_without_context_pays_for_what_it_does_not_know(world: Any, fitted_warp: Warp) -> None:
    """It is exact for another distribution, so its bound is the cross-entropy to that: the sum of the marginals' entropies, 1 % here as well."""
    value, error = bound(world, fitted_warp, world.without_context())
    marginals = world.marginals
    known = -(marginals * np.log(marginals)).sum()
    assert known > 1.1 * world.entropy
    assert abs(value - known) < 0.01 * known and error < 0.005 * known


def test_an_untrained_network_under_the_output_prior_has_the_unigram_entropy(world: Any, fitted_warp: Warp) -> None:
    """Logits of zero and the local posterior: the closed form of single tokens, which telemetry holds a model against."""

    @jax.jit
    def estimate(warp: Warp) -> tuple[Array, Array]:
        nothing, no_token = jax.lax.optimization_barrier((jnp.zeros((ROWS, L), bool), jnp.zeros((ROWS, L, D))))
        options = kernel.Options(output_prior=True)
        denoise = kernel.make_denoise(lambda *_: jnp.zeros((ROWS, L, V)), world.table, nothing, no_token, world.log_prior, options)
        return chunks(world, warp, denoise)

    value, error = summary(*estimate(fitted_warp))
    known = -L * float(np.sum(np.exp(world.log_prior) * world.log_prior))
    assert abs(value - known) < 0.01 * known and error < 0.005 * known


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0), (1.0, 1)], ids=["unsure", "shifted"])
def test_a_wrong_denoiser_is_above(world: Any, fitted_warp: Warp, scale: float, shift: int) -> None:
    value, error = bound(world, fitted_warp, world, scale, shift)
    assert value - 5 * error > 1.02 * world.entropy


def test_the_bounds_terms_by_hand(world: Any, fitted_warp: Warp) -> None:
    """diffusion = (dsigma/du) sigma^-3 |e - x0|^2 and the cross-entropy at sigma(u), per position; reconstruction at sigma_min."""
    rows = 16
    tokens, u, key = world.draw(jax.random.key(0), rows), jnp.linspace(0.05, 0.95, rows), jax.random.key(1)
    x0, denoise = world.table[tokens], world.blind(rows)

    @jax.jit
    def run() -> tuple:
        terms = likelihood.terms(denoise, fitted_warp, x0, tokens, u, key, 1)
        sigma = fitted_warp.sigma(u)
        answer = denoise(terms.x, sigma, jnp.zeros_like(x0))
        return terms, sigma, fitted_warp.pdf(sigma), answer.x0, kernel.cross_entropy(answer.logits, tokens)

    terms, sigma, pdf, estimate, entropy = jax.tree.map(lambda a: np.asarray(a, np.float64), run())
    np.testing.assert_allclose(terms.x, np.asarray(x0) + sigma[:, None, None] * np.asarray(jax.random.normal(key, x0.shape)), rtol=1e-5)
    error = ((np.asarray(x0) - estimate) ** 2).sum(axis=-1)
    np.testing.assert_allclose(terms.diffusion, error / (sigma**3 * pdf)[:, None], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(terms.cross_entropy, entropy, rtol=1e-5, atol=1e-6)
    assert likelihood.prior(256, 300.0) == pytest.approx(256 / (2 * 300.0**2))


def test_self_conditioning_is_unrolled() -> None:
    """The first call is fed zeros, every later one the estimate of the call before; reconstruction looks at sigma_min."""
    fed: list[float] = []
    levels: list[float] = []

    def denoise(x: Array, sigma: Array, previous: Array) -> kernel.Denoised:
        fed.append(float(previous.max()))
        levels.append(float(sigma[0]))
        return kernel.Denoised(jnp.full_like(x, len(fed)), jnp.zeros((*x.shape[:2], V)))

    x = jnp.ones((2, L, D))
    assert likelihood.unroll(denoise, x, jnp.ones(2), 3).x0[0, 0, 0] == 3 and fed == [0.0, 1.0, 2.0]
    warp = Warp.identity(10, 0.5, 9.0, "linear", 1e-3)
    cost = likelihood.reconstruction(denoise, warp, x, jnp.zeros((2, L), int), jax.random.key(0), 2)
    assert fed[3:] == [0.0, 4.0] and levels[3:] == [0.5, 0.5]
    np.testing.assert_allclose(cost, np.log(V), rtol=1e-6)
