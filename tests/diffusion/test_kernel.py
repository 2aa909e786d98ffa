"""The kernel against brute force: normalisation, the local posterior, the score, and what make_denoise lets a network see."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from cdcd_jax.diffusion import kernel

V, D, B, L = 7, 5, 3, 4
OPTIONS = [kernel.Options(*pair) for pair in itertools.product((False, True), repeat=2)]
KEYS = jax.random.split(jax.random.key(0), 9)
TABLE = kernel.normalise(jax.random.normal(KEYS[0], (V, D)))
LOG_PRIOR = jax.nn.log_softmax(jax.random.normal(KEYS[1], (V,)))
X = 3.0 * jax.random.normal(KEYS[2], (B, L, D))
PREVIOUS = jax.random.normal(KEYS[3], (B, L, D))
TOKENS = jax.random.randint(KEYS[4], (B, L), 0, V)
GIVEN = jnp.array([[True, False, False, True], [False, True, False, False], [False, False, False, False]])
PER_SEQUENCE = jnp.array([0.5, 1.7, 6.0])
PER_POSITION = jax.random.uniform(KEYS[5], (B, L), minval=0.4, maxval=8.0)
LEVELS = pytest.mark.parametrize("sigma", [PER_SEQUENCE, PER_POSITION], ids=["a level per sequence", "a level per position"])


def mixing_network(features: Array, sigma: Array) -> Array:
    """A function in which every output hears every input and the noise level."""
    weights = jax.random.normal(KEYS[6], (features.shape[-1], V))
    everywhere = jnp.sin(features).sum(axis=(1, 2), keepdims=True) + jnp.log(sigma)[..., None]
    return jnp.tanh(features) @ weights + everywhere * weights[None, :1]


def maker(options: kernel.Options, network: Any = mixing_network, clean: Array | None = None) -> kernel.Denoise:
    return kernel.make_denoise(network, TABLE, GIVEN, TABLE[TOKENS] * GIVEN[..., None] if clean is None else clean, LOG_PRIOR, options)


def seen(options: kernel.Options, sigma: Array) -> tuple[Array, Array]:
    """(features, sigma) as the network gets them at X and PREVIOUS."""
    calls = []

    def network(*arguments: Array) -> Array:
        calls.append(arguments)
        return mixing_network(*arguments)

    maker(options, network)(X, sigma, PREVIOUS)
    return calls[0]


def log_density(x: Array, sigma: Array) -> Array:
    """log sum_i prior_i N(x; e_i, sigma^2 I) of one noisy embedding x [D]."""
    distance = jnp.sum((x[None] - TABLE) ** 2, axis=-1)
    return jax.nn.logsumexp(LOG_PRIOR - distance / (2 * sigma**2)) - D / 2 * jnp.log(2 * jnp.pi * sigma**2)


def test_normalised_embeddings_keep_their_direction_and_have_norm_sqrt_d() -> None:
    raw = np.asarray(jax.random.normal(KEYS[7], (V, D)) * jnp.geomspace(1e-5, 1e3, V)[:, None])
    table = kernel.normalise(jnp.asarray(raw))
    np.testing.assert_allclose(np.linalg.norm(table, axis=-1), np.sqrt(D), rtol=1e-6)
    np.testing.assert_allclose(table, np.sqrt(D) * raw / np.linalg.norm(raw, axis=-1, keepdims=True), rtol=1e-5)


def test_the_gradient_of_the_normalisation_is_orthogonal_to_the_raw_row() -> None:
    raw = jax.random.normal(KEYS[7], (V, D)) * 1e-3
    _, pull = jax.vjp(kernel.normalise, raw)
    (gradient,) = pull(jax.random.normal(KEYS[8], (V, D)))
    cosine = np.sum(gradient * raw, axis=-1) / (np.linalg.norm(gradient, axis=-1) * np.linalg.norm(raw, axis=-1))
    np.testing.assert_allclose(cosine, 0.0, atol=1e-5)
    assert (np.linalg.norm(gradient, axis=-1) > 1.0).all()


def test_a_row_of_zeros_is_no_nan() -> None:
    value, gradient = jax.value_and_grad(lambda raw: kernel.normalise(raw).sum())(jnp.zeros((V, D)))
    assert value == 0 and np.isfinite(gradient).all()


@LEVELS
def test_noise_has_the_standard_deviation_sigma(sigma: Array) -> None:
    eps = jax.random.normal(KEYS[7], X.shape)
    wanted = np.asarray(X) + np.broadcast_to(np.asarray(sigma).reshape(B, -1), (B, L))[..., None] * np.asarray(eps)
    np.testing.assert_allclose(kernel.add_noise(X, sigma, eps), wanted, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 7.0, 300.0])
def test_the_noisy_input_has_unit_variance_at_every_sigma(sigma: float) -> None:
    """Of the channel that the network sees. 300,000 numbers; the bound is four standard errors of a variance, sqrt(2 / n)."""
    tokens = jax.random.randint(KEYS[4], (3000, 20), 0, V)
    level = jnp.full(3000, sigma)
    x = kernel.add_noise(TABLE[tokens], level, jax.random.normal(KEYS[7], (3000, 20, D)))
    inputs = []

    def network(features: Array, _: Array) -> Array:
        inputs.append(features[..., :D])
        return jnp.zeros((3000, 20, V))

    kernel.make_denoise(network, TABLE, jnp.zeros((3000, 20), bool), jnp.zeros_like(x), LOG_PRIOR, kernel.Options())(x, level, jnp.zeros_like(x))
    assert abs(np.mean(np.square(inputs[0])) - 1) < 4 * np.sqrt(2 / x.size)


@LEVELS
def test_the_local_posterior_is_bayes_rule_over_gaussians(sigma: Array) -> None:
    x, levels = np.asarray(X, np.float64), np.broadcast_to(np.asarray(sigma).reshape(B, -1), (B, L))
    distance = ((x[:, :, None] - np.asarray(TABLE, np.float64)) ** 2).sum(axis=-1)
    density = np.exp(LOG_PRIOR) * np.exp(-distance / (2 * levels[..., None] ** 2))
    p = density / density.sum(axis=-1, keepdims=True)
    x0, logits = kernel.local_posterior(X, sigma, TABLE, LOG_PRIOR)
    np.testing.assert_allclose(jax.nn.softmax(logits), p, atol=1e-5)
    np.testing.assert_allclose(x0, p @ TABLE, atol=1e-5)


@LEVELS
def test_the_interpolated_score_is_the_gradient_of_the_log_density(sigma: Array) -> None:
    levels = jnp.broadcast_to(kernel.per_position(sigma), (B, L))
    gradient = jax.vmap(jax.vmap(jax.grad(log_density)))(X, levels)
    x0 = kernel.local_posterior(X, sigma, TABLE, LOG_PRIOR).x0
    np.testing.assert_allclose(kernel.score(X, x0, sigma), gradient, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(kernel.drift(X, x0, sigma), -levels[..., None] * gradient, rtol=1e-4, atol=1e-4)


def test_the_score_of_sequences_is_that_of_their_marginals(world: Any) -> None:
    """Tokens that depend on each other: the marginals of the posterior are all that the score needs (paper, section 3.1)."""
    x, sigma = 2.0 * jax.random.normal(KEYS[2], (6, 3, 6)), jnp.geomspace(0.5, 10.0, 6)

    def density(x: Array, sigma: Array) -> Array:
        distance = jnp.sum((x[None] - world.table[world.sequences]) ** 2, axis=(1, 2))
        return jax.nn.logsumexp(jnp.log(jnp.asarray(world.probabilities, jnp.float32)) - distance / (2 * sigma**2))

    @jax.jit
    def scores(x: Array) -> tuple[Array, list[Array]]:
        options = (kernel.Options(), kernel.Options(output_prior=True))
        estimates = [world.blind(6, choice)(x, sigma, jnp.zeros_like(x)).x0 for choice in options]
        return jax.vmap(jax.grad(density))(x, sigma), [kernel.score(x, x0, sigma) for x0 in estimates]

    wanted, found = scores(x)
    for score in found:
        np.testing.assert_allclose(score, wanted, rtol=1e-3, atol=1e-3)


def test_certainty_is_exactly_the_tokens_embedding() -> None:
    logits = jnp.where(jax.nn.one_hot(TOKENS, V) > 0, 1e4, 0.0)
    np.testing.assert_array_equal(kernel.interpolate(logits, TABLE), TABLE[TOKENS])
    denoise = kernel.make_denoise(lambda *_: logits, TABLE, jnp.zeros_like(GIVEN), jnp.zeros_like(X), LOG_PRIOR, kernel.Options(output_prior=True))
    np.testing.assert_array_equal(denoise(X, PER_SEQUENCE, PREVIOUS).x0, TABLE[TOKENS])


def test_interpolation_is_in_float32_whatever_the_logits_are() -> None:
    assert kernel.interpolate(jnp.zeros((B, L, V), jnp.bfloat16), TABLE).dtype == jnp.float32
    assert kernel.cross_entropy(jnp.zeros((B, L, V), jnp.bfloat16), TOKENS).dtype == jnp.float32


def test_cross_entropy_is_minus_the_log_probability_of_the_token() -> None:
    logits = np.asarray(jax.random.normal(KEYS[7], (B, L, V))) * 5
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    wanted = -np.log(np.take_along_axis(p, np.asarray(TOKENS)[..., None], axis=-1)[..., 0])
    np.testing.assert_allclose(kernel.cross_entropy(jnp.asarray(logits), TOKENS), wanted, rtol=1e-4, atol=1e-5)


@LEVELS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_network_sees_four_channels(options: kernel.Options, sigma: Array) -> None:
    """(noisy input, clean, flag, previous) as the paper's figure 3 has them; the option changes the first alone."""
    features, level = seen(options, sigma)
    noisy, clean, flag, previous = np.split(np.asarray(features), (D, 2 * D, 2 * D + 1), axis=-1)
    given, levels = np.asarray(GIVEN)[..., None], np.broadcast_to(np.asarray(sigma).reshape(B, -1), (B, L))[..., None]
    embedded = np.where(given, np.asarray(TABLE)[TOKENS], 0)
    local = np.asarray(kernel.local_posterior(X, sigma, TABLE, LOG_PRIOR).x0)
    wanted = np.where(given, embedded, local) if options.posterior_mean_input else np.where(given, 0, X / np.sqrt(levels**2 + 1))
    np.testing.assert_allclose(noisy, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(clean, embedded)
    np.testing.assert_array_equal(flag, 1.0 - given)
    np.testing.assert_array_equal(previous, np.where(given, 0, PREVIOUS))
    np.testing.assert_array_equal(level, np.asarray(sigma).reshape(B, -1))


@LEVELS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_output_prior_adds_the_local_posterior_at_noisy_positions_alone(options: kernel.Options, sigma: Array) -> None:
    x0, logits = maker(options)(X, sigma, PREVIOUS)
    wanted = np.array(mixing_network(*seen(options, sigma)))
    if options.output_prior:
        wanted += np.where(GIVEN[..., None], 0, kernel.local_posterior(X, sigma, TABLE, LOG_PRIOR).logits)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x0, np.where(GIVEN[..., None], TABLE[TOKENS], jax.nn.softmax(wanted) @ TABLE), rtol=1e-4, atol=1e-4)


@LEVELS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_given_positions_see_no_noise(options: kernel.Options, sigma: Array) -> None:
    """Neither x nor previous at given positions changes anything, anywhere; nor does clean where nothing is given."""
    answer = maker(options)(X, sigma, PREVIOUS)
    here = GIVEN[..., None]
    other = maker(options, clean=jnp.where(here, TABLE[TOKENS], 7.0))(jnp.where(here, 9.0 - X, X), sigma, jnp.where(here, 5.0, PREVIOUS))
    jax.tree.map(np.testing.assert_array_equal, answer, other)
    np.testing.assert_array_equal(answer.x0[GIVEN], TABLE[TOKENS][GIVEN])
    for moved in (maker(options)(jnp.where(here, X, 9.0 - X), sigma, PREVIOUS), maker(options)(X, sigma, jnp.where(here, PREVIOUS, 5.0))):
        assert np.abs(np.asarray(moved.logits - answer.logits)).min() > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_hidden_conditioning_is_unseen_but_marked(options: kernel.Options) -> None:
    """Dropped conditioning: given positions are flagged, and hold nothing in any channel."""
    calls = []

    def network(features: Array, sigma: Array) -> Array:
        calls.append(features)
        return mixing_network(features, sigma)

    x0 = maker(options, network, clean=jnp.zeros_like(X))(X, PER_SEQUENCE, PREVIOUS).x0
    assert not np.asarray(calls[0])[np.asarray(GIVEN)].any()
    assert not np.asarray(x0)[np.asarray(GIVEN)].any()
