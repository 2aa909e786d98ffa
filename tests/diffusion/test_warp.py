"""The warp: a monotone map and its inverse, whatever its parameters; and its fit, which makes entropy fall linearly in u."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from cdcd_jax.diffusion import kernel
from cdcd_jax.diffusion.warp import Warp, fit_loss

BINS = 30
AXES = pytest.mark.parametrize("axis", ["linear", "log"])
SEEDS = range(8)


def random_warp(seed: int, axis: str, spread: float = 1.0) -> Warp:
    """Random parameters and a random range of sigma."""
    generator = np.random.default_rng(seed)
    logits = [jnp.asarray(spread * generator.normal(size=BINS) - 2.0, jnp.float32) for _ in range(2)]
    low = float(generator.uniform(0.05, 2.0))
    return Warp(*logits, low, low * float(generator.uniform(5, 300)), axis, 1e-3)


def inside(warp: Warp, count: int) -> np.ndarray:
    """Noise levels spread over the axis, away from its ends."""
    tau = np.linspace(0.01, 0.99, count)
    low, high = warp.sigma_min, warp.sigma_max
    return (low * (high / low) ** tau if warp.axis == "log" else low + (high - low) * tau).astype(np.float32)


@AXES
def test_an_unfitted_warp_is_the_identity_on_its_axis(axis: str) -> None:
    warp = Warp.identity(100, 0.5, 80.0, axis, 1e-3)
    u = jnp.linspace(0.0, 1.0, 57)
    wanted = 0.5 * 160.0 ** np.asarray(u) if axis == "log" else 0.5 + 79.5 * np.asarray(u)
    np.testing.assert_allclose(warp.sigma(u), wanted, rtol=2e-5)
    np.testing.assert_allclose(warp.cdf(jnp.asarray(wanted, jnp.float32)), u, atol=2e-6)
    np.testing.assert_allclose(warp.axis_pdf(jnp.asarray(inside(warp, 57))), 1.0, rtol=1e-4)
    np.testing.assert_allclose(warp.entropy(jnp.float32(80.0)), 1.0, rtol=1e-5)


@AXES
def test_the_two_directions_are_inverse(axis: str) -> None:
    for seed in SEEDS:
        warp = random_warp(seed, axis)
        u = jnp.linspace(0.0, 1.0, 1001)
        np.testing.assert_allclose(warp.cdf(warp.sigma(u)), u, atol=2e-5)
        sigma = jnp.asarray(inside(warp, 1001))
        np.testing.assert_allclose(warp.sigma(warp.cdf(sigma)), sigma, rtol=5e-4)


@AXES
def test_it_is_monotone_whatever_its_parameters(axis: str) -> None:
    for seed in SEEDS:
        for spread in (1.0, 10.0):
            warp = random_warp(seed, axis, spread)
            sigma = np.asarray(warp.sigma(jnp.linspace(0.0, 1.0, 4001)))
            assert (np.diff(sigma) >= 0).all() and sigma.min() >= np.float32(warp.sigma_min) and sigma.max() <= np.float32(warp.sigma_max)
            grid = jnp.asarray(inside(warp, 1001))
            assert (np.diff(warp.cdf(grid)) >= 0).all() and (np.diff(warp.entropy(grid)) >= 0).all()
            assert (np.asarray(warp.axis_pdf(grid)) > 0).all() and np.isfinite(warp.axis_pdf(grid)).all()
        assert (np.diff(random_warp(seed, axis).sigma(jnp.linspace(0.0, 1.0, 501))) > 0).all()


@AXES
def test_its_ends_are_exact(axis: str) -> None:
    for seed in range(40):
        warp = random_warp(seed, axis)
        low, high = jnp.float32(warp.sigma_min), jnp.float32(warp.sigma_max)
        for function in [lambda f: f] + [jax.jit] * (seed < 2):
            np.testing.assert_array_equal(function(warp.sigma)(jnp.array([0.0, 1.0])), np.stack([low, high]))
            assert function(warp.entropy)(low) == 0.0 and function(warp.cdf)(low) == 0.0
        np.testing.assert_allclose(warp.cdf(high), 1.0, atol=1e-6)
        np.testing.assert_allclose(warp.entropy(high), np.exp(np.asarray(warp.entropy_logits, np.float64)).sum(), rtol=1e-5)


@AXES
def test_its_densities_are_its_slopes(axis: str) -> None:
    """Against differences between points of one bin: an edge inside would be a corner."""
    for seed in SEEDS:
        warp = random_warp(seed, axis)
        sigma = inside(warp, 400)
        step = np.float32(1e-3) * sigma
        up, down = (sigma + step).astype(np.float32), (sigma - step).astype(np.float32)
        pdf, above, below = (np.asarray(warp.pdf(jnp.asarray(a))) for a in (sigma, up, down))
        one_bin = np.isclose(above * up, below * down, rtol=1e-4) if axis == "log" else np.isclose(above, below, rtol=1e-4)
        assert one_bin.sum() > 100
        difference = (np.asarray(warp.cdf(jnp.asarray(up))) - np.asarray(warp.cdf(jnp.asarray(down)))) / (up - down)
        np.testing.assert_allclose(pdf[one_bin], difference[one_bin], rtol=2e-2, atol=2e-3 * pdf.max())
        scale = sigma * np.log(warp.sigma_max / warp.sigma_min) if axis == "log" else warp.sigma_max - warp.sigma_min
        np.testing.assert_allclose(warp.axis_pdf(jnp.asarray(sigma)), pdf * scale, rtol=1e-5)


@AXES
def test_its_density_integrates_to_one(axis: str) -> None:
    for seed in SEEDS:
        warp = random_warp(seed, axis)
        edges = np.geomspace(warp.sigma_min, warp.sigma_max, 100_001)
        middle = jnp.asarray(np.sqrt(edges[1:] * edges[:-1]), jnp.float32)
        assert abs(np.sum(np.asarray(warp.pdf(middle), np.float64) * np.diff(edges)) - 1) < 2e-3


@AXES
def test_the_fit_makes_entropy_linear_in_u(axis: str, fit_warp: Any) -> None:
    """A logistic curve in log sigma seen through noise as large as half of its height: straight within 3 %, and fitted within 3 %, at rate 1e-2."""
    height, middle = 6.0, 6.0

    def curve(sigma: Array) -> Array:
        return height * jax.nn.sigmoid(3.0 * (jnp.log(sigma) - np.log(middle)))

    def losses(key: Array, sigma: Array) -> Array:
        return curve(sigma) * (1.0 + 0.5 * jax.random.normal(key, sigma.shape))

    warp = fit_warp(losses, Warp.identity(100, 0.5, 100.0, axis, 1e-3), 2000, 256)
    u = jnp.linspace(0.0, 1.0, 201)
    straight = curve(jnp.float32(0.5)) + u * (curve(jnp.float32(100.0)) - curve(jnp.float32(0.5)))
    assert np.abs(np.asarray(curve(warp.sigma(u)) - straight)).max() < 0.03 * height
    assert np.abs(np.asarray(warp.entropy(warp.sigma(u)) - curve(warp.sigma(u)))).max() < 0.03 * height
    before = Warp.identity(100, 0.5, 100.0, axis, 1e-3)
    assert np.abs(np.asarray(curve(before.sigma(u)) - straight)).max() > 0.1 * height


def test_the_fitted_warp_makes_the_exact_denoisers_entropy_linear(world: Any, fitted_warp: Warp) -> None:
    """The cross-entropy of the exact posterior at 24 times u, 4,000 sequences each (a standard error of 0.5 % of the range)."""
    count, times = 4000, np.linspace(0.0, 1.0, 24)

    @jax.jit
    def entropies(u: Array) -> Array:
        denoise, tokens, eps = world.blind(count), world.draw(jax.random.key(1), count), jax.random.normal(jax.random.key(2), (count, 3, 6))

        def entropy(u: Array) -> Array:
            sigma = jnp.broadcast_to(fitted_warp.sigma(u), (count,))
            x = kernel.add_noise(world.table[tokens], sigma, eps)
            return kernel.cross_entropy(denoise(x, sigma, jnp.zeros_like(x)).logits, tokens).mean()

        return jax.lax.map(entropy, u)

    curve = np.asarray(entropies(jnp.asarray(times, jnp.float32)))
    straight = curve[0] + times * (curve[-1] - curve[0])
    assert np.abs(curve - straight).max() < 0.03 * np.ptp(curve)


@AXES
def test_the_fit_weighs_each_loss_by_the_reciprocal_of_its_density(axis: str) -> None:
    live, other = random_warp(1, axis), random_warp(1, axis)
    other = dataclasses.replace(other, entropy_logits=other.axis_logits, axis_logits=other.entropy_logits)
    sigma, entropy = jnp.asarray(inside(live, 9)), jnp.linspace(0.0, 5.0, 9)
    selected = jnp.array([True, True, False, True, True, False, True, False, True])
    terms = (np.asarray(live.entropy(sigma)) - np.asarray(entropy)) ** 2 / np.asarray(other.axis_pdf(sigma))
    np.testing.assert_allclose(fit_loss(live, other, sigma, entropy, selected, 6), terms[np.asarray(selected)].mean(), rtol=1e-5)
    parts = [fit_loss(live, other, sigma[rows], entropy[rows], selected[rows], 6) for rows in (slice(0, 3), slice(3, 9))]
    np.testing.assert_allclose(sum(parts), terms[np.asarray(selected)].mean(), rtol=1e-5)


@AXES
def test_only_the_live_warp_learns_from_its_loss(axis: str) -> None:
    live, other = random_warp(1, axis), random_warp(1, axis)
    sigma, entropy = jnp.asarray(inside(live, 9)), jnp.linspace(0.0, 5.0, 9)
    gradient = jax.grad(fit_loss, argnums=(0, 1, 2, 3))(live, other, sigma, entropy, jnp.ones(9, bool), 9)
    assert np.abs(gradient[0].axis_logits).max() > 0 and np.abs(gradient[0].entropy_logits).max() > 0
    for leaf in jax.tree.leaves(gradient[1:]):
        np.testing.assert_array_equal(leaf, 0.0)
