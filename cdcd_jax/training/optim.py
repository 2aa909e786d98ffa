"""The optimiser: one optax transformation, by branch of the parameters (paper, section 5; docs/DESIGN.md, 12)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from cdcd_jax.config import Config
from cdcd_jax.parallel.sharding import path_name

# The matrices of the blocks: Muon's, when it is chosen. Their leading axis is the layer.
MUON_AXES = {
    "qkv": optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=3),  # [layers, W, 3, W]: three matrices a layer
    "out": optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2),
    "up": optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2),
    "down": optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2),
}


def _matrix(path: tuple) -> str | None:
    names = path_name(path).split("/")
    if "blocks" not in names or names[-1] == "bias":
        return None
    return next((name for name in reversed(names) if name in MUON_AXES), None)


def factor(config: Config, step: Any, xp: Any = jnp) -> Any:
    """The factor on every learning rate but the warp's, at a step counted from 0: linear warm-up, then (perhaps) decay to zero at the end.

    `xp` is jax.numpy inside the step, and numpy for the log: a jax computation there would make the device wait.
    """
    o, steps = config.optim, config.train.num_steps
    warm = xp.minimum(1.0, (step + 1.0) / max(o.warmup_steps, 1))
    if o.decay == "none":
        return warm
    length = max(1.0, o.decay_fraction * steps)
    left = xp.clip((steps - step) / length, 0.0, 1.0)
    return warm * (left if o.decay == "linear" else 0.5 * (1.0 - xp.cos(xp.pi * left)))


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with a rate for each branch; for the warp a constant one of its own; Muon on the blocks' matrices if the config says so."""
    o = config.optim

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_adam(o.b1, o.b2), optax.scale_by_learning_rate(lambda step: rate * factor(config, step)))

    muon = optax.chain(
        # Almost-orthogonal preconditioning saves one of Newton-Schulz's five iterations (Boissin et al. 2025).
        optax.contrib.scale_by_muon(ns_steps=4, preconditioning="aol", weight_dimension_numbers=_muon_axes),
        scale_by_shape(),
        optax.scale_by_learning_rate(lambda step: o.muon_learning_rate * factor(config, step)),
    )

    def label(path: tuple, _: Any) -> str:
        branch = path_name(path).split("/")[0]
        return "muon" if branch == "denoiser" and o.name == "muon" and _matrix(path) else branch

    by_branch = optax.partition(
        {
            "embeddings": adam(o.embedding_learning_rate),
            "denoiser": adam(o.learning_rate),
            "muon": muon,
            "warp": optax.chain(optax.scale_by_adam(o.b1, o.b2), optax.scale_by_learning_rate(config.diffusion.warp_learning_rate)),
        },
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    return optax.chain(clip_model(o.clip_norm), by_branch) if o.clip_norm else by_branch


def _muon_axes(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: MUON_AXES[str(_matrix(path))], params)


def scale_by_shape() -> optax.GradientTransformation:
    """Muon's factor sqrt(max(1, fan_out / fan_in)) on each orthogonalised matrix (Jordan 2024)."""

    def scale(path: tuple, update: jax.Array) -> jax.Array:
        axes = MUON_AXES[str(_matrix(path))]
        return update * max(1.0, update.shape[axes.output_axis] / update.shape[axes.reduction_axis]) ** 0.5

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def clip_model(limit: float) -> optax.GradientTransformation:
    """Clips the global norm of the gradient of embeddings and denoiser; the warp's gradient is its own matter and is left alone."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        scale = jnp.minimum(1.0, limit / jnp.maximum(model_norm(updates), 1e-12))
        return {name: branch if name == "warp" else jax.tree.map(lambda g: g * scale, branch) for name, branch in updates.items()}, state

    return optax.GradientTransformation(optax.init_empty_state, update)


def model_norm(gradient: Any) -> jax.Array:
    """The global norm of the gradient of embeddings and denoiser."""
    return optax.tree.norm({name: branch for name, branch in gradient.items() if name != "warp"})
