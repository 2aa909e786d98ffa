"""What telemetry and scoring measure, computed again in plain numpy, in float64, from the equations of docs/DESIGN.md."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdcd_jax.config import Config
from cdcd_jax.evaluation.model import Model
from cdcd_jax.training.loss import Apply
from cdcd_jax.training.step import make_apply


def softmax(z: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """-log softmax(logits)[token]."""
    return -np.log(np.take_along_axis(softmax(logits), tokens[..., None], axis=-1)[..., 0])


class PlainWarp:
    """The piecewise-linear warp by np.interp."""

    def __init__(self, config: Config, values: dict[str, Any]):
        self.config, n = config.diffusion, len(values["axis_logits"])
        floor = self.config.warp_floor
        widths, heights = (
            (softmax(np.asarray(values[name], np.float64)) + floor / n) / (1 + floor) for name in ("axis_logits", "entropy_logits")
        )
        self.axis, self.u = (np.concatenate([[0.0], np.cumsum(a)]) for a in (widths, heights))
        self.nats = np.concatenate([[0.0], np.cumsum(np.exp(np.asarray(values["entropy_logits"], np.float64)))])
        self.range = np.log(self.config.sigma_max / self.config.sigma_min)
        assert self.config.warp_axis == "log"

    def sigma(self, u: np.ndarray | float) -> np.ndarray:
        """F^-1."""
        return self.config.sigma_min * np.exp(np.interp(u, self.u, self.axis) * self.range)

    def tau(self, sigma: np.ndarray) -> np.ndarray:
        """The position on the axis."""
        return np.log(np.asarray(sigma, np.float64) / self.config.sigma_min) / self.range

    def entropy(self, sigma: np.ndarray) -> np.ndarray:
        """The fitted curve, nats."""
        return np.interp(self.tau(sigma), self.axis, self.nats)

    def pdf(self, sigma: np.ndarray) -> np.ndarray:
        """dF/dsigma, by the bin that sigma lies in."""
        index = np.clip(np.searchsorted(self.axis, self.tau(sigma), side="right") - 1, 0, len(self.axis) - 2)
        return (np.diff(self.u) / np.diff(self.axis))[index] / (sigma * self.range)


class Plain(NamedTuple):
    """Means over positions, per sequence."""

    sigma: np.ndarray
    diffusion: np.ndarray
    reconstruction: np.ndarray
    cross_entropy: np.ndarray
    local_cross_entropy: np.ndarray


def embeddings(model: Model) -> np.ndarray:
    """[V, D], of norm sqrt(D)."""
    table = np.asarray(model.params["embeddings"]["table"], np.float64)
    return table / np.linalg.norm(table, axis=1, keepdims=True) * table.shape[1] ** 0.5


@functools.cache
def jitted(config: Config, vocab_size: int) -> Apply:
    """The network, compiled once for all calls."""
    return jax.jit(make_apply(config, vocab_size))


def measure(model: Model, tokens: np.ndarray, u: np.ndarray, key: jax.Array) -> Plain:
    """tokens [B, L] at warped times u [B], nothing given, with all of the demo's options and self-conditioning; the network itself is the model's."""
    m = model.config.model
    assert m.output_prior and m.posterior_mean_input and model.config.train.self_conditioning
    warp, table, prior = PlainWarp(model.config, model.params["warp"]), embeddings(model), np.asarray(model.log_prior, np.float64)
    network = jitted(model.config, model.tokenizer.vocab_size)
    clean = table[tokens]
    noise_keys = jax.random.split(key)

    def local(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        # Bayes with the squared distances themselves, not with the inner products that equal norms allow.
        distance = ((x[:, :, None, :] - table[None, None]) ** 2).sum(axis=-1)
        return -distance / (2 * sigma[:, None, None] ** 2) + prior

    def predict(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        logits, previous = local(x, sigma), np.zeros_like(x)
        mean = softmax(logits) @ table
        for _ in range(2):
            features = np.concatenate([mean, np.zeros_like(x), np.ones((*tokens.shape, 1)), previous], axis=-1)
            inputs = (jnp.asarray(a, jnp.float32) for a in (features, sigma[:, None]))
            answer = logits + np.asarray(network(model.params["denoiser"], *inputs))
            previous = softmax(answer) @ table
        return answer

    sigma = warp.sigma(u)
    x = clean + sigma[:, None, None] * np.asarray(jax.random.normal(noise_keys[0], clean.shape))
    logits = predict(x, sigma)
    error = ((clean - softmax(logits) @ table) ** 2).sum(axis=-1).mean(axis=1)
    least = np.full(len(tokens), warp.config.sigma_min)
    at_least = clean + least[:, None, None] * np.asarray(jax.random.normal(noise_keys[1], clean.shape))
    return Plain(
        sigma,
        error / (warp.pdf(sigma) * sigma**3),
        cross_entropy(predict(at_least, least), tokens).mean(axis=1),
        cross_entropy(logits, tokens).mean(axis=1),
        cross_entropy(local(x, sigma), tokens).mean(axis=1),
    )


def bound(model: Model, per_sequence: np.ndarray) -> tuple[float, float]:
    """(nats per token, standard error) from diffusion + reconstruction of each sequence."""
    prior = model.config.model.embedding_dim / (2 * model.config.diffusion.sigma_max**2)
    return per_sequence.mean() + prior, per_sequence.std(ddof=1) / len(per_sequence) ** 0.5
