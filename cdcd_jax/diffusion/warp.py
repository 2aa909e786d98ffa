"""Time warping: the learnt map between warped time u in [0, 1] and the noise level sigma (paper, section 3.3 and appendix A).

A piecewise-linear, monotone F over N bins on an axis tau in [0, 1] of sigma (linear in the paper; logarithmic is an option). Its unnormalised
form is fitted to the measured cross-entropy; its normalised form chooses the noise levels in training and the grid in sampling, so that the
model's entropy falls linearly in u.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["axis_logits", "entropy_logits"],
    meta_fields=["sigma_min", "sigma_max", "axis", "floor"],
)
@dataclasses.dataclass(frozen=True)
class Warp:
    """A pytree: the logits of the N bins' widths on the sigma axis and of their shares of the entropy.

    `floor`, spread over all bins, is added to both kinds of normalised weights, which keeps every bin's slope finite and above zero.
    """

    axis_logits: Any  # float32 [N], or what stands for it in a pytree
    entropy_logits: Any
    sigma_min: float
    sigma_max: float
    axis: str = "linear"
    floor: float = 1e-3

    @staticmethod
    def identity(num_bins: int, sigma_min: float, sigma_max: float, axis: str, floor: float) -> "Warp":
        """The warp before any fit: u is the position on the sigma axis (all logits -log N; appendix A.1)."""
        logits = jnp.full((num_bins,), -jnp.log(float(num_bins)), dtype=jnp.float32)
        return Warp(logits, logits, sigma_min, sigma_max, axis, floor)

    def sigma(self, u: Array) -> Array:
        """F^-1: the noise level at warped time u in [0, 1], any shape."""
        widths, heights = self._weights()
        tau, _ = _interpolate(u, heights, widths)
        return jnp.where(u < 1.0, self._from_axis(tau), self.sigma_max)  # exact at the end, where rounding would miss it

    def cdf(self, sigma: Array) -> Array:
        """F: warped time u in [0, 1] of a noise level, any shape."""
        return _interpolate(self._to_axis(sigma), *self._weights())[0]

    def axis_pdf(self, sigma: Array) -> Array:
        """The density of the training noise levels on the axis tau in [0, 1]; its reciprocal undoes the sampling bias (appendix A.4)."""
        return _interpolate(self._to_axis(sigma), *self._weights())[1]

    def pdf(self, sigma: Array) -> Array:
        """The density dF/dsigma of the training noise levels."""
        scale = sigma * jnp.log(self.sigma_max / self.sigma_min) if self.axis == "log" else self.sigma_max - self.sigma_min
        return self.axis_pdf(sigma) / scale

    def entropy(self, sigma: Array) -> Array:
        """The unnormalised F~ in nats: the fitted mean cross-entropy at sigma; zero at sigma_min (appendix A.2)."""
        widths, _ = self._weights()
        return _interpolate(self._to_axis(sigma), widths, jnp.exp(self.entropy_logits), last=None)[0]

    def _weights(self) -> tuple[Array, Array]:
        def floored(logits: Array) -> Array:
            return (jax.nn.softmax(logits) + self.floor / logits.shape[0]) / (1.0 + self.floor)

        return floored(self.axis_logits), floored(self.entropy_logits)

    def _to_axis(self, sigma: Array) -> Array:
        if self.axis == "log":
            return jnp.log(sigma / self.sigma_min) / jnp.log(self.sigma_max / self.sigma_min)
        return (sigma - self.sigma_min) / (self.sigma_max - self.sigma_min)

    def _from_axis(self, tau: Array) -> Array:
        if self.axis == "log":
            sigma = self.sigma_min * jnp.exp(tau * jnp.log(self.sigma_max / self.sigma_min))
        else:
            sigma = self.sigma_min + tau * (self.sigma_max - self.sigma_min)
        return jnp.clip(sigma, self.sigma_min, self.sigma_max)


def _interpolate(value: Array, widths: Array, heights: Array, last: float | None = 1.0) -> tuple[Array, Array]:
    """The piecewise-linear map with these bin widths and heights at `value` (clipped to [0, 1]), and its slope there.

    The last edge of what is normalised is exactly 1, whatever rounding did; `last=None` leaves the heights' total as it is.
    """
    value = jnp.clip(value, 0.0, 1.0)
    edges_in = jnp.concatenate([jnp.zeros(1), jnp.cumsum(widths)[:-1], jnp.ones(1)])
    total = jnp.cumsum(heights)
    edges_out = jnp.concatenate([jnp.zeros(1), total if last is None else total.at[-1].set(last)])
    # compare_all is a plain comparison with all edges: cheap at 100 bins, and it works on sharded inputs.
    bin_index = jnp.clip(jnp.searchsorted(edges_in, value, side="right", method="compare_all") - 1, 0, widths.shape[0] - 1)
    width = edges_in[bin_index + 1] - edges_in[bin_index]
    slope = (edges_out[bin_index + 1] - edges_out[bin_index]) / jnp.maximum(width, 1e-12)
    return edges_out[bin_index] + slope * (value - edges_in[bin_index]), slope


def fit_loss(
    warp: Warp, sampling_warp: Warp, sigma: Float[Array, "B"], cross_entropy: Float[Array, "B"], selected: Bool[Array, "B"], count: Array | int
) -> Float[Array, ""]:
    """The warp's own loss, nats^2: mean of (F~(sigma) - CE)^2 / F'(sigma) over the selected sequences (appendix A.4).

    `sampling_warp` is the one whose density drew sigma; selected are the sequences with one noise level each, `count` in number. If these are part of
    a batch, `count` is the batch's, and the answers for its parts add up to the batch's. Only `warp` receives a gradient.
    """
    weights = jax.lax.stop_gradient(selected / sampling_warp.axis_pdf(sigma))
    error = warp.entropy(jax.lax.stop_gradient(sigma)) - jax.lax.stop_gradient(cross_entropy)
    return jnp.sum(weights * error**2) / count
