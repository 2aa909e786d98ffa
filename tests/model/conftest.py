"""What the tests of the networks share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

V, B, L, D = 7, 2, 6, 3


def moved(params: dict) -> dict:
    """Parameters away from their initial values, many of which are zero; not so far that a softmax is certain, where gradients vanish."""
    leaves, tree = jax.tree.flatten(params)
    generator = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [leaf + jnp.asarray(0.1 * generator.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


@pytest.fixture(scope="session")
def away():
    return moved


@pytest.fixture(scope="session")
def features() -> jax.Array:
    """[B, L, 3 D + 1]; the flag is 1 but at two positions."""
    values = jax.random.normal(jax.random.key(3), (B, L, 3 * D + 1))
    return values.at[..., 2 * D].set(jnp.ones((B, L)).at[0, 1].set(0.0).at[1, 4].set(0.0))
