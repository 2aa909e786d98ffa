"""The training loss: what it counts, what it sees, and where its gradients go and do not go."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from cdcd_jax.config import Config, DataConfig, DiffusionConfig, ModelConfig, TrainConfig
from cdcd_jax.diffusion import kernel
from cdcd_jax.training.loss import draw, loss, make_denoise, make_warp, self_condition
from cdcd_jax.training.state import init_state
from cdcd_jax.training.step import make_apply

V, B, L, D = 11, 8, 6, 4
CONFIG = Config(
    data=DataConfig(sequence_length=L),
    model=ModelConfig(num_layers=1, width=16, num_heads=2, mlp_width=16, embedding_dim=D),
    diffusion=DiffusionConfig(sigma_min=0.3, sigma_max=20.0, warp_bins=12, warp_axis="log"),
    train=TrainConfig(batch_size=B),
)
BEYOND = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(CONFIG.model, output_prior=True, posterior_mean_input=True, noisy_vector=True, convolution_width=3),
    train=dataclasses.replace(CONFIG.train, position_sigma_fraction=0.5),
)
TOKENS = jax.random.randint(jax.random.key(1), (B, L), 0, V)
LOG_PRIOR = jax.nn.log_softmax(jax.random.normal(jax.random.key(2), (V,)))
QUICK = {"xla_backend_optimization_level": 0}  # half of the compile time; what runs here is tiny
KEY = jax.random.key(11)  # one with which every sequence has given tokens


@functools.cache
def initial(config: Config) -> Any:
    return jax.jit(lambda: init_state(config, LOG_PRIOR).params, compiler_options=QUICK)()


def trained(config: Config) -> Any:
    """Parameters away from initialisation, where the head is zero and hides everything."""
    leaves, tree = jax.tree.flatten(initial(dataclasses.replace(config, train=CONFIG.train)))
    generator = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [leaf + jnp.asarray(0.3 * generator.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


def with_train(config: Config = CONFIG, **changes: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


class Spy:
    """A network that records what it is shown; its logits depend on the position and nothing else."""

    def __init__(self) -> None:
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, params: Any, features: Array, sigma: Array) -> Array:
        self.calls.append((np.asarray(features), np.asarray(sigma)))
        logits = jax.random.normal(jax.random.key(7), (1, L, V))
        return jnp.tile(logits, (features.shape[0], 1, 1))

    def channels(self, call: int) -> list[np.ndarray]:
        """noisy input, clean, flag and previous of one call."""
        return np.split(self.calls[call][0], (D, 2 * D, 2 * D + 1), axis=-1)


def whole_loss(params: Any, sampling: Any, tokens: Array, config: Config, apply: Any) -> tuple[Array, dict[str, Array]]:
    warp = make_warp(config, sampling)
    batch = draw(warp, tokens, KEY, config)
    return loss(params, warp, LOG_PRIOR, batch, batch, config, apply)


def evaluate(config: Config, apply: Any, tokens: Array = TOKENS, params: Any = None) -> tuple[Array, dict[str, Array]]:
    params = trained(config) if params is None else params
    return whole_loss(params, params["warp"], tokens, config, apply)


@pytest.mark.parametrize("config", [CONFIG, BEYOND], ids=["the paper's", "beyond the paper"])
def test_gradients_keep_to_their_own(config: Config) -> None:
    """The main loss reaches embeddings and denoiser and not the warp; the warp's loss the warp alone; neither the warp that drew the levels."""
    params, apply = trained(config), make_apply(config, V)

    def both(params: Any, sampling: dict[str, Array]) -> Array:
        metrics = whole_loss(params, sampling, TOKENS, config, apply)[1]
        return jnp.stack([metrics["loss"], metrics["warp_loss"]])

    jacobian = jax.jit(jax.jacrev(both, argnums=(0, 1)), compiler_options=QUICK)
    of_params, of_sampling = jacobian(params, params["warp"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of_params))
    largest = {name: np.max([np.abs(leaf).reshape(2, -1).max(axis=1) for leaf in jax.tree.leaves(part)], axis=0) for name, part in of_params.items()}
    for name in ("embeddings", "denoiser"):
        assert largest[name][0] > 1e-4 and largest[name][1] == 0.0, name
    assert largest["warp"][0] == 0.0 and largest["warp"][1] > 1e-4
    assert all((np.asarray(leaf) == 0.0).all() for leaf in jax.tree.leaves(of_sampling))


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_the_loss_by_hand(fraction: float) -> None:
    """Mean cross-entropy over all noisy positions; the warp's error against each sequence's own mean, over sequences with one level."""
    config, spy = with_train(position_sigma_fraction=fraction), Spy()
    total, metrics = evaluate(config, spy)
    noisy, sigma = spy.channels(1)[2][..., 0].astype(bool), spy.calls[1][1]
    logits = np.asarray(spy(None, jnp.zeros((B, L, 1)), jnp.zeros((B, 1))), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    entropy = -np.log(np.take_along_axis(p, np.asarray(TOKENS)[..., None], axis=-1)[..., 0])
    np.testing.assert_allclose(metrics["loss"], entropy[noisy].mean(), rtol=1e-5)
    sequence = (entropy * noisy).sum(axis=1) / noisy.sum(axis=1)
    whole = (sigma == sigma[:, :1]).all(axis=1) if fraction else np.ones(B, bool)
    assert whole.sum() == B * (1 - fraction) and sigma.shape == ((B, L) if fraction else (B, 1))
    warp = make_warp(config, trained(config)["warp"])
    level = jnp.asarray(sigma[:, 0])
    errors = (np.asarray(warp.entropy(level)) - sequence) ** 2 / np.asarray(warp.axis_pdf(level))
    np.testing.assert_allclose(metrics["warp_loss"], errors[whole].mean(), rtol=1e-4)
    np.testing.assert_allclose(total, metrics["loss"] + metrics["warp_loss"], rtol=1e-6)


def test_given_tokens_are_not_counted() -> None:
    """With a network that looks at nothing, other tokens at given positions change nothing, and other tokens at noisy positions do."""
    spy = Spy()
    answer = evaluate(CONFIG, spy)
    noisy = spy.channels(1)[2][..., 0] > 0
    assert 0 < noisy.sum() < noisy.size
    other = (TOKENS + 1) % V
    jax.tree.map(np.testing.assert_array_equal, answer, evaluate(CONFIG, Spy(), jnp.where(noisy, TOKENS, other)))
    assert evaluate(CONFIG, Spy(), jnp.where(noisy, other, TOKENS))[0] != answer[0]


@pytest.mark.parametrize("config", [CONFIG, BEYOND], ids=["the paper's", "beyond the paper"])
def test_given_tokens_condition_the_rest_unless_they_are_hidden(config: Config) -> None:
    """With a real network: other tokens at given positions change the loss, and change nothing at all when conditioning is always dropped."""
    spy = Spy()
    evaluate(config, spy)
    other = jnp.where(spy.channels(1)[2][..., 0] > 0, TOKENS, (TOKENS + 1) % V)

    def compiled(config: Config) -> Any:
        return jax.jit(lambda tokens: evaluate(config, make_apply(config, V), tokens), compiler_options=QUICK)

    shown, hidden = (compiled(with_train(config, conditioning_dropout=dropout)) for dropout in (0.0, 1.0))
    assert shown(TOKENS)[0] != shown(other)[0]
    jax.tree.map(np.testing.assert_array_equal, hidden(TOKENS), hidden(other))


@pytest.mark.parametrize(("dropout", "hidden"), [(0.0, 0), (0.25, 2), (0.5, 4)])
def test_exactly_the_dropped_examples_hide_what_is_given(dropout: float, hidden: int) -> None:
    """Hidden rows are flagged as the others, and hold zeros in every channel."""
    spy = Spy()
    evaluate(with_train(conditioning_dropout=dropout), spy)
    noisy, clean, flag, previous = spy.channels(1)
    given = flag[..., 0] == 0
    shown = np.abs(clean).max(axis=-1) > 0
    assert given.any(axis=1).all() and not (shown & ~given).any()
    assert ((shown == given).all(axis=1) ^ ~shown.any(axis=1)).all() and (~shown.any(axis=1)).sum() == hidden
    assert not noisy[given].any() and not previous[given].any()
    table = np.asarray(kernel.normalise(trained(CONFIG)["embeddings"]["table"]))
    np.testing.assert_allclose(clean[shown], table[np.asarray(TOKENS)[shown]], rtol=1e-6)


def test_half_of_the_batch_is_self_conditioned() -> None:
    """The extra pass has B / 2 rows and no previous; those rows alone get its estimate, the others zeros."""
    spy = Spy()
    evaluate(CONFIG, spy)
    assert [features.shape[0] for features, _ in spy.calls] == [B // 2, B]
    assert not spy.channels(0)[3].any()
    noisy, clean, flag, previous = spy.channels(1)
    has = np.abs(previous).max(axis=(1, 2)) > 0
    assert has.sum() == B // 2
    for first, second in zip(spy.channels(0)[:3], (noisy, clean, flag), strict=True):
        np.testing.assert_array_equal(first, second[has])
    np.testing.assert_array_equal(spy.calls[0][1], spy.calls[1][1][has])
    table = kernel.normalise(trained(CONFIG)["embeddings"]["table"])
    estimate = kernel.interpolate(spy(None, jnp.zeros((B // 2, L, 1)), jnp.zeros(1)), table)
    np.testing.assert_allclose(previous[has], np.asarray(estimate) * flag[has], rtol=1e-5)


def test_without_self_conditioning_there_is_one_pass() -> None:
    spy = Spy()
    evaluate(with_train(self_conditioning=False), spy)
    assert len(spy.calls) == 1 and not spy.channels(0)[3].any()


def test_no_gradient_passes_through_the_first_estimate() -> None:
    params, apply = trained(CONFIG), make_apply(CONFIG, V)
    x, sigma, given = jax.random.normal(KEY, (B, L, D)), jnp.linspace(0.5, 4.0, B), jnp.zeros((B, L), bool)

    def previous(params: Any, x: Array) -> Array:
        return self_condition(lambda rows: make_denoise(CONFIG, apply, params, LOG_PRIOR, *rows), x, sigma, given, jnp.zeros_like(x))

    def pulled(params: Any, x: Array) -> Any:
        value, pull = jax.vjp(previous, params, x)
        return value, pull(jnp.ones_like(value))

    value, pull = jax.jit(pulled, compiler_options=QUICK)(params, x)
    assert np.abs(np.asarray(value)[0::2]).max() > 0 and not np.asarray(value)[1::2].any()
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(pull))


def test_noise_levels_come_from_the_sampling_warp() -> None:
    """The averaged warp draws them, evenly in its own u; the live one has no say."""
    params, spy = trained(CONFIG), Spy()
    logits = {name: -values for name, values in params["warp"].items()}
    whole_loss(params, logits, TOKENS, CONFIG, spy)
    sampling = make_warp(CONFIG, logits)
    u = np.asarray(sampling.cdf(jnp.asarray(spy.calls[1][1][:, 0])))
    np.testing.assert_allclose(np.diff(np.sort(u)), 1 / B, atol=1e-4)
    x = spy.channels(1)[0] * np.sqrt(spy.calls[1][1] ** 2 + 1)[..., None]
    table = np.asarray(kernel.normalise(params["embeddings"]["table"]))
    noise = ((x - table[np.asarray(TOKENS)]) / spy.calls[1][1][..., None])[spy.channels(1)[2][..., 0] > 0]
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size) and abs(noise.mean()) < 4 / np.sqrt(noise.size)
