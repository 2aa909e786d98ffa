"""The train step: one pure function, jitted once, its state donated and always sharded."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from cdcd_jax.config import Config
from cdcd_jax.training.loss import Apply, loss, make_warp
from cdcd_jax.training.optim import make_optimizer, model_norm
from cdcd_jax.training.state import TRAIN_STREAM, TrainState, make_network, stream_key

Step = Callable[[TrainState, Array], tuple[TrainState, dict[str, Array]]]


def make_apply(config: Config, vocab_size: int) -> Apply:
    """The network as a plain function of (parameters, features, sigma)."""
    network = make_network(config, vocab_size)

    def apply(params: Any, features: Array, sigma: Array) -> Array:
        logits = network.apply({"params": params}, features, sigma)
        assert isinstance(logits, jax.Array)  # no mutable collections, so no second answer
        return logits

    return apply


def train_step(state: TrainState, tokens: Array, config: Config, optimizer: optax.GradientTransformation) -> tuple[TrainState, dict[str, Array]]:
    """One update of embeddings, denoiser and warp together, and of their averages. tokens [B, L]; metrics are scalars of this step."""
    key = stream_key(config, TRAIN_STREAM, state.step)
    apply = make_apply(config, state.log_prior.shape[0])
    sampling_warp = jax.lax.stop_gradient(make_warp(config, state.ema["warp"]))
    gradient, metrics = jax.grad(loss, has_aux=True)(state.params, sampling_warp, state.log_prior, tokens, key, config, apply)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = model_norm(gradient)
    return state.replace(step=state.step + 1, params=params, ema=average(state, params, config), opt_state=opt_state), metrics


def average(state: TrainState, params: dict[str, Any], config: Config) -> dict[str, Any]:
    """The exponential moving averages, with a short memory at first so that the initial values are forgotten soon."""
    young = (1.0 + state.step) / (10.0 + state.step)
    decay = {name: jnp.minimum(config.diffusion.warp_ema_decay if name == "warp" else config.optim.ema_decay, young) for name in params}
    return {name: jax.tree.map(lambda a, p, d=decay[name]: d * a + (1.0 - d) * p, state.ema[name], params[name]) for name in params}


def make_step(config: Config, state_shardings: Any, batch_sharding: Any) -> Step:
    """The jitted step. The state that goes in is donated: use only the one that comes out."""
    optimizer = make_optimizer(config)
    return jax.jit(
        lambda state, tokens: train_step(state, tokens, config, optimizer),
        donate_argnums=0,
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, None),
    )
