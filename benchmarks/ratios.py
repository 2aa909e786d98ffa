"""The measurements: each takes a config and returns a Result. Weights and tokens are random; time does not depend on them."""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.timing import Pair, in_turn
from cdcd_jax.config import Config
from cdcd_jax.data import pipeline, prepared
from cdcd_jax.data.tokenizers import CharTokenizer
from cdcd_jax.diffusion import kernel
from cdcd_jax.evaluation import generate
from cdcd_jax.evaluation.model import Model, denoise_of
from cdcd_jax.parallel.mesh import batch_sharding, make_mesh
from cdcd_jax.parallel.sharding import shardings
from cdcd_jax.training import masks
from cdcd_jax.training.loss import make_denoise
from cdcd_jax.training.state import TrainState, init_state
from cdcd_jax.training.step import Step, make_apply, make_step

SHALLOW, DEEP = 4, 24  # layers, for the compile time


@dataclasses.dataclass(frozen=True)
class Result:
    """A measurement: `value` in `unit`, what it was held against, and what else explains it."""

    value: float
    unit: str
    reference: str
    details: dict[str, Any]


def vocabulary(config: Config) -> int:
    """The size of the vocabulary that the config's tokenizer would have: 256 bytes, 27 characters, or data.vocab_size pieces."""
    return {"byte": 256, "char": 27}.get(config.data.tokenizer, config.data.vocab_size)


def log_prior(config: Config) -> jax.Array:
    """Unigram log probabilities that fall off as 1 / rank, as those of words do."""
    return jax.nn.log_softmax(-jnp.log(1.0 + jnp.arange(vocabulary(config), dtype=jnp.float32)))


def random_tokens(config: Config, shape: tuple[int, ...]) -> np.ndarray:
    """Uniformly random token ids."""
    return np.random.default_rng(0).integers(0, vocabulary(config), shape, dtype=np.int32)


def start(config: Config) -> tuple[Step, TrainState, Mesh]:
    """The train step as the loop makes it, and the state that it starts from, on all devices."""
    prior, mesh = log_prior(config), make_mesh(config)
    sharding = shardings(config, jax.eval_shape(lambda: init_state(config, prior)), mesh)
    state = jax.jit(lambda: init_state(config, prior), out_shardings=sharding)()
    return make_step(config, sharding, batch_sharding(mesh)), state, mesh


def of_pair(pair: Pair, reference: str, **details: Any) -> Result:
    """The ratio of a pair, with the seconds behind it."""
    both = {"seconds": statistics.median(pair.measured), "reference_seconds": statistics.median(pair.reference), "repeats": len(pair.measured)}
    spread: dict[str, Any] = {"quartiles": list(pair.quartiles)}
    if jax.default_backend() == "cpu":
        spread["cpu_ratio"] = pair.cpu_ratio
    return Result(pair.ratio, "ratio", reference, spread | both | details)


def train_step_ratio(config: Config, repeats: int, num_steps: int) -> Result:
    """A whole train step over forward and backward of the bare denoiser on the same batch.

    Measured: `training.step.make_step`, jitted, its state donated: masks, noise levels and noise are drawn; the extra pass of self-conditioning; the
    loss and its gradient; the warp's fit; the optimiser; the averages; the metrics.
    Reference: one jitted gradient, with respect to embeddings and denoiser, of the mean cross-entropy at noisy positions of one call of the kernel's
    denoise, with the config's inputs and output prior, `previous` zero. The table's normalisation and look-up and x = x0 + sigma eps are in it,
    since gradients pass through them; tokens, given positions, sigma and eps are made beforehand, with the train step's own distributions. It draws
    no random number, has no second pass, no warp, no optimiser and no average.
    """
    del num_steps
    step, state, mesh = start(config)
    t, d, length = config.train, config.diffusion, config.data.sequence_length
    tokens = jax.device_put(random_tokens(config, (t.batch_size, length)), batch_sharding(mesh))
    mask_key, time_key, noise_key = jax.random.split(jax.random.key(0), 3)
    given = masks.given_mask(mask_key, t.batch_size, length, t.given_fraction, t.prefix_fraction)
    u, _ = masks.warped_times(time_key, t.batch_size, length, t.position_sigma_fraction)
    sigma = jnp.exp(jnp.log(d.sigma_min) + u * jnp.log(d.sigma_max / d.sigma_min))
    sigma = sigma if t.position_sigma_fraction else sigma[:, 0]
    eps = jax.random.normal(noise_key, (*tokens.shape, config.model.embedding_dim))
    given, sigma, eps = (jax.device_put(a, batch_sharding(mesh)) for a in (given, sigma, eps))
    apply, prior = make_apply(config, vocabulary(config)), log_prior(config)
    params = jax.tree.map(jnp.copy, {name: state.params[name] for name in ("embeddings", "denoiser")})  # the state's own are donated

    @jax.jit
    @jax.grad
    def bare(params: dict[str, Any], tokens: jax.Array, given: jax.Array, sigma: jax.Array, eps: jax.Array) -> jax.Array:
        x0 = kernel.normalise(params["embeddings"]["table"])[tokens]
        denoise = make_denoise(config, apply, params, prior, given, x0 * given[..., None])
        logits = denoise(kernel.add_noise(x0, sigma, eps), sigma, jnp.zeros_like(x0)).logits
        return jnp.sum(kernel.cross_entropy(logits, tokens) * ~given) / jnp.sum(~given)

    def advance() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = step(state, {"tokens": tokens})
        return metrics

    pair = in_turn(advance, lambda: bare(params, tokens, given, sigma, eps), repeats, warm_up=3)
    return of_pair(pair, "forward + backward of the bare denoiser, one pass, same batch", batch_size=t.batch_size, vocabulary=vocabulary(config))


def sampler_ratio(config: Config, repeats: int, num_steps: int) -> Result:
    """Sampling in N = num_steps Euler steps, as `evaluation.generate.make_sampler` does it, over N + 1 calls of the bare denoiser.

    Measured: one jitted call, from keys to tokens, for a batch of generate.BATCH sequences of which nothing is given.
    Reference: N + 1 jitted calls of the kernel's denoise, one after the other: x, sigma and previous in, x0 out, with the softmax over the vocabulary
    and the interpolation that it is for. No solver, no grid, no random number, no argmax.
    """
    settings = dataclasses.replace(config.sample, num_steps=num_steps, solver="euler", guidance=1.0)
    params = jax.jit(lambda: init_state(config, log_prior(config)))().ema
    model = Model(config, CharTokenizer("".join(chr(0x4E00 + i) for i in range(vocabulary(config)))), params, log_prior(config), 0)
    shape = (generate.BATCH, config.data.sequence_length)
    tokens, given, keys = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool), generate.keys_for(0, 0, generate.BATCH)
    run = generate.make_sampler(model, settings)
    previous = jnp.zeros((*shape, config.model.embedding_dim))
    x = config.diffusion.sigma_max * jax.random.normal(jax.random.key(0), previous.shape)
    levels = list(jnp.geomspace(config.diffusion.sigma_max, config.diffusion.sigma_min, num_steps + 1)[:, None] * jnp.ones((1, generate.BATCH)))

    @jax.jit
    def bare(params: dict[str, Any], x: jax.Array, sigma: jax.Array, previous: jax.Array) -> jax.Array:
        return denoise_of(model, params, tokens, given, jnp.ones(generate.BATCH, bool))(x, sigma, previous).x0

    pair = in_turn(lambda: run(params, tokens, given, keys), lambda: [bare(params, x, sigma, previous) for sigma in levels], repeats, warm_up=1)
    return of_pair(
        pair,
        f"{num_steps + 1} calls of the bare denoiser with the vocabulary softmax",
        num_steps=num_steps,
        batch_size=generate.BATCH,
        vocabulary=vocabulary(config),
    )


def compile_time_ratio(config: Config, repeats: int, num_steps: int) -> Result:
    """Tracing, lowering and compiling the train step with 24 layers over the same with 4 layers. Nothing is run."""
    del num_steps

    def compile_with(layers: int) -> None:
        deep = dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=layers))
        mesh = make_mesh(config)
        abstract = jax.eval_shape(lambda: init_state(deep, log_prior(deep)))
        tokens = jax.ShapeDtypeStruct((config.train.batch_size, config.data.sequence_length), jnp.int32)
        make_step(deep, shardings(config, abstract, mesh), batch_sharding(mesh)).lower(abstract, {"tokens": tokens}).compile()

    jax.config.update("jax_enable_compilation_cache", False)
    pair = in_turn(lambda: compile_with(DEEP), lambda: compile_with(SHALLOW), repeats, warm_up=1)
    return of_pair(pair, f"compile time with {SHALLOW} layers; measured: with {DEEP}")


def data_wait(config: Config, repeats: int, num_steps: int) -> Result:
    """The share of a run's time that the loop waits for data: `next` of the real pipeline and the copy to the devices, over num_steps steps.

    As in the loop, a step is waited for only once the next one is under way. The text is a million random tokens in memory, unless data.source is a
    prepared folder; a repeat goes on where the one before it ended.
    """
    step, state, mesh = start(config)
    if prepared.is_folder(config.data.source):
        rows: pipeline.Rows = pipeline.load_corpus(config.data, share=(0, 1)).train
    else:
        rows = pipeline.Crops(random_tokens(config, (1_000_000,)), config.data.sequence_length)
    batches = pipeline.batches(rows, config.train.batch_size, 0, 0, 1)
    shares, before = [], None

    def fetch() -> dict[str, jax.Array]:
        return {name: jax.make_array_from_process_local_data(batch_sharding(mesh), values) for name, values in next(batches).items()}

    try:
        state, before = step(state, fetch())
        for _ in range(repeats):
            jax.block_until_ready(before)
            began, waited = time.perf_counter(), 0.0
            for _ in range(num_steps):
                asked = time.perf_counter()
                batch = fetch()
                waited += time.perf_counter() - asked
                state, metrics = step(state, batch)
                jax.block_until_ready(before)
                before = metrics
            shares.append(waited / (time.perf_counter() - began))
    finally:
        batches.close()
    return Result(statistics.median(shares), "fraction of step time", "wall time of the loop's steps", {"steps": num_steps, "repeats": repeats})
