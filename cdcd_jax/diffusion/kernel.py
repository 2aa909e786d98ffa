"""The score-interpolation kernel: from logits to the estimate x0, the score and the drift (paper, sections 2.1 and 3; docs/DESIGN.md, 1 to 3).

Training, sampling, likelihood and evaluation all reach the network through `make_denoise`, the only maker of a `denoise`, so that they cannot
disagree. All arithmetic here is float32, whatever the network computes in.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Denoised(NamedTuple):
    """What a denoiser knows of the clean sequence: `x0` [B, L, D], the interpolated estimate, and the `logits` [B, L, V] that it came from."""

    x0: Float[Array, "B L D"]
    logits: Float[Array, "B L V"]


# x [B, L, D], sigma [B] or [B, L], previous x0 [B, L, D] (zeros at first) -> Denoised
Denoise = Callable[[Array, Array, Array], Denoised]
# features [B, L, 3 D + 1], sigma [B, 1] or [B, L] -> logits [B, L, V]
Network = Callable[[Array, Array], Array]


class Options(NamedTuple):
    """The two places where the local posterior enters a denoiser; both are False in the paper (docs/DESIGN.md, section 7)."""

    output_prior: bool = False
    posterior_mean_input: bool = False


def normalise(table: Float[Array, "V D"]) -> Float[Array, "V D"]:
    """Embeddings of norm sqrt(D) from the raw table; gradients flow through the normalisation (paper, section 3.2)."""
    table = table.astype(jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(table**2, axis=-1, keepdims=True), 1e-24))
    return table / norm * jnp.sqrt(float(table.shape[-1]))


def add_noise(x0: Float[Array, "B L D"], sigma: Array, eps: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    """x = x0 + sigma * eps, with sigma [B] or [B, L] (eq. 1; sigma(t) = t)."""
    return x0 + per_position(sigma)[..., None] * eps


def c_in(sigma: Array) -> Array:
    """The factor 1 / sqrt(sigma^2 + 1) that gives the noisy input unit variance at every sigma, since embeddings have variance one."""
    return 1.0 / jnp.sqrt(sigma**2 + 1.0)


def interpolate(logits: Float[Array, "*B V"], table: Float[Array, "V D"]) -> Float[Array, "*B D"]:
    """Score interpolation: x0 = sum_i p_i e_i with p = softmax(logits) over the normalised table (paper, eq. 6 and 8)."""
    return _product(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), table)


def _product(x: Float[Array, "*B M"], matrix: Float[Array, "M N"]) -> Float[Array, "*B N"]:
    """x @ matrix over flattened leading axes: on CPUs the backward pass of a batched product copies its operands, transposed."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def score(x: Array, x0: Array, sigma: Array) -> Array:
    """The score (x0 - x) / sigma^2 of the noisy density at x [B, L, D] (paper, eq. 7)."""
    return (x0 - x) / per_position(sigma)[..., None] ** 2


def drift(x: Array, x0: Array, sigma: Array) -> Array:
    """dx/dsigma = -sigma * score = (x - x0) / sigma of the probability-flow ODE (paper, eq. 5)."""
    return (x - x0) / per_position(sigma)[..., None]


def local_posterior(x: Float[Array, "B L D"], sigma: Array, table: Float[Array, "V D"], log_prior: Float[Array, "V"]) -> Denoised:
    """The exact posterior of a single token given its own noisy embedding, and its mean: what is known without any context.

    p(i | x) is proportional to prior_i exp(-|x - e_i|^2 / 2 sigma^2); since all |e_i| are equal, the logits are x . e_i / sigma^2 + log prior_i
    (docs/DESIGN.md, eq. 9). It serves as output prior, as input, as oracle in the tests, and as the closed form that telemetry holds a model against.
    """
    scaled = x / per_position(sigma)[..., None] ** 2
    logits = _product(scaled, table.T) + log_prior.reshape(1, 1, -1)
    return Denoised(interpolate(logits, table), logits)


def per_position(sigma: Array) -> Array:
    """sigma [B] as [B, 1]; sigma [B, L] as it is."""
    return sigma[:, None] if sigma.ndim == 1 else sigma


def make_denoise(
    network: Network,
    table: Float[Array, "V D"],
    given: Bool[Array, "B L"],
    clean: Float[Array, "B L D"],
    log_prior: Float[Array, "V"],
    options: Options,
) -> Denoise:
    """Makes `denoise` from a network: the only way from a network to a denoiser (paper, sections 4.1 and 4.3).

    `table` is the normalised one. `given` marks the positions whose token is known; `clean` holds their embeddings (zeros where conditioning is
    dropped) and is not looked at elsewhere. A given position sees no noise: neither x nor previous enters there, and its x0 is `clean`.
    """
    noisy = ~given[..., None]
    flag = noisy.astype(jnp.float32)
    clean = jnp.where(noisy, 0.0, clean)

    def denoise(x: Array, sigma: Array, previous: Array) -> Denoised:
        sigma = per_position(sigma)
        local = local_posterior(x, sigma, table, log_prior) if options.output_prior or options.posterior_mean_input else None
        if local is not None and options.posterior_mean_input:
            # A given token is the posterior mean at sigma = 0, so it enters by the same channel.
            noisy_input = flag * local.x0 + clean
        else:
            noisy_input = flag * x * c_in(sigma)[..., None]
        logits = network(jnp.concatenate([noisy_input, clean, flag, flag * previous], axis=-1), sigma).astype(jnp.float32)
        if local is not None and options.output_prior:
            logits = logits + flag * local.logits
        return Denoised(jnp.where(noisy, interpolate(logits, table), clean), logits)

    return denoise


def cross_entropy(logits: Float[Array, "B L V"], tokens: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """-log softmax(logits)[token], nats, at each position."""
    logits = logits.astype(jnp.float32)
    target = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target
