"""The training loss: cross-entropy at noisy positions, and the warp's fit to it (paper, sections 3.1 to 4.3).

The two are summed for one backward pass, but share no gradient: the noise levels are constants to the network, the cross-entropy to the warp.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cdcd_jax.config import Config
from cdcd_jax.diffusion import kernel
from cdcd_jax.diffusion.warp import Warp, fit_loss
from cdcd_jax.training import masks

Params = dict[str, Any]  # {"embeddings", "denoiser", "warp"}
Apply = Callable[..., Array]  # (denoiser parameters, features, sigma), and segments where there are any -> logits


def make_warp(config: Config, values: dict[str, Array]) -> Warp:
    """The Warp with these trained logits and the config's range of sigma."""
    d = config.diffusion
    return Warp(values["axis_logits"], values["entropy_logits"], d.sigma_min, d.sigma_max, d.warp_axis, d.warp_floor)


def make_denoise(
    config: Config,
    apply: Apply,
    params: Params,
    log_prior: Array,
    given: Bool[Array, "B L"],
    clean: Float[Array, "B L D"],
    segments: Int[Array, "B L"] | None = None,
) -> kernel.Denoise:
    """kernel.make_denoise for this config and these parameters: what training, sampling and scoring all call.

    `segments` number the documents of each row, none of which then sees another; 0 is padding.
    """
    options = kernel.Options(config.model.output_prior, config.model.posterior_mean_input)
    table = kernel.normalise(params["embeddings"]["table"])

    def network(features: Array, sigma: Array) -> Array:
        arguments = (params["denoiser"], features, sigma)
        return apply(*arguments) if segments is None else apply(*arguments, segments)

    return kernel.make_denoise(network, table, given, clean, log_prior, options)


def self_condition(denoise: Callable[[Any], kernel.Denoise], x: Array, sigma: Array, *rows: Array | None) -> Array:
    """The `previous` of each example: its own first estimate in one half of the batch, zeros in the other (paper, section 4.3).

    `denoise` makes the denoiser for some of the `rows`, which are given, clean and segments. Only the half runs the extra pass. The halves
    interleave, so that on a mesh each device finds both in its own rows.
    """
    half = jax.tree.map(lambda a: a.reshape(a.shape[0] // 2, 2, *a.shape[1:])[:, 0], [x, sigma, *rows])
    first = denoise(half[2:])(half[0], half[1], jnp.zeros_like(half[0])).x0
    return jax.lax.stop_gradient(jnp.stack([first, jnp.zeros_like(first)], axis=1).reshape(x.shape))


class Examples(NamedTuple):
    """A batch, or some of its rows, with all that was drawn for them."""

    tokens: Int[Array, "B L"]
    given: Bool[Array, "B L"]
    kept: Bool[Array, "B"]  # False where conditioning is dropped, and the given tokens are hidden
    sigma: Array  # float32 [B], or [B, L] if some examples have a level at each position
    whole: Bool[Array, "B"]  # True where all positions have one level
    eps: Float[Array, "B L D"]
    segments: Any = None  # int32 [B, L], where rows hold several documents or padding

    @property
    def counted(self) -> Bool[Array, "B L"]:
        """The positions that the loss is a mean over: noisy ones, of documents."""
        return ~self.given if self.segments is None else ~self.given & (self.segments > 0)


def draw(sampling_warp: Warp, tokens: Int[Array, "B L"], key: PRNGKeyArray, config: Config, segments: Int[Array, "B L"] | None = None) -> Examples:
    """All that is random in a step, for the whole batch; `sampling_warp` (the EMA copy) chooses the noise levels."""
    batch, length = tokens.shape
    t = config.train
    mask_key, time_key, noise_key, drop_key = jax.random.split(key, 4)
    given = masks.given_mask(mask_key, batch, length, t.given_fraction, t.prefix_fraction, segments)
    u, whole = masks.warped_times(time_key, batch, length, t.position_sigma_fraction)
    # The barrier keeps XLA from drawing the masks and levels again inside every loop over the vocabulary that needs them.
    given, sigma, whole = jax.lax.optimization_barrier((given, jax.lax.stop_gradient(sampling_warp.sigma(u)), whole))
    if t.position_sigma_fraction == 0:
        sigma = sigma[:, 0]

    eps = jax.random.normal(noise_key, (batch, length, config.model.embedding_dim))
    kept = ~masks.choose(drop_key, batch, round(t.conditioning_dropout * batch))
    return Examples(tokens, given, kept, sigma, whole, eps, segments)


def loss(
    params: Params, sampling_warp: Warp, log_prior: Float[Array, "V"], batch: Examples, part: Examples, config: Config, apply: Apply
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """What `part` of a batch adds to main loss + warp loss, and to the metrics of the step; the whole, if it is the batch itself.

    `loss` is the mean cross-entropy in nats over all noisy positions of the batch, `warp_loss` the mean over its sequences with one level. Padding
    counts nowhere.
    """
    tokens, given, kept, sigma, whole, eps, segments = part
    x0 = kernel.normalise(params["embeddings"]["table"])[tokens]
    x = kernel.add_noise(x0, sigma, eps)
    clean = x0 * (given & kept[:, None])[..., None]

    rows = [given, clean, segments]

    def denoiser(rows: list[Any]) -> kernel.Denoise:
        return make_denoise(config, apply, params, log_prior, *rows)

    previous = self_condition(denoiser, x, sigma, *rows) if config.train.self_conditioning else jnp.zeros_like(x)
    _, logits = denoiser(rows)(x, sigma, previous)

    counted = part.counted
    entropy = kernel.cross_entropy(logits, tokens) * counted
    main = entropy.sum() / jnp.sum(batch.counted)
    per_sequence = entropy.sum(axis=-1) / jnp.maximum(counted.sum(axis=-1), 1)
    warp = make_warp(config, params["warp"])
    warp_loss = fit_loss(warp, sampling_warp, kernel.per_position(sigma)[:, 0], per_sequence, whole, batch.whole.sum())
    return main + warp_loss, {"loss": main, "warp_loss": warp_loss}
