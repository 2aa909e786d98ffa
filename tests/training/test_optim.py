"""The optimiser: which rate, which rule and which schedule each branch of the parameters gets."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cdcd_jax.config import Config
from cdcd_jax.parallel.sharding import path_name
from cdcd_jax.training import optim
from cdcd_jax.training.state import init_state
from tests import tiny

RATES = {"optim.learning_rate": 1e-3, "optim.embedding_learning_rate": 2e-3, "optim.muon_learning_rate": 3e-3, "diffusion.warp_learning_rate": 4e-3}
MATRICES = ("blocks/attention/qkv", "blocks/attention/out/kernel", "blocks/up/kernel", "blocks/down/kernel")


def abstract_params(config: Config) -> Any:
    return jax.eval_shape(lambda: init_state(config, jnp.zeros(24))).params


@functools.cache
def gradient() -> Any:
    """A gradient with the real tree of parameters: normal numbers, and in the blocks matrices with singular values from 0.5 to 2."""
    generator = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        normal = generator.normal(size=leaf.shape)
        if not path_name(path).endswith(MATRICES):
            return jnp.asarray(normal, jnp.float32)
        layers, rows, *between, columns = leaf.shape
        stack = np.moveaxis(normal, 1, -2) if between else normal  # [..., rows, columns]
        left, _, right = np.linalg.svd(stack, full_matrices=False)
        stack = (left * np.linspace(0.5, 2.0, left.shape[-1])) @ right
        return jnp.asarray(np.moveaxis(stack, -2, 1) if between else stack, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(tiny.config()))


def updates(config: Config, grads: Any, steps: int = 1) -> dict[str, np.ndarray]:
    """The last of some updates from the same gradient, by the parameters' paths."""
    transformation = optim.make_optimizer(config)

    @jax.jit
    def run(grads: Any) -> Any:
        params = jax.tree.map(jnp.zeros_like, grads)
        state = transformation.init(params)
        for _ in range(steps):
            update, state = transformation.update(grads, state, params)
        return update

    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(run(grads))}


@functools.cache
def first_muon() -> dict[str, np.ndarray]:
    return updates(tiny.config(RATES | {"optim.warmup_steps": 0, "optim.decay": "none"}), gradient())


def test_each_branch_has_its_own_rate() -> None:
    """The first step of Adam is the rate times the sign of the gradient."""
    grads = {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient())}
    for name, update in first_muon().items():
        if name.endswith(MATRICES):
            continue
        rate = {"embeddings": 2e-3, "denoiser": 1e-3, "warp": 4e-3}[name.split("/")[0]]
        np.testing.assert_allclose(update, -rate * np.sign(grads[name]), rtol=1e-3, err_msg=name)


def matrices(name: str, value: np.ndarray) -> np.ndarray:
    """[n, fan_in, fan_out]: the separate matrices of a stacked parameter."""
    return value.transpose(0, 2, 1, 3).reshape(-1, value.shape[1], value.shape[3]) if name.endswith("qkv") else value


@pytest.mark.parametrize("name", MATRICES)
def test_muon_orthogonalises_each_matrix_of_the_blocks(name: str) -> None:
    """All singular values of an update are near one (the Newton-Schulz iteration stops at 0.7 to 1.2), those of its gradient are not."""
    name = f"denoiser/{name}"
    grads = {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient())}
    update, grad = (matrices(name, tree[name]) for tree in (first_muon(), grads))
    assert len(update) == (3 if name.endswith("qkv") else 1)
    scale = 3e-3 * max(1.0, update.shape[2] / update.shape[1]) ** 0.5
    for u, g in zip(update, grad, strict=True):
        values, before = (np.linalg.svd(a, compute_uv=False) for a in (u, g))
        assert before.max() > 3.5 * before.min()
        assert (values / scale).min() > 0.6 and (values / scale).max() < 1.3
        assert np.sum(u * g) < 0, "it must go downhill"


def test_muon_moves_the_matrices_only() -> None:
    """Everything else is moved just as with Adam alone, the matrices are not."""
    adam = updates(tiny.config(RATES | {"optim.name": "adam", "optim.warmup_steps": 0, "optim.decay": "none"}), gradient())
    differing = {name for name in adam if not np.array_equal(adam[name], first_muon()[name])}
    assert differing == {f"denoiser/{name}" for name in MATRICES}


def test_a_square_wide_and_tall_matrix_are_scaled_by_their_shape() -> None:
    """Jordan's factor sqrt(max(1, fan_out / fan_in))."""
    square, wide, tall = (jnp.ones((2, *shape)) for shape in ((4, 4), (4, 16), (16, 4)))
    tree = {"blocks": {"attention": {"out": {"kernel": square}}, "up": {"kernel": wide}, "down": {"kernel": tall}}}
    scaled, _ = optim.scale_by_shape().update(tree, optax.EmptyState())
    blocks = scaled["blocks"]
    assert (blocks["attention"]["out"]["kernel"] == 1).all() and (blocks["down"]["kernel"] == 1).all() and (blocks["up"]["kernel"] == 2).all()


def test_the_warps_rate_is_constant() -> None:
    """In the middle of the decay all rates but the warp's are lower."""
    config = tiny.config(RATES | {"optim.warmup_steps": 0, "optim.decay": "linear", "train.num_steps": 4, "optim.name": "adam"})
    full = updates(config, gradient(), steps=1)
    late = updates(config, gradient(), steps=3)
    for name, update in late.items():
        np.testing.assert_allclose(update, full[name] * (1.0 if name.startswith("warp") else 0.5), rtol=2e-3, err_msg=name)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"optim.warmup_steps": 0, "optim.decay": "none"}, {0: 1, 50: 1, 99: 1}),
        ({"optim.warmup_steps": 4, "optim.decay": "none"}, {0: 0.25, 1: 0.5, 3: 1, 4: 1, 99: 1}),
        ({"optim.warmup_steps": 0, "optim.decay": "linear"}, {0: 1, 25: 0.75, 50: 0.5, 99: 0.01, 100: 0, 200: 0}),
        ({"optim.warmup_steps": 0, "optim.decay": "cosine"}, {0: 1, 25: 0.5 + 0.125**0.5, 50: 0.5, 75: 0.5 - 0.125**0.5, 100: 0}),
        ({"optim.warmup_steps": 10, "optim.decay": "linear"}, {0: 0.1, 4: 0.5 * 0.96, 9: 0.91, 50: 0.5}),
        ({"optim.warmup_steps": 0, "optim.decay": "linear", "optim.decay_fraction": 0.2}, {0: 1, 79: 1, 80: 1, 90: 0.5, 99: 0.05}),
        ({"optim.warmup_steps": 0, "optim.decay": "cosine", "optim.decay_fraction": 0.5}, {0: 1, 50: 1, 75: 0.5, 100: 0}),
        ({"optim.warmup_steps": 0, "optim.decay": "linear", "optim.decay_fraction": 0.0}, {0: 1, 99: 1}),
    ],
)
def test_schedules(changes: dict[str, Any], expected: dict[int, float]) -> None:
    """The same numbers for the step, in jax.numpy, and for the log, in numpy."""
    config = tiny.config(changes | {"train.num_steps": 100})
    for xp in (np, jnp):
        found = {step: float(optim.factor(config, xp.asarray(step, xp.float32), xp)) for step in expected}
        assert found == pytest.approx(expected, abs=1e-6)


def test_the_last_step_still_moves() -> None:
    config = tiny.config({"optim.decay": "linear", "train.num_steps": 100})
    assert optim.factor(config, config.train.num_steps - 1, np) > 0


def test_clipping_leaves_the_warp_alone() -> None:
    norm = float(optim.model_norm(gradient()))
    flat = np.concatenate([np.ravel(leaf) for branch in ("embeddings", "denoiser") for leaf in jax.tree.leaves(gradient()[branch])])
    assert norm == pytest.approx(np.linalg.norm(flat), rel=1e-5)
    clipped, _ = optim.clip_model(norm / 4).update(gradient(), optax.EmptyState())
    assert float(optim.model_norm(clipped)) == pytest.approx(norm / 4, rel=1e-5)
    for branch, factor in (("embeddings", 0.25), ("denoiser", 0.25), ("warp", 1.0)):
        for before, after in zip(*(jax.tree.leaves(tree[branch]) for tree in (gradient(), clipped)), strict=True):
            np.testing.assert_allclose(after, factor * np.asarray(before), rtol=1e-5)


def test_small_gradients_are_not_clipped() -> None:
    kept, _ = optim.clip_model(1e6).update(gradient(), optax.EmptyState())
    for before, after in zip(*(jax.tree.leaves(tree) for tree in (gradient(), kept)), strict=True):
        np.testing.assert_array_equal(before, after)
    zero = jax.tree.map(jnp.zeros_like, gradient())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(optim.clip_model(1.0).update(zero, optax.EmptyState())[0]))


def test_clip_norm_reaches_the_optimiser() -> None:
    """Clipped to nothing, Adam's epsilon outweighs the gradient; the warp still moves at its rate."""
    config = tiny.config(RATES | {"optim.clip_norm": 1e-9, "optim.name": "adam", "optim.warmup_steps": 0, "optim.decay": "none"})
    for name, update in updates(config, gradient()).items():
        assert np.median(np.abs(update)) == pytest.approx(4e-3, rel=1e-3) if name.startswith("warp") else np.median(np.abs(update)) < 1e-5, name


@pytest.mark.parametrize("model", ["tiny", "paper"])
def test_every_matrix_of_the_blocks_is_known_to_muon(model: str) -> None:
    """Of the blocks, Adam keeps norms, biases, convolution and the modulation by the noise level; a new matrix must be put on one side by hand."""
    config = tiny.config({"model.sigma_conditioning": True, "model.convolution_width": 0} if model == "paper" else {})
    names = [(path_name(path), path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract_params(config)["denoiser"])]
    for name, path in names:
        if name.startswith("blocks/"):
            adam = re.search(r"_norm/(norm/(scale|bias)|modulation/(kernel|bias))$|/bias$|^blocks/convolution/kernel$", name)
            assert bool(adam) != bool(optim._matrix(path)), name
        else:
            assert optim._matrix(path) is None, name
