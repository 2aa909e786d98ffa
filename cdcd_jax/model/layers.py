"""The layers of the denoiser: rotary attention without a mask, conditional normalisation, short convolution, feed-forward.

Activations travel flattened, [B L, W]: plain matrix products are a third faster than batched ones on CPUs. Parameters are float32; `dtype`
is that of the matrix products. `segments` [B, L], where there are any, number the documents of a row (0: padding): no position hears another's.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

Constrain = Callable[[Array], Array]  # says on which devices the rows of an activation lie, and returns it
NAMES = ("attention", "residual")  # what a block calls by name, for rematerialisation to keep


def anywhere(x: Array) -> Array:
    """The Constrain that says nothing."""
    return x


def rotary(x: Float[Array, "B H L K"]) -> Float[Array, "B H L K"]:
    """Rotary position embedding (Su et al. 2021) of queries or keys: pairs (k, k + K/2) turned by an angle proportional to the position."""
    length, dim = x.shape[-2:]
    frequency = 10_000.0 ** (-jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency[None, :]
    cos, sin = jnp.cos(angle)[None, None].astype(x.dtype), jnp.sin(angle)[None, None].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


class FourierFeatures(nn.Module):
    """Random Fourier features of log(sigma) / 4 and an MLP of two layers of 128 units: [B, 1] or [B, L] -> [..., 128] (paper, section 4.1)."""

    constrain: Constrain = anywhere

    @nn.compact
    def __call__(self, sigma: Float[Array, "B S"]) -> Float[Array, "B S C"]:
        # Fixed, not trained, and the same in every run: numpy's generator, because jax's depends on settings.
        frequency = jnp.asarray(16.0 * np.random.default_rng(0).standard_normal(64), jnp.float32)
        angle = jnp.log(sigma)[..., None] / 4.0 * frequency.reshape(1, 1, -1)
        features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        hidden = nn.gelu(self.constrain(nn.Dense(128, name="first")(features)))
        return nn.gelu(self.constrain(nn.Dense(128, name="second")(hidden)))


class ConditionalNorm(nn.Module):
    """Layer normalisation with scale and shift from the noise level's features, or learnt ones where there are none (paper, section 4.1)."""

    constrain: Constrain = anywhere

    @nn.compact
    def __call__(self, x: Float[Array, "N W"], features: Float[Array, "B S C"] | None) -> Float[Array, "N W"]:
        x = x.astype(jnp.float32)
        if features is None:
            return nn.LayerNorm(name="norm")(x)
        x = nn.LayerNorm(use_scale=False, use_bias=False)(x)
        modulation = nn.Dense(2 * x.shape[-1], kernel_init=nn.initializers.zeros, name="modulation")(features)
        scale, shift = jnp.split(self.constrain(modulation), 2, axis=-1)
        batch, width = features.shape[0], x.shape[-1]
        return (x.reshape(batch, -1, width) * (1.0 + scale) + shift).reshape(-1, width)


class Attention(nn.Module):
    """Multi-head self-attention over the whole sequence, or over each segment by itself; no mask, rotary positions: [B L, W] -> [B L, W]."""

    num_heads: int
    length: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N W"], segments: Int[Array, "B L"] | None = None) -> Float[Array, "N W"]:
        width = x.shape[-1]
        kernel = self.param("qkv", nn.initializers.lecun_normal(in_axis=0, out_axis=2, batch_axis=1), (width, 3, width), jnp.float32)
        x, kernels = x.astype(self.dtype), jnp.moveaxis(kernel.astype(self.dtype), 1, 0)
        # Three products, not one with a kernel of width 3 W: that would first be gathered from the devices between which heads are split. Laid out
        # (B, H, L, K): on CPUs this halves the time of attention.
        heads = (-1, self.length, self.num_heads, width // self.num_heads)
        query, key, value = ((x @ kernels[i]).reshape(heads).transpose(0, 2, 1, 3) for i in range(3))
        logits = (rotary(query) @ rotary(key).transpose(0, 1, 3, 2)).astype(jnp.float32) * (width // self.num_heads) ** -0.5
        if segments is not None:
            together = segments[:, None, :, None] == segments[:, None, None, :]
            logits = jnp.where(together, logits, -jnp.inf)  # never all of them: a position is together with itself
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = checkpoint_name((weights @ value).transpose(0, 2, 1, 3).reshape(-1, width), "attention")
        return nn.Dense(width, use_bias=False, dtype=self.dtype, name="out")(mixed)


class ShortConvolution(nn.Module):
    """A depthwise convolution over neighbouring positions, added to its input: [B L, W] -> [B L, W]; zeros beyond the ends of row and segment."""

    window: int
    length: int

    @nn.compact
    def __call__(self, x: Float[Array, "N W"], segments: Int[Array, "B L"] | None = None) -> Float[Array, "N W"]:
        width, reach = x.shape[-1], self.window // 2
        kernel = self.param("kernel", nn.initializers.normal(self.window**-0.5), (self.window, width), jnp.float32)
        padded = jnp.pad(x.reshape(-1, self.length, width), ((0, 0), (reach, reach), (0, 0)))
        for i in range(self.window):
            neighbour = padded[:, i : i + self.length]
            if segments is not None:
                around = jnp.pad(segments, ((0, 0), (reach, reach)))[:, i : i + self.length]
                neighbour = neighbour * jnp.equal(around, segments)[..., None]
            x = x + (neighbour * kernel[i].reshape(1, 1, -1)).reshape(-1, width)
        return x


class Block(nn.Module):
    """One pre-normalised Transformer block: attention, then (optional short convolution and) feed-forward; a body for nn.scan."""

    num_heads: int
    mlp_width: int
    convolution_width: int
    length: int
    dtype: jnp.dtype
    constrain: Constrain

    @nn.compact
    def __call__(
        self, x: Float[Array, "N W"], features: Float[Array, "B S C"] | None, segments: Int[Array, "B L"] | None = None
    ) -> tuple[Float[Array, "N W"], None]:
        h = ConditionalNorm(self.constrain, name="attention_norm")(x, features)
        x = x + Attention(self.num_heads, self.length, self.dtype, name="attention")(h, segments).astype(jnp.float32)
        x = checkpoint_name(self.constrain(x), "residual")
        h = ConditionalNorm(self.constrain, name="mlp_norm")(x, features)
        if self.convolution_width:
            h = ShortConvolution(self.convolution_width, self.length, name="convolution")(h, segments)
        h = nn.gelu(nn.Dense(self.mlp_width, dtype=self.dtype, name="up")(h.astype(self.dtype)))
        x = x + nn.Dense(x.shape[-1], dtype=self.dtype, name="down")(h).astype(jnp.float32)
        return self.constrain(x), None
