"""Training, sampling and scoring reach the network through one maker of denoisers, and get bit-equal answers from it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from cdcd_jax.config import Config, DataConfig, DiffusionConfig, ModelConfig, SampleConfig, TrainConfig
from cdcd_jax.data.tokenizers import CharTokenizer
from cdcd_jax.diffusion import guidance, kernel, sampler, solvers
from cdcd_jax.evaluation import generate
from cdcd_jax.evaluation.model import Model, denoise_of, warp_of
from cdcd_jax.model.denoiser import Denoiser
from cdcd_jax.training import telemetry
from cdcd_jax.training.loss import draw, loss, make_warp
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


QUICK = {"xla_backend_optimization_level": 0}  # half of the compile time; what runs here is tiny


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer = CharTokenizer("abcdefg")
    log_prior = jax.nn.log_softmax(jnp.arange(tokenizer.vocab_size) * 0.3)
    leaves, tree = jax.tree.flatten(jax.jit(lambda: init_state(CONFIG, log_prior).params, compiler_options=QUICK)())
    generator = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [leaf + jnp.asarray(0.3 * generator.normal(size=leaf.shape), jnp.float32) for leaf in leaves])
    return Model(CONFIG, tokenizer, params, log_prior, 1)


def test_all_rooms_reach_the_network_through_one_maker(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the network happens inside a denoiser of kernel.make_denoise; and the denoisers that the loss, the sampler and the measure made
    answer the same inputs with the same bits.

    Each denoiser is turned into its program and the arrays that it closes over (parameters, table, what is given); a callback brings these out of
    the room's own compiled function. The arrays must agree, and the three programs, run on the same arrays, must answer alike.
    """
    made: list[tuple[Any, tuple[Array, ...]]] = []
    depth, applied = [0], [0]
    make, apply = kernel.make_denoise, Denoiser.apply
    x, previous = 3 * jax.random.normal(jax.random.key(1), (B, L, D)), jax.random.normal(jax.random.key(2), (B, L, D))
    sigma = jnp.array([0.3, 1.0, 4.0, 20.0])

    def watched_make(network: Any, table: Array, given: Array, *rest: Any) -> kernel.Denoise:
        denoise = make(network, table, given, *rest)

        def inside(*arguments: Array) -> kernel.Denoised:
            depth[0] += 1
            try:
                return denoise(*arguments)
            finally:
                depth[0] -= 1

        if given.shape[0] == B:  # the extra pass of self-conditioning has half of the rows
            program = jax.make_jaxpr(inside)(x, sigma, previous)
            jax.debug.callback(lambda *arrays: made.append((program.jaxpr, arrays)), *program.consts)
        return inside

    def watched_apply(*arguments: Any) -> Any:
        assert depth[0] == 1, "the network was called by someone else than a denoiser"
        applied[0] += 1
        return apply(*arguments)

    monkeypatch.setattr(kernel, "make_denoise", watched_make)
    monkeypatch.setattr(Denoiser, "apply", watched_apply)
    warp, levels = make_warp(CONFIG, model.params["warp"]), jnp.linspace(0.1, 0.9, B)
    batch = draw(warp, TOKENS, jax.random.key(0), CONFIG)
    train = jax.jit(lambda p: loss(p, warp, model.log_prior, batch, batch, CONFIG, make_apply(CONFIG, 7)), compiler_options=QUICK)
    rooms = {
        "training": lambda: train(model.params),
        "sampling": lambda: generate.make_sampler(model, SampleConfig(num_steps=2))(model.params, TOKENS, NOTHING, KEYS),
        "scoring": lambda: telemetry.make_measure(CONFIG, model.apply)(model.params, model.log_prior, {"tokens": TOKENS}, levels, jax.random.key(0)),
    }
    answers = []
    for number, (room, run) in enumerate(rooms.items()):
        before = applied[0]
        jax.block_until_ready(run())
        jax.effects_barrier()
        assert applied[0] > before and len(made) == number + 1, room
        program, arrays = made[-1]
        for array, first in zip(arrays, made[0][1], strict=True):
            np.testing.assert_allclose(array, first, rtol=1e-5, atol=1e-6)  # the table was normalised by three compiled programs
        answer = jax.jit(jaxpr_as_fun(ClosedJaxpr(program, made[0][1])), compiler_options=QUICK)(x, sigma, previous)
        assert [a.shape for a in answer] == [(B, L, D), (B, L, 7)] and np.ptp(np.asarray(answer[1])) > 1
        answers.append(answer)
    for answer in answers[1:]:
        jax.tree.map(np.testing.assert_array_equal, answer, answers[0])


def test_default_settings_are_the_base_sampler_bit_for_bit(model: Model) -> None:
    """Temperature 1, noise scale 1 and guidance 1 are no step, no factor and no second pass: every probability along the path is the same."""
    arguments = (model.params, TOKENS, SOME, KEYS)

    @jax.jit
    def base(params: Any, tokens: Array, given: Array, keys: Array) -> sampler.Frames:
        noise = jax.vmap(lambda key: jax.random.normal(key, (L, D)))(keys)
        denoise = denoise_of(model, params, tokens, given, jnp.ones(B, bool))
        return sampler.trajectory(denoise, warp_of(model, params), solvers.euler, noise, given, keys[0], 8, 7)

    frames = generate.make_sampler(model, SampleConfig(num_steps=8), candidates=7)(*arguments)
    assert (np.asarray(frames.probabilities[-1, ..., 0]) < 1).any() and np.ptp(np.asarray(frames.entropy)) > 0.5
    jax.tree.map(np.testing.assert_array_equal, frames, base(*arguments))


def test_guidance_of_scale_one_samples_what_the_plain_sampler_samples(model: Model) -> None:
    """make_sampler skips the second half at scale 1; taking it changes nothing. A larger scale does, where something is given."""
    noise = jax.random.normal(jax.random.key(3), (B, L, D))

    def end(denoise: kernel.Denoise, given: Array) -> Array:
        return sampler.integrate(denoise, warp_of(model, model.params), solvers.euler, noise, given, jax.random.key(0), 8).x

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(scale: Array, given: Array) -> tuple[Array, Array]:
        twice = [jnp.concatenate([a, a]) for a in (TOKENS, given)]
        pair = denoise_of(model, model.params, *twice, jnp.arange(2 * B) < B)
        plain = denoise_of(model, model.params, TOKENS, given, jnp.ones(B, bool))
        return end(guidance.classifier_free(pair, scale), given), end(plain, given)

    for scale, given, same in ((1.0, SOME, True), (4.0, SOME, False), (4.0, NOTHING, True)):
        guided, plain = both(scale, given)
        assert np.allclose(guided, plain, atol=1e-3) == same
