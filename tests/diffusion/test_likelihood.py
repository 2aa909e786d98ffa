"""The bound against known entropies: tight with the exact denoiser, and above by what a wrong denoiser does not know."""

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


def bound(world: Any, warp: Warp, make: Callable[[], kernel.Denoise]) -> tuple[float, float]:
    """(the bound on a sequence in nats, its standard error) over 400,000 sequences of the world, u spread evenly. Most of the error is eps's."""

    @jax.jit
    def estimate() -> tuple[Array, Array]:
        denoise = make()

        def chunk(index: Array) -> tuple[Array, Array]:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(20), index), 3)
            tokens = world.draw(keys[0], ROWS)
            x0, u = world.table[tokens], (jnp.arange(ROWS) + (index + 0.5) / CHUNKS) / ROWS
            terms = likelihood.terms(denoise, warp, x0, tokens, u, keys[1], 1)
            cost = (terms.diffusion + likelihood.reconstruction(denoise, warp, x0, tokens, keys[2], 1)).sum(axis=-1)
            return cost.mean(), cost.var()

        return jax.lax.map(chunk, jnp.arange(CHUNKS))

    means, variances = estimate()
    return float(means.mean()) + L * likelihood.prior(D, SIGMA_MAX), float((variances.mean() / (CHUNKS * ROWS)) ** 0.5)


@pytest.mark.parametrize("warp_name", ["log_warp", "fitted_warp"])
def test_the_exact_denoisers_bound_is_the_entropy(world: Any, warp_name: str, request: pytest.FixtureRequest) -> None:
    """Never below the entropy by more than 2.5 standard errors, and within 1 % of it, whatever the warp."""
    value, error = bound(world, request.getfixturevalue(warp_name), lambda: world.blind(ROWS))
    assert value > world.entropy - 2.5 * error
    assert error < 0.005 * world.entropy and value < 1.01 * world.entropy


def test_a_denoiser_without_context_pays_for_what_it_does_not_know(world: Any, fitted_warp: Warp) -> None:
    """It is exact for another distribution, so its bound is the cross-entropy to that: the sum of the marginals' entropies, 1 % here as well."""
    value, error = bound(world, fitted_warp, lambda: world.without_context().blind(ROWS))
    marginals = world.marginals
    known = -(marginals * np.log(marginals)).sum()
    assert known > 1.02 * world.entropy
    assert abs(value - known) < 2.5 * error + 0.005 * known and error < 0.005 * known


def test_the_closed_form_of_single_tokens_has_the_unigram_entropy(world: Any, fitted_warp: Warp) -> None:
    """The local posterior as a denoiser: the bound is the unigram entropy, which is what telemetry holds a model against."""

    def denoise(x: Array, sigma: Array, previous: Array) -> kernel.Denoised:
        return kernel.local_posterior(x, sigma, world.table, world.log_prior)

    value, error = bound(world, fitted_warp, lambda: denoise)
    known = -L * float(np.sum(np.exp(world.log_prior) * world.log_prior))
    assert abs(value - known) < 2.5 * error + 0.005 * known and error < 0.005 * known


@pytest.mark.parametrize("spoil", [lambda logits: 0.5 * logits, lambda logits: jnp.roll(logits, 1, axis=1)], ids=["unsure", "shifted"])
def test_a_wrong_denoiser_is_above(world: Any, fitted_warp: Warp, spoil: Callable[[Array], Array]) -> None:
    network = world.network(kernel.Options())

    def make() -> kernel.Denoise:
        nothing, no_token = jax.lax.optimization_barrier((jnp.zeros((ROWS, L), bool), jnp.zeros((ROWS, L, D))))
        return kernel.make_denoise(lambda *a: spoil(network(*a)), world.table, nothing, no_token, world.log_prior, kernel.Options())

    value, error = bound(world, fitted_warp, make)
    assert value - 5 * error > 1.02 * world.entropy


def test_the_bounds_terms_by_hand(world: Any, fitted_warp: Warp) -> None:
    """diffusion = (dsigma/du) sigma^-3 |e - x0|^2 and the cross-entropy at sigma(u), per position; reconstruction at sigma_min."""
    rows = 16
    tokens, u, key = world.draw(jax.random.key(0), rows), jnp.linspace(0.05, 0.95, rows), jax.random.key(1)
    x0, denoise = world.table[tokens], world.blind(rows)
    terms = likelihood.terms(denoise, fitted_warp, x0, tokens, u, key, 1)
    sigma = np.asarray(fitted_warp.sigma(u), np.float64)
    np.testing.assert_allclose(terms.x, np.asarray(x0) + sigma[:, None, None] * np.asarray(jax.random.normal(key, x0.shape)), rtol=1e-5)
    answer = denoise(terms.x, fitted_warp.sigma(u), jnp.zeros_like(x0))
    error = ((np.asarray(x0, np.float64) - np.asarray(answer.x0)) ** 2).sum(axis=-1)
    np.testing.assert_allclose(terms.diffusion, error / (sigma**3 * np.asarray(fitted_warp.pdf(fitted_warp.sigma(u))))[:, None], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(terms.cross_entropy, kernel.cross_entropy(answer.logits, tokens), rtol=1e-5, atol=1e-6)
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
