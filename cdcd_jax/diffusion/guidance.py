"""Guidance, and what is known of a token without knowing it: a denoise from a denoise (paper, section 6)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cdcd_jax.diffusion.kernel import Denoise, Denoised, interpolate


def classifier_free(denoise_pair: Denoise, scale: float | Array) -> Denoise:
    """Classifier-free guidance: x0 = x0_dropped + scale (x0_conditioned - x0_dropped); scale 1 is the conditional model.

    `denoise_pair` takes 2 B rows: its first B rows are conditioned, its last B rows are the same sequences with their conditioning dropped, so
    that both answers come from one call. The logits are guided in the same way, and the guided x0 is what both rows are fed back.
    """

    def guide(both: Array) -> Array:
        conditioned, dropped = jnp.split(both, 2)
        return dropped + scale * (conditioned - dropped)

    def denoise(x: Array, sigma: Array, previous: Array) -> Denoised:
        both = denoise_pair(*(jnp.concatenate([a, a]) for a in (x, sigma, previous)))
        return Denoised(guide(both.x0), guide(both.logits))

    return denoise


def restricted(denoise: Denoise, table: Float[Array, "V D"], positions: Bool[Array, "B L"], allowed: Bool[Array, "V"]) -> Denoise:
    """At these positions only the allowed tokens are possible: the posterior given that, so the others' probability goes to them in proportion.

    `table` is the normalised one. Elsewhere nothing changes.
    """
    here = positions[..., None]

    def conditioned(x: Array, sigma: Array, previous: Array) -> Denoised:
        x0, logits = denoise(x, sigma, previous)
        logits = jnp.where(here & ~allowed.reshape(1, 1, -1), -1e9, logits)
        return Denoised(jnp.where(here, interpolate(logits, table), x0), logits)

    return conditioned
