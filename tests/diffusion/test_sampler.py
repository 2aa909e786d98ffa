"""With the exact denoiser, sampling draws from the known distribution; its solvers have their orders; and what must not change does not."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.scipy.special import gammaincc

from cdcd_jax.diffusion import kernel, sampler, solvers
from cdcd_jax.diffusion.warp import Warp

L, D, V = 3, 6, 5
COUNT = 4000
P_VALUE = 1e-3  # seeds are fixed: a right sampler that passes once passes always


def chi_square(observed: np.ndarray, probabilities: np.ndarray) -> float:
    """The p-value of counts under probabilities; cells of which fewer than 5 are expected count as one."""
    expected = observed.sum() * probabilities / probabilities.sum()
    rare = expected < 5
    cells = [np.append(a[~rare], a[rare].sum()) for a in (observed, expected)]
    statistic = ((cells[0] - cells[1]) ** 2 / np.maximum(cells[1], 1e-9)).sum()
    return float(gammaincc((len(cells[0]) - 1) / 2, statistic / 2))


def counts(world: Any, warp: Warp, given: list[bool], tokens: list[int], options: kernel.Options, num_steps: int = 200) -> np.ndarray:
    """How often each sequence of the world is sampled, in 4,000 samples with the same given tokens."""
    given_rows, token_rows = (jnp.tile(jnp.asarray(a)[None], (COUNT, 1)) for a in (given, tokens))

    @jax.jit
    def run(given: Array, tokens: Array) -> Array:
        noise, denoise = jax.random.normal(jax.random.key(11), (COUNT, L, D)), world.denoise(given, tokens, options)
        return sampler.sample(denoise, warp, solvers.euler, noise, given, tokens, jax.random.key(0), num_steps)

    sampled = np.asarray(run(given_rows, token_rows))
    np.testing.assert_array_equal(sampled[:, given], np.asarray(token_rows)[:, given])
    return np.bincount(np.ravel_multi_index(sampled.T, (V,) * L), minlength=len(world.sequences))


@pytest.mark.parametrize("warp_name", ["log_warp", "fitted_warp"])
def test_samples_have_the_frequencies_of_the_distribution(world: Any, warp_name: str, request: pytest.FixtureRequest) -> None:
    """Chi-square over the 125 sequences, p > 0.001. The counts would show a distribution without the dependence between tokens (p < 1e-6)."""
    observed = counts(world, request.getfixturevalue(warp_name), [False] * L, [0] * L, kernel.Options(output_prior=warp_name == "fitted_warp"))
    assert chi_square(observed, world.probabilities) > P_VALUE
    assert chi_square(observed, world.without_context().probabilities) < 1e-6


@pytest.mark.parametrize("given", [[False, True, False], [True, True, False]], ids=["infilling", "after a prompt"])
def test_given_tokens_condition_the_samples(world: Any, fitted_warp: Warp, given: list[bool]) -> None:
    """The frequencies of the conditional distribution, p > 0.001; those of the unconditional one are not met (p < 1e-6)."""
    tokens = [2, 4, 1]
    fits = (world.sequences == tokens)[:, given].all(axis=1)
    observed = counts(world, fitted_warp, given, tokens, kernel.Options())
    assert observed[~fits].sum() == 0
    assert chi_square(observed[fits], world.probabilities[fits]) > P_VALUE
    assert chi_square(observed[fits], world.without_context().probabilities[fits]) < 1e-6


def test_the_solvers_have_their_orders(world: Any) -> None:
    """The error at sigma = 1 over halved steps falls as 1 / N for Euler and 1 / N^2 for Heun, against Heun's method in 2,048 steps."""
    warp, rows = Warp.identity(10, 1.0, 10.0, "log", 1e-3), 64
    noise, given = jax.random.normal(jax.random.key(2), (rows, L, D)), jnp.zeros((rows, L), bool)

    @partial(jax.jit, static_argnums=(0, 1))
    def end(name: str, num_steps: int) -> Array:
        return sampler.integrate(world.blind(rows), warp, solvers.SOLVERS[name][0], noise, given, jax.random.key(0), num_steps).x

    fine = np.asarray(end("heun", 2048))
    for name, order, steps in (("euler", 1, [64, 128, 256]), ("heun", 2, [32, 64, 128])):
        errors = [np.sqrt(np.mean((np.asarray(end(name, n)) - fine) ** 2)) for n in steps]
        slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
        assert abs(slope + order) < 0.15 * order, (name, slope, errors)


def test_solvers_count_their_calls() -> None:
    """SOLVERS says how many denoiser calls a step costs; each call is fed the latest estimate."""
    for step, calls in solvers.SOLVERS.values():
        fed: list[Array] = []

        def denoise(x: Array, sigma: Array, previous: Array, fed: list[Array] = fed) -> kernel.Denoised:
            fed.append(previous)
            return kernel.Denoised(jnp.full_like(x, len(fed)), jnp.zeros((*x.shape[:2], V)))

        carry = solvers.Carry(jnp.ones((2, L, D)), jnp.full((2, L, D), 0.0))
        after = step(denoise, carry, jnp.full(2, 3.0), jnp.full(2, 2.0), jax.random.key(0))
        assert [float(p[0, 0, 0]) for p in fed] == list(range(calls))
        np.testing.assert_array_equal(after.x0, float(calls))


def test_a_step_of_temperature_one_is_the_plain_step_bit_for_bit() -> None:
    """Against the formula written out, and with a denoiser that answers from memory, so that nothing else can differ."""
    key, sigma, lower = jax.random.key(0), jnp.full(8, 3.0), jnp.full(8, 2.7)
    x, x0 = 3.0 * jax.random.normal(jax.random.key(1), (8, L, D)), jax.random.normal(jax.random.key(2), (8, L, D))
    carry = solvers.Carry(x, jnp.zeros_like(x))

    def denoise(x: Array, sigma: Array, previous: Array) -> kernel.Denoised:
        return kernel.Denoised(x0, jnp.zeros((8, L, V)))

    plain = x + (lower - sigma)[:, None, None] * ((x - x0) / sigma[:, None, None])
    for after in (solvers.euler(denoise, carry, sigma, lower, key), solvers.euler(denoise, carry, sigma, lower, key, temperature=1.0)):
        np.testing.assert_array_equal(after.x, plain)
        np.testing.assert_array_equal(after.x0, x0)
    slope = 0.5 * ((x - x0) / sigma[:, None, None] + (plain - x0) / lower[:, None, None])
    np.testing.assert_array_equal(
        solvers.heun(denoise, carry, sigma, lower, key, temperature=1.0).x, x + (lower - sigma)[:, None, None] * slope
    )


@pytest.mark.parametrize("temperature", [0.5, 0.9, 1.0])
def test_temperature_divides_the_score_and_not_the_estimate(temperature: float) -> None:
    """Where the estimate is constant the path is known: x - x0 shrinks as sigma^(1 / temperature)."""
    target = jnp.full((1, L, D), 2.0)

    def denoise(x: Array, sigma: Array, previous: Array) -> kernel.Denoised:
        return kernel.Denoised(target, jnp.zeros((1, L, V)))

    step = partial(solvers.heun, temperature=temperature)
    noise, given = jnp.ones((1, L, D)), jnp.zeros((1, L), bool)
    warp = Warp.identity(10, 1.0, 10.0, "log", 1e-3)
    carry = jax.jit(lambda: sampler.integrate(denoise, warp, step, noise, given, jax.random.key(0), 256))()
    np.testing.assert_allclose(carry.x - target, (10.0 - target) * 0.1 ** (1 / temperature), rtol=1e-3)
    np.testing.assert_array_equal(carry.x0, target)


def test_the_grid_is_the_warps(fitted_warp: Warp) -> None:
    levels = sampler.grid(fitted_warp, 10)
    assert levels.shape == (11,) and levels[0] == fitted_warp.sigma_max and levels[-1] == fitted_warp.sigma_min
    np.testing.assert_allclose(fitted_warp.cdf(levels), np.linspace(1, 0, 11), atol=1e-4)


@pytest.mark.parametrize("kind", ["random", "infinite", "no number"])
def test_given_tokens_come_back_whatever_the_denoiser_says(kind: str, fitted_warp: Warp) -> None:
    """Random masks and tokens, and a denoiser that answers at random, with infinities or with NaN everywhere."""
    key = jax.random.key(4)
    given, tokens = jax.random.bernoulli(key, 0.5, (64, L)), jax.random.randint(jax.random.key(5), (64, L), 0, V)
    level = {"random": 50.0, "infinite": jnp.inf, "no number": jnp.nan}[kind]

    def denoise(x: Array, sigma: Array, previous: Array) -> kernel.Denoised:
        return kernel.Denoised(level * jnp.sin(100 * x + 1), level * jnp.cos(100 * x[..., :V] + 1))

    sampled = sampler.sample(denoise, fitted_warp, solvers.euler, jax.random.normal(key, (64, L, D)), given, tokens, key, 3)
    np.testing.assert_array_equal(np.asarray(sampled)[np.asarray(given)], np.asarray(tokens)[np.asarray(given)])
    assert sampled.dtype == tokens.dtype and sampled.min() >= 0 and sampled.max() < V


@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_x_at_given_positions_stays_zero(name: str, log_warp: Warp) -> None:
    """Whatever the denoiser answers there."""
    given, noise = jnp.array([[True, False, True]] * 4), jnp.ones((4, L, D))

    def denoise(x: Array, sigma: Array, previous: Array) -> kernel.Denoised:
        return kernel.Denoised(jnp.ones_like(x), jnp.zeros((4, L, V)))

    x = np.asarray(jax.jit(lambda: sampler.integrate(denoise, log_warp, solvers.SOLVERS[name][0], noise, given, jax.random.key(0), 4))().x)
    assert not x[np.asarray(given)].any() and x[~np.asarray(given)].all()


@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_a_trajectory_is_the_samples_own_path(name: str, world: Any, fitted_warp: Warp) -> None:
    """Its last frame's likeliest tokens are the sample; probabilities and entropies are those of the posterior at its levels."""
    rows, steps = 32, 12
    given = jnp.asarray(np.random.default_rng(0).random((rows, L)) < 0.3)
    tokens, noise = world.draw(jax.random.key(1), rows), jax.random.normal(jax.random.key(2), (rows, L, D))
    step = solvers.SOLVERS[name][0]

    @jax.jit
    def run(given: Array, tokens: Array, noise: Array) -> tuple[Array, sampler.Frames, Array]:
        denoise = world.denoise(given, tokens)
        sampled = sampler.sample(denoise, fitted_warp, step, noise, given, tokens, jax.random.key(3), steps)
        frames = sampler.trajectory(denoise, fitted_warp, step, noise, given, jax.random.key(3), steps, V)
        start = jnp.full(rows, fitted_warp.sigma_max)
        logits = denoise(noise * start[:, None, None], start, jnp.zeros_like(noise)).logits
        return sampled, frames, kernel.cross_entropy(logits, tokens)

    sampled, frames, first = jax.tree.map(np.asarray, run(given, tokens, noise))
    np.testing.assert_array_equal(frames.candidates[-1, ..., 0][~np.asarray(given)], sampled[~np.asarray(given)])
    np.testing.assert_allclose(frames.sigma, sampler.grid(fitted_warp, steps), rtol=1e-5)
    np.testing.assert_allclose(frames.u, np.linspace(1, 0, steps + 1), atol=1e-6)
    np.testing.assert_allclose(frames.probabilities.sum(axis=-1), 1.0, atol=1e-4)
    p = frames.probabilities.astype(np.float64)
    assert (np.diff(p, axis=-1) <= 0).all()
    np.testing.assert_allclose(frames.entropy, -(p * np.log(np.maximum(p, 1e-30))).sum(axis=-1), atol=1e-4)
    chosen = frames.candidates[0] == np.asarray(tokens)[..., None]
    np.testing.assert_allclose(-np.log(p[0][chosen]).reshape(rows, L), first, rtol=1e-3, atol=1e-4)
