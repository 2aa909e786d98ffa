"""The layers against plain references: rotary positions, attention without a mask, conditional normalisation, the convolution's reach."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdcd_jax.model import layers

B, L, W, H = 2, 6, 8, 2
SEGMENTS = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.int32)


def plain_rotary(x: np.ndarray) -> np.ndarray:
    """Positions as rotations of complex numbers: [..., L, K]."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[-2])[:, None] * 10_000.0 ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def plain_attention(params: Any, x: np.ndarray) -> np.ndarray:
    """[L, W] -> [L, W], one sequence, one head after the other."""
    heads = []
    for head in range(H):
        columns = slice(head * W // H, (head + 1) * W // H)
        query, key, value = (x @ np.asarray(params["qkv"])[:, i, columns] for i in range(3))
        logits = plain_rotary(query) @ plain_rotary(key).T / np.sqrt(W // H)
        weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        heads.append(weights @ value)
    return np.concatenate(heads, axis=-1) @ np.asarray(params["out"]["kernel"])


def test_rotary_products_depend_on_relative_positions_alone() -> None:
    """The same query and key at all positions: their products form a Toeplitz matrix, whose diagonals differ."""
    query, key = (jnp.tile(jax.random.normal(jax.random.key(i), (1, 1, 1, 16)), (1, 1, 12, 1)) for i in range(2))
    products = np.asarray(layers.rotary(query)[0, 0] @ layers.rotary(key)[0, 0].T)
    for offset in range(-11, 12):
        np.testing.assert_allclose(np.diagonal(products, offset), products[max(-offset, 0), max(offset, 0)], atol=1e-4)
    assert np.ptp([products[max(-o, 0), max(o, 0)] for o in range(-11, 12)]) > 1.0
    x = jax.random.normal(jax.random.key(2), (1, 1, 12, 16))
    np.testing.assert_allclose(np.linalg.norm(layers.rotary(x), axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(layers.rotary(x)[:, :, 0], x[:, :, 0])


def test_attention_is_the_plain_one() -> None:
    x = jax.random.normal(jax.random.key(0), (B * L, W))
    module = layers.Attention(H, L, jnp.dtype("float32"))
    params = module.init(jax.random.key(1), x)["params"]
    wanted = np.concatenate([plain_attention(params, row) for row in np.asarray(x, np.float64).reshape(B, L, W)])
    np.testing.assert_allclose(module.apply({"params": params}, x), wanted, atol=1e-5)


def test_with_segments_attention_is_the_plain_one_of_each() -> None:
    """Padding, alone, attends to itself."""
    x = jax.random.normal(jax.random.key(0), (B * L, W))
    module = layers.Attention(H, L, jnp.dtype("float32"))
    params = module.init(jax.random.key(1), x)["params"]
    rows = np.asarray(x, np.float64).reshape(B, L, W)
    wanted = [plain_attention(params, row[numbers == n]) for row, numbers in zip(rows, SEGMENTS, strict=True) for n in (1, 2, 0)]
    np.testing.assert_allclose(module.apply({"params": params}, x, jnp.asarray(SEGMENTS)), np.concatenate(wanted), atol=1e-5)


def test_the_qkv_kernel_is_initialised_like_three_dense_layers() -> None:
    """Variance 1 / fan-in of the width, for query, key and value alike."""
    x = jnp.zeros((L, 128))
    kernel = np.asarray(layers.Attention(2, L, jnp.dtype("float32")).init(jax.random.key(1), x)["params"]["qkv"])
    np.testing.assert_allclose(kernel.std(axis=(0, 2)), 128**-0.5, rtol=0.05)


@pytest.mark.parametrize("levels", [1, L], ids=["a level per sequence", "a level per position"])
def test_conditional_normalisation_scales_and_shifts_by_its_own_row(levels: int, away: Any) -> None:
    x, features = jax.random.normal(jax.random.key(0), (B * L, W)), jax.random.normal(jax.random.key(1), (B, levels, 128))
    module = layers.ConditionalNorm()
    params = module.init(jax.random.key(2), x, features)["params"]
    plain = np.asarray(x, np.float64)
    plain = (plain - plain.mean(axis=-1, keepdims=True)) / np.sqrt(plain.var(axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(module.apply({"params": params}, x, features), plain, atol=1e-5)  # at first it only normalises
    params = away(params)
    modulation = np.asarray(features) @ np.asarray(params["modulation"]["kernel"]) + np.asarray(params["modulation"]["bias"])
    scale, shift = np.split(np.broadcast_to(modulation, (B, L, 2 * W)).reshape(B * L, 2 * W), 2, axis=-1)
    np.testing.assert_allclose(module.apply({"params": params}, x, features), plain * (1 + scale) + shift, rtol=1e-4, atol=1e-4)


def test_normalisation_without_noise_levels_learns_one_scale_and_shift() -> None:
    x = jax.random.normal(jax.random.key(0), (B * L, W))
    params = layers.ConditionalNorm().init(jax.random.key(2), x, None)["params"]
    assert jax.tree.map(jnp.shape, params) == {"norm": {"scale": (W,), "bias": (W,)}}
    plain = nn.LayerNorm().apply({"params": params["norm"]}, x)
    np.testing.assert_allclose(layers.ConditionalNorm().apply({"params": params}, x, None), plain, atol=1e-6)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_the_convolution_reaches_exactly_its_window(window: int) -> None:
    """Output i of a sequence hears input j where |i - j| <= window // 2, at every width, and no other sequence; and is the plain sum."""
    module = layers.ShortConvolution(window, L)
    x = jax.random.normal(jax.random.key(0), (B * L, W))
    params = module.init(jax.random.key(1), x)["params"]
    kernel, rows, reach = np.asarray(params["kernel"]), np.asarray(x).reshape(B, L, W), window // 2
    wanted = rows.copy()
    for i in range(L):
        for j in range(max(0, i - reach), min(L, i + reach + 1)):
            wanted[:, i] += rows[:, j] * kernel[j - i + reach]
    np.testing.assert_allclose(module.apply({"params": params}, x), wanted.reshape(B * L, W), atol=1e-5)
    jacobian = np.abs(jax.jacrev(lambda x: module.apply({"params": params}, x).sum(axis=-1))(x)).sum(axis=-1) > 0
    distance = np.abs(np.arange(L)[:, None] - np.arange(L)[None, :])
    np.testing.assert_array_equal(jacobian, np.kron(np.eye(B, dtype=bool), distance <= reach))


def test_the_convolution_reaches_no_other_segment() -> None:
    module = layers.ShortConvolution(5, L)
    x = jax.random.normal(jax.random.key(0), (B * L, W))
    params = module.init(jax.random.key(1), x)["params"]
    kernel, rows, wanted = np.asarray(params["kernel"]), np.asarray(x).reshape(B, L, W), np.asarray(x).reshape(B, L, W).copy()
    for i in range(L):
        for j in range(max(0, i - 2), min(L, i + 3)):
            wanted[:, i] += rows[:, j] * kernel[j - i + 2] * (SEGMENTS[:, i] == SEGMENTS[:, j])[:, None]
    np.testing.assert_allclose(module.apply({"params": params}, x, jnp.asarray(SEGMENTS)), wanted.reshape(B * L, W), atol=1e-5)


def test_noise_level_features_tell_levels_apart_and_are_the_same_in_every_run() -> None:
    sigma = jnp.geomspace(0.1, 300.0, 12)[:, None]
    module = layers.FourierFeatures()
    params = module.init(jax.random.key(0), sigma)["params"]
    out = np.asarray(module.apply({"params": params}, sigma))
    assert out.shape == (12, 1, 128) and jax.tree.map(jnp.shape, params)["first"]["kernel"] == (128, 128)
    distance = np.linalg.norm(out[:, None, 0] - out[None, :, 0], axis=-1) + 10 * np.eye(12)
    assert distance.min() > 0.1
    np.testing.assert_array_equal(out, module.apply({"params": params}, sigma))
    np.testing.assert_allclose(module.apply({"params": params}, sigma.reshape(3, 4)), out.reshape(3, 4, 128), atol=1e-5)
