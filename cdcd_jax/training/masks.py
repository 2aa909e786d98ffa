"""What the step draws for each example: which tokens are given, and how noisy the others are (paper, sections 3.3 and 4.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


def choose(key: PRNGKeyArray, batch: int, count: int) -> Bool[Array, "B"]:
    """Marks exactly `count` of `batch` examples, at random."""
    return jax.random.permutation(key, batch) < count


def given_mask(
    key: PRNGKeyArray, batch: int, length: int, given_fraction: float, prefix_fraction: float, segments: Int[Array, "B L"] | None = None
) -> Bool[Array, "B L"]:
    """True where a token is given: mixed masks (paper, section 4.2).

    A fraction of the examples has given tokens; their number is uniform over 0 .. L - 1. In `prefix_fraction` of those examples they are the
    first tokens, in the others a uniformly random subset of that size. With segments each document of a row has a number, and first tokens, of its
    own, as if it were alone.
    """
    which, kind, number, order = jax.random.split(key, 4)
    with_given = choose(which, batch, round(given_fraction * batch))
    as_prefix = jax.random.uniform(kind, (batch, 1)) < prefix_fraction
    if segments is None:
        count = jax.random.randint(number, (batch, 1), 0, length)
        prefix_rank = jnp.arange(length)[None, :]
        random_rank = jnp.argsort(jnp.argsort(jax.random.uniform(order, (batch, length)), axis=-1), axis=-1)
    else:
        together = segments[:, :, None] == segments[:, None, :]

        def rank(values: Array) -> Array:
            return jnp.sum(together & (values[:, None, :] < values[:, :, None]), axis=-1)

        share = jnp.take_along_axis(jax.random.uniform(number, (batch, length + 1)), segments, axis=-1)  # one draw for each document
        count = jnp.floor(share * together.sum(axis=-1))
        prefix_rank = rank(jnp.arange(length)[None, :])
        random_rank = rank(jax.random.uniform(order, (batch, length)))
    return (jnp.where(as_prefix, prefix_rank, random_rank) < count) & with_given[:, None]


def low_discrepancy(key: PRNGKeyArray, batch: int) -> Float[Array, "B"]:
    """u_i = (U + i / B) mod 1 with one shared U, in random order, so that u is tied to no other split of the batch (paper, section 3.3)."""
    offset_key, order_key = jax.random.split(key)
    u = (jax.random.uniform(offset_key) + jnp.arange(batch) / batch) % 1.0
    return jax.random.permutation(order_key, u)


def warped_times(key: PRNGKeyArray, batch: int, length: int, position_fraction: float) -> tuple[Float[Array, "B L"], Bool[Array, "B"]]:
    """Warped times u [B, L] and which examples have one for the whole sequence; in exactly the fraction given every position has its own.

    Positions' times are stratified within their sequence, whole sequences' over the batch.
    """
    which, sequence, offsets, order = jax.random.split(key, 4)
    whole = ~choose(which, batch, round(position_fraction * batch))
    shared = jnp.broadcast_to(low_discrepancy(sequence, batch)[:, None], (batch, length))
    if position_fraction == 0:
        return shared, whole
    rank = jnp.argsort(jax.random.uniform(order, (batch, length)), axis=-1)
    own = (jax.random.uniform(offsets, (batch, 1)) + rank / length) % 1.0
    return jnp.where(whole[:, None], shared, own), whole
