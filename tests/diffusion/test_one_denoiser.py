"""Training, sampling and scoring reach the network through one maker of denoisers, and get bit-equal answers from it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from cdcd_jax.config import Config, DataConfig, DiffusionConfig, ModelConfig, SampleConfig, TrainConfig
from cdcd_jax.data.tokenizers import CharTokenizer
from cdcd_jax.diffusion import guidance, kernel, sampler, solvers
from cdcd_jax.evaluation import generate
from cdcd_jax.evaluation.model import Model, denoise_of, warp_of
from cdcd_jax.model.denoiser import Denoiser
from cdcd_jax.training import telemetry
from cdcd_jax.training.loss import loss, make_warp
from cdcd_jax.training.state import init_state
from cdcd_jax.training.step import make_apply

B, L, D = 4, 6, 4
CONFIG = Config(
    data=DataConfig(sequence_length=L, tokenizer="char"),
    model=ModelConfig(
        num_layers=1, width=8, num_heads=2, mlp_width=8, embedding_dim=D,
        output_prior=True, posterior_mean_input=True, noisy_vector=True, convolution_width=3,
    ),
    diffusion=DiffusionConfig(sigma_min=0.3, sigma_max=20.0, warp_bins=12, warp_axis="log"),
    train=TrainConfig(batch_size=B, given_fraction=0.0),
)  # fmt: skip
TOKENS = jnp.arange(B * L).reshape(B, L) % 7
NOTHING = jnp.zeros((B, L), bool)
SOME = jnp.asarray(np.random.default_rng(1).random((B, L)) < 0.4)
KEYS = generate.keys_for(5, 0, B)


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer = CharTokenizer("abcdefg")
    log_prior = jax.nn.log_softmax(jnp.arange(tokenizer.vocab_size) * 0.3)
    leaves, tree = jax.tree.flatten(init_state(CONFIG, log_prior).params)
    generator = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [leaf + jnp.asarray(0.3 * generator.normal(size=leaf.shape), jnp.float32) for leaf in leaves])
    return Model(CONFIG, tokenizer, params, log_prior, 1)


def test_all_rooms_reach_the_network_through_one_maker(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the network happens inside a denoiser of kernel.make_denoise; and the denoisers that the loss, the sampler and the measure made
    answer the same inputs with the same bits."""
    made: list[kernel.Denoise] = []
    depth, applied = [0], [0]
    make, apply = kernel.make_denoise, Denoiser.apply

    def watched_make(*arguments: Any) -> kernel.Denoise:
        denoise = make(*arguments)

        def inside(x: Array, sigma: Array, previous: Array) -> kernel.Denoised:
            depth[0] += 1
            try:
                return denoise(x, sigma, previous)
            finally:
                depth[0] -= 1

        made.append(inside)
        return inside

    def watched_apply(*arguments: Any) -> Any:
        assert depth[0] == 1, "the network was called by someone else than a denoiser"
        applied[0] += 1
        return apply(*arguments)

    monkeypatch.setattr(kernel, "make_denoise", watched_make)
    monkeypatch.setattr(Denoiser, "apply", watched_apply)
    last, calls = {}, {}
    with jax.disable_jit():  # so that what the denoisers close over are arrays, and not the tracers of a finished trace
        for room, run in {
            "training": lambda: loss(
                model.params, make_warp(CONFIG, model.params["warp"]), model.log_prior, TOKENS, jax.random.key(0), CONFIG, make_apply(CONFIG, 7)
            ),
            "sampling": lambda: generate.make_sampler(model, SampleConfig(num_steps=2))(model.params, TOKENS, NOTHING, KEYS),
            "scoring": lambda: telemetry.make_measure(CONFIG, model.apply)(
                model.params, model.log_prior, TOKENS, jnp.linspace(0.1, 0.9, B), jax.random.key(0)
            ),
        }.items():
            before = len(made), applied[0]
            run()
            calls[room] = applied[0] - before[1]
            assert len(made) > before[0], room
            last[room] = made[-1]
        assert calls == {"training": 2, "sampling": 3, "scoring": 4}
        x, previous = 3 * jax.random.normal(jax.random.key(1), (B, L, D)), jax.random.normal(jax.random.key(2), (B, L, D))
        for sigma in (jnp.full(B, 0.3), jnp.array([0.5, 1.0, 4.0, 20.0])):
            answers = [last[room](x, sigma, previous) for room in ("training", "sampling", "scoring")]
            assert np.ptp(np.asarray(answers[0].logits)) > 1
            for answer in answers[1:]:
                jax.tree.map(np.testing.assert_array_equal, answer, answers[0])


def test_default_settings_are_the_base_sampler_bit_for_bit(model: Model) -> None:
    """Temperature 1, noise scale 1 and guidance 1 are no step, no factor and no second pass."""

    @jax.jit
    def base(params: Any, tokens: Array, given: Array, keys: Array) -> Array:
        noise = jax.vmap(lambda key: jax.random.normal(key, (L, D)))(keys)
        denoise = denoise_of(model, params, tokens, given, jnp.ones(B, bool))
        return sampler.integrate(denoise, warp_of(model, params), solvers.euler, noise, given, keys[0], 8).x

    @jax.jit
    def tempered(params: Any, tokens: Array, given: Array, keys: Array) -> Array:
        noise = 1.0 * jax.vmap(lambda key: jax.random.normal(key, (L, D)))(keys)
        denoise = denoise_of(model, params, tokens, given, jnp.ones(B, bool))

        def step(*arguments: Any) -> Any:
            return solvers.euler(*arguments, temperature=1.0)

        return sampler.integrate(denoise, warp_of(model, params), step, noise, given, keys[0], 8).x

    arguments = (model.params, TOKENS, SOME, KEYS)
    x = base(*arguments)
    np.testing.assert_array_equal(tempered(*arguments), x)
    sampled = np.asarray(generate.make_sampler(model, SampleConfig(num_steps=8))(*arguments))
    denoise = denoise_of(model, model.params, TOKENS, SOME, jnp.ones(B, bool))
    assert CONFIG.sample == SampleConfig(num_steps=200)
    np.testing.assert_array_equal(sampled[np.asarray(SOME)], np.asarray(TOKENS)[np.asarray(SOME)])
    assert denoise(x, jnp.full(B, 0.3), jnp.zeros_like(x)).logits.shape == (B, L, 7)


def test_guidance_of_scale_one_samples_what_the_plain_sampler_samples(model: Model) -> None:
    """make_sampler skips the second half at scale 1; taking it gives the same tokens. A larger scale gives others, where something is given."""
    noise = jax.random.normal(jax.random.key(3), (B, L, D))

    @jax.jit
    def guided(scale: Array, given: Array) -> Array:
        twice = [jnp.concatenate([a, a]) for a in (TOKENS, given)]
        pair = denoise_of(model, model.params, *twice, jnp.arange(2 * B) < B)
        denoise = guidance.classifier_free(pair, scale)
        return sampler.integrate(denoise, warp_of(model, model.params), solvers.euler, noise, given, jax.random.key(0), 8).x

    plain = jax.jit(
        lambda given: sampler.integrate(
            denoise_of(model, model.params, TOKENS, given, jnp.ones(B, bool)), warp_of(model, model.params), solvers.euler, noise, given,
            jax.random.key(0), 8,
        ).x
    )  # fmt: skip
    np.testing.assert_allclose(guided(1.0, SOME), plain(SOME), atol=1e-3)
    assert np.abs(np.asarray(guided(4.0, SOME) - plain(SOME))).max() > 1e-2
    np.testing.assert_allclose(guided(4.0, NOTHING), plain(NOTHING), atol=1e-3)
