"""A world small enough to enumerate: every sequence of 3 tokens out of 5, its probability, and so the exact posterior of a noisy one."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

from cdcd_jax.diffusion import kernel
from cdcd_jax.diffusion.warp import Warp, fit_loss
from cdcd_jax.training.masks import low_discrepancy

V, L, D = 5, 3, 6
SIGMA_MIN, SIGMA_MAX = 0.35, 100.0
PLAIN = kernel.Options()


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """`sequences` [S, L] are all there are, `probabilities` [S] theirs, `table` [V, D] normalised embeddings."""

    table: Array
    sequences: np.ndarray
    probabilities: np.ndarray

    @property
    def entropy(self) -> float:
        """Of a sequence, nats."""
        return float(-(self.probabilities * np.log(self.probabilities)).sum())

    @property
    def marginals(self) -> np.ndarray:
        """[L, V]: the distribution of the token at each position."""
        return np.einsum("s,slv->lv", self.probabilities, np.eye(V)[self.sequences])

    @property
    def log_prior(self) -> Array:
        """[V]: the unigram log probabilities."""
        return jnp.asarray(np.log(self.marginals.mean(axis=0)), jnp.float32)

    def without_context(self) -> "World":
        """The same marginals, with independent positions."""
        product = np.prod([self.marginals[position, self.sequences[:, position]] for position in range(L)], axis=0)
        return dataclasses.replace(self, probabilities=product)

    def draw(self, key: Array, count: int) -> Array:
        """Sequences [count, L], by their probabilities."""
        return jnp.asarray(self.sequences)[jax.random.choice(key, len(self.sequences), (count,), p=jnp.asarray(self.probabilities))]

    def network(self, options: kernel.Options) -> kernel.Network:
        """The best of all networks: from the stacked features, the logarithms of the posterior's marginals, less what the output prior adds.

        Bayes' rule over all sequences. What a token at a position has for it is x . e / sigma^2 where x is seen, since all |e| are equal, and
        whether it is the one where it is given; a given token that is not shown says nothing.
        """
        one_hot = jnp.asarray(np.eye(V)[self.sequences].reshape(-1, L * V), jnp.float32)
        log_p = jnp.log(jnp.asarray(self.probabilities, jnp.float32))[None]

        def apply(features: Array, sigma: Array) -> Array:
            noisy, clean, flag, _ = jnp.split(features, (D, 2 * D, 2 * D + 1), axis=-1)
            x, sigma = noisy / kernel.c_in(sigma)[..., None], sigma[:, :1]
            same = clean @ self.table.T > D - 1e-3
            hidden = jnp.abs(clean).max(axis=-1, keepdims=True) == 0
            evidence = jnp.where(flag > 0, x @ self.table.T / sigma[..., None] ** 2, jnp.where(same | hidden, 0.0, -1e9))
            posterior = jax.nn.softmax(log_p + evidence.reshape(-1, L * V) @ one_hot.T, axis=-1)
            logits = jnp.log(jnp.maximum(posterior @ one_hot, 1e-30)).reshape(-1, L, V)
            if options.output_prior:
                logits -= flag * kernel.local_posterior(x, sigma[:, 0], self.table, self.log_prior).logits
            return logits

        return apply

    def denoise(self, given: Array, tokens: Array, options: kernel.Options = PLAIN, hidden: bool = False) -> kernel.Denoise:
        """The exact denoiser of rows whose `given` [B, L] tokens are known (hidden: which the network is not shown)."""
        clean = self.table[tokens] * given[..., None] * (not hidden)
        return kernel.make_denoise(self.network(options), self.table, given, clean, self.log_prior, options)

    def blind(self, batch: int, options: kernel.Options = PLAIN) -> kernel.Denoise:
        """The exact denoiser of `batch` rows of which nothing is given. The barrier keeps XLA from folding what it does with the zeros, slowly."""
        return self.denoise(*jax.lax.optimization_barrier((jnp.zeros((batch, L), bool), jnp.zeros((batch, L), int))), options)


@pytest.fixture(scope="session")
def world() -> World:
    generator = np.random.default_rng(3)
    table = kernel.normalise(jnp.asarray(generator.normal(size=(V, D)), jnp.float32))
    logits = 1.3 * generator.normal(size=V**L)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    return World(table, np.array(list(itertools.product(range(V), repeat=L))), probabilities)


@pytest.fixture(scope="session")
def log_warp() -> Warp:
    """No fit: u is the position on the logarithmic axis."""
    return Warp.identity(100, SIGMA_MIN, SIGMA_MAX, "log", 1e-3)


def fit(curve: Callable[[Array, Array], Array], warp: Warp, steps: int, batch: int, rate: float = 1e-2) -> Warp:
    """Fits a warp as training does, and returns the averaged copy, whose density drew the noise levels. curve(key, sigma [B]) -> losses [B]."""
    optimizer = optax.adam(rate, b2=0.99)

    def step(carry: tuple, now: tuple) -> tuple[tuple, None]:
        live, average, state = carry
        number, key = now
        u_key, loss_key = jax.random.split(key)
        sigma = average.sigma(low_discrepancy(u_key, batch))
        gradient = jax.grad(fit_loss)(live, average, sigma, curve(loss_key, sigma), jnp.ones(batch, bool), batch)
        updates, state = optimizer.update(gradient, state)
        live = optax.apply_updates(live, updates)
        decay = jnp.minimum(0.99, (1.0 + number) / (10.0 + number))
        return (live, jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, live), state), None

    carry = (warp, warp, optimizer.init(warp))
    keys = jax.random.split(jax.random.key(5), steps)
    return jax.jit(lambda c: jax.lax.scan(step, c, (jnp.arange(steps), keys))[0])(carry)[1]


@pytest.fixture(scope="session")
def fit_warp() -> Callable[..., Warp]:
    return fit


@pytest.fixture(scope="session")
def fitted_warp(world: World, log_warp: Warp) -> Warp:
    """The warp that training with the exact denoiser would arrive at."""
    denoise = world.blind(64)

    def losses(key: Array, sigma: Array) -> Array:
        token_key, noise_key = jax.random.split(key)
        tokens = world.draw(token_key, 64)
        x = kernel.add_noise(world.table[tokens], sigma, jax.random.normal(noise_key, (64, L, D)))
        return kernel.cross_entropy(denoise(x, sigma, jnp.zeros_like(x)).logits, tokens).mean(axis=-1)

    return fit(losses, log_warp, 1000, 64)
