"""The variational bound on the log-likelihood (docs/DESIGN.md, eq. 11 to 13; Kingma et al. 2021 in the variance-exploding form).

-log p(tokens) <= prior + reconstruction + diffusion, per token:
  prior           d / (2 sigma_max^2), the divergence of the noisiest x from pure noise;
  reconstruction  E[cross-entropy at sigma_min];
  diffusion       E over u of (dsigma/du) sigma^-3 |e - x0(x_sigma)|^2, with sigma = F^-1(u).
It holds for any denoiser, warp and self-conditioning; a good warp only makes its estimate less noisy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cdcd_jax.diffusion import kernel
from cdcd_jax.diffusion.warp import Warp


class Terms(NamedTuple):
    """What one noise level per sequence says: the noisy input, and at each position the bound's diffusion term and the cross-entropy, nats."""

    x: Float[Array, "B L D"]

    diffusion: Float[Array, "B L"]
    cross_entropy: Float[Array, "B L"]


def prior(dim: int, sigma_max: float) -> float:
    """The bound's prior term, nats per token."""
    return dim / (2.0 * sigma_max**2)


def unroll(denoise: kernel.Denoise, x: Array, sigma: Array, passes: int) -> kernel.Denoised:
    """The denoiser's answer at (x, sigma) after `passes` calls, each fed the estimate of the one before (the first: zeros)."""
    denoised = denoise(x, sigma, jnp.zeros_like(x))
    for _ in range(passes - 1):
        denoised = denoise(x, sigma, denoised.x0)
    return denoised


def terms(
    denoise: kernel.Denoise,
    warp: Warp,
    x0: Float[Array, "B L D"],
    tokens: Int[Array, "B L"],
    u: Float[Array, "B"],
    key: PRNGKeyArray,
    passes: int,
) -> Terms:
    """One-sample estimates at warped times u. Their mean over u uniform in [0, 1] is the bound's integral; `passes` is self-conditioning's depth."""
    sigma = warp.sigma(u)
    x = kernel.add_noise(x0, sigma, jax.random.normal(key, x0.shape))
    estimate, logits = unroll(denoise, x, sigma, passes)
    weight = 1.0 / (warp.pdf(sigma) * sigma**3)
    return Terms(x, weight[:, None] * jnp.sum((x0 - estimate) ** 2, axis=-1), kernel.cross_entropy(logits, tokens))


def reconstruction(
    denoise: kernel.Denoise, warp: Warp, x0: Float[Array, "B L D"], tokens: Int[Array, "B L"], key: PRNGKeyArray, passes: int
) -> Float[Array, "B L"]:
    """The cross-entropy at sigma_min, nats at each position: the bound's reconstruction term."""
    sigma = jnp.full(x0.shape[:1], warp.sigma_min, jnp.float32)
    x = kernel.add_noise(x0, sigma, jax.random.normal(key, x0.shape))
    return kernel.cross_entropy(unroll(denoise, x, sigma, passes).logits, tokens)
