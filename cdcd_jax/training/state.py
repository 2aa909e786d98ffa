"""The training state: everything that a step changes, and the constant that it needs (no key: keys are made from the step's number)."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cdcd_jax.config import Config
from cdcd_jax.diffusion.warp import Warp
from cdcd_jax.model.denoiser import Denoiser
from cdcd_jax.model.layers import Constrain, anywhere
from cdcd_jax.training.optim import make_optimizer

INIT_STREAM, TRAIN_STREAM, PROBE_STREAM = range(3)


class TrainState(flax.struct.PyTreeNode):
    """`params` and `ema` are {"embeddings", "denoiser", "warp"}; `log_prior` [V] holds the unigram log probabilities of the training tokens.

    The leaves are arrays, or what stands for them (shapes, shardings), so their types are not annotations.
    """

    step: Any  # int32 []
    params: Any
    ema: Any
    opt_state: Any
    log_prior: Any  # float32 [V]


def stream_key(config: Config, stream: int, step: int | Array) -> jax.Array:
    """The key of one stream of random numbers at one step: fold_in(fold_in(root, stream), step)."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.train.seed), stream), step)


def make_network(config: Config, vocab_size: int, constrain: Constrain = anywhere) -> Denoiser:
    """The denoiser that the config describes; `constrain` says where its activations lie."""
    m = config.model
    return Denoiser(
        vocab_size,
        m.num_layers,
        m.width,
        m.num_heads,
        m.mlp_width,
        m.convolution_width,
        m.sigma_conditioning,
        m.noisy_vector,
        m.scan_unroll,
        jnp.dtype(m.dtype),
        m.remat,
        constrain,
    )


def init_state(config: Config, log_prior: Float[Array, "V"]) -> TrainState:
    """The state before the first step; pure in (config, log_prior), so it can be jitted straight into its shardings."""
    table_key, network_key = jax.random.split(stream_key(config, INIT_STREAM, 0))
    m, d, vocab_size = config.model, config.diffusion, log_prior.shape[0]
    features = jnp.zeros((1, config.data.sequence_length, 3 * m.embedding_dim + 1))
    warp = Warp.identity(d.warp_bins, d.sigma_min, d.sigma_max, d.warp_axis, d.warp_floor)
    params = {
        "embeddings": {"table": m.embedding_std * jax.random.normal(table_key, (vocab_size, m.embedding_dim))},
        "denoiser": make_network(config, vocab_size).init(network_key, features, jnp.ones((1, 1)))["params"],
        "warp": {"axis_logits": warp.axis_logits, "entropy_logits": warp.entropy_logits},
    }
    opt_state = make_optimizer(config).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), opt_state, log_prior)
