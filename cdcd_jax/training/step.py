"""The train step: one pure function, jitted once, its state donated and always sharded."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from cdcd_jax.config import Config
from cdcd_jax.diffusion.warp import Warp
from cdcd_jax.model.layers import Constrain, anywhere
from cdcd_jax.parallel.mesh import constrain
from cdcd_jax.parallel.sharding import gathered
from cdcd_jax.training.loss import Apply, Examples, draw, loss, make_warp
from cdcd_jax.training.optim import make_optimizer, model_norm
from cdcd_jax.training.state import TRAIN_STREAM, TrainState, make_network, stream_key

Batch = dict[str, Array]  # "tokens" int32 [B, L], and "segments" int32 [B, L] where rows hold several documents or padding
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_apply(config: Config, vocab_size: int, constrain: Constrain = anywhere) -> Apply:
    """The network as a plain function of (parameters, features, sigma[, segments]); on a mesh, `constrain` says where its activations lie."""
    network = make_network(config, vocab_size, constrain)

    def apply(params: Any, features: Array, sigma: Array, *segments: Array) -> Array:
        logits = network.apply({"params": params}, features, sigma, *segments)
        assert isinstance(logits, jax.Array)  # no mutable collections, so no second answer
        return logits

    return apply


def split(batch: Examples, parts: int, group: int) -> Examples:
    """Rows [B, ...] as parts [parts, B / parts, ...], dealt out `group` rows at a time.

    Dealt, not cut: each device's share of every part then consists of rows that it has. In groups, because self-conditioning pairs rows.
    """

    def deal(a: Array) -> Array:
        dealt = jnp.moveaxis(a.reshape(-1, parts, group, *a.shape[1:]), 1, 0)
        return dealt.reshape(parts, -1, *a.shape[1:])

    return jax.tree.map(deal, batch)


def gradient(
    params: Any, sampling_warp: Warp, log_prior: Array, batch: Examples, config: Config, apply: Apply, shardings: Any, batch_sharding: NamedSharding
) -> tuple[Any, dict[str, Array]]:
    """The gradient of the loss, sharded as the parameters are, and the metrics: in train.accumulation_steps parts, one after the other, summed."""

    def part_loss(params: Any, part: Examples) -> tuple[Array, dict[str, Array]]:
        # Gathered once for all its uses. Left in parts, the gradient of looking up tokens would gather the rows of the whole batch instead.
        table = constrain(gathered(shardings["embeddings"]["table"]))(params["embeddings"]["table"])
        return loss(params | {"embeddings": {"table": table}}, sampling_warp, log_prior, batch, part, config, apply)

    def of(part: Examples) -> tuple[Any, dict[str, Array]]:
        found, metrics = jax.grad(part_loss, has_aux=True)(params, part)
        return jax.lax.with_sharding_constraint(found, shardings), metrics

    count = config.train.accumulation_steps
    if count == 1:
        return of(batch)
    by_part = NamedSharding(batch_sharding.mesh, PartitionSpec(None, *batch_sharding.spec))
    parts = jax.tree.map(constrain(by_part), split(batch, count, 2 if config.train.self_conditioning else 1))
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(of, jax.tree.map(lambda a: a[0], parts)))
    return jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, of(part)), None), nothing, parts)[0]


def train_step(
    state: TrainState, batch: Batch, config: Config, optimizer: optax.GradientTransformation, shardings: Any, batch_sharding: NamedSharding
) -> tuple[TrainState, dict[str, Array]]:
    """One update of embeddings, denoiser and warp together, and of their averages; metrics are scalars of this step."""
    key = stream_key(config, TRAIN_STREAM, state.step)
    apply = make_apply(config, state.log_prior.shape[0], constrain(batch_sharding))
    sampling_warp = jax.lax.stop_gradient(make_warp(config, state.ema["warp"]))
    examples = draw(sampling_warp, batch["tokens"], key, config, batch.get("segments"))
    found, metrics = gradient(state.params, sampling_warp, state.log_prior, examples, config, apply, shardings, batch_sharding)
    updates, opt_state = optimizer.update(found, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["grad_norm"] = model_norm(found)
    return state.replace(step=state.step + 1, params=params, ema=average(state, params, config), opt_state=opt_state), metrics


def average(state: TrainState, params: dict[str, Any], config: Config) -> dict[str, Any]:
    """The exponential moving averages, with a short memory at first so that the initial values are forgotten soon."""
    young = (1.0 + state.step) / (10.0 + state.step)
    decay = {name: jnp.minimum(config.diffusion.warp_ema_decay if name == "warp" else config.optim.ema_decay, young) for name in params}
    return {name: jax.tree.map(lambda a, p, d=decay[name]: d * a + (1.0 - d) * p, state.ema[name], params[name]) for name in params}


def make_step(config: Config, state_shardings: Any, batch_sharding: NamedSharding) -> Step:
    """The jitted step. The state that goes in is donated: use only the one that comes out."""
    optimizer = make_optimizer(config)
    return jax.jit(
        lambda state, batch: train_step(state, batch, config, optimizer, state_shardings.params, batch_sharding),
        donate_argnums=0,
        in_shardings=(state_shardings, batch_sharding),
        out_shardings=(state_shardings, None),
    )
