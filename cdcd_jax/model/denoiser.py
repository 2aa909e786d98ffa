"""The mask-conditional denoiser: a bidirectional Transformer from stacked channels to token logits (paper, section 4.1 and figure 3)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cdcd_jax.model.layers import NAMES, Block, ConditionalNorm, Constrain, FourierFeatures, anywhere

# What the backward pass finds kept of a block, besides its input; the rest it computes again.
KEPT: dict[str, Callable[..., Any]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with parameters, but not those within attention
    "names": jax.checkpoint_policies.save_only_these_names(*NAMES),
}


class Denoiser(nn.Module):
    """features [B, L, 3 D + 1] = (noisy input, clean, flag, previous), sigma [B, 1] or [B, L] -> logits [B, L, V].

    The flag is 1 at positions to be generated and 0 at given ones. With `segments`, no position of a row hears one of another number. The blocks'
    parameters are stacked along a leading axis and scanned over, so that compile time does not grow with depth. The head starts at zero: before
    training, the logits are those of the output prior.
    `remat` is a key of KEPT, or "none" to keep everything; `constrain` says where the rows of activations lie, on a mesh.
    """

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    convolution_width: int
    sigma_conditioning: bool
    noisy_vector: bool
    scan_unroll: int
    dtype: jnp.dtype
    remat: str = "none"
    constrain: Constrain = anywhere

    @nn.compact
    def __call__(
        self, features: Float[Array, "B L F"], sigma: Float[Array, "B S"], segments: Int[Array, "B L"] | None = None
    ) -> Float[Array, "B L V"]:
        batch, length, size = features.shape
        x = nn.Dense(self.width, dtype=self.dtype, name="input")(features.reshape(-1, size).astype(self.dtype)).astype(jnp.float32)
        if self.noisy_vector:
            vector = self.param("noisy_vector", nn.initializers.normal(1.0), (self.width,), jnp.float32)
            flag = features[..., 2 * (size // 3)].reshape(-1, 1)
            x = x + flag * vector.reshape(1, -1)
        x = self.constrain(x)
        level = FourierFeatures(self.constrain, name="sigma_features")(sigma) if self.sigma_conditioning else None
        body = Block
        if self.remat != "none":
            # Forward and backward pass are loops of their own, between which the compiler finds no common expressions: no need to prevent it.
            body = nn.remat(Block, policy=KEPT[self.remat], prevent_cse=False)
        blocks = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.num_layers,
            unroll=self.scan_unroll,
        )
        x, _ = blocks(self.num_heads, self.mlp_width, self.convolution_width, length, self.dtype, self.constrain, name="blocks")(x, level, segments)
        x = ConditionalNorm(self.constrain, name="output_norm")(x, level)
        logits = nn.Dense(self.vocab_size, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="head")(x.astype(self.dtype))
        return logits.reshape(batch, length, self.vocab_size)
