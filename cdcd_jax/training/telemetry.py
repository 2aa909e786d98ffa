"""What a run says of itself besides its loss: a cheap bound on held-out text, what context adds, and how well the warp fits.

Under a working warp the mean training loss stays near half of the unigram entropy by construction (docs/DESIGN.md, 5), so these are what progress
is read from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray

from cdcd_jax.config import Config
from cdcd_jax.data.pipeline import Rows
from cdcd_jax.diffusion import kernel, likelihood
from cdcd_jax.parallel.mesh import batch_sharding
from cdcd_jax.training.loss import Apply, make_denoise, make_warp
from cdcd_jax.training.step import Batch

PASSES = 2  # denoiser calls in scoring: with self-conditioning the second is fed the first's estimate
BINS = 20
BATCH = 64  # rows measured at once


class Measured(NamedTuple):
    """Means over each row's positions, nats, padding left out; one noise level per row."""

    tokens: Any  # [B], how many positions the means are over
    sigma: Any  # [B], arrays of jax or numpy, as all of these
    diffusion: Any  # the bound's diffusion term
    reconstruction: Any
    cross_entropy: Any
    local_cross_entropy: Any  # of the closed-form posterior of a single token, on the same noisy input


Measure = Callable[[Any, Any, Any, Any, Array], Measured]


def make_measure(config: Config, apply: Apply, mesh: Mesh | None = None) -> Measure:
    """A jitted (params, log_prior, batch of B rows, u [B], key) -> Measured, nothing given; on a mesh the batch is spread over its devices."""

    def measure(params: Any, log_prior: Float[Array, "V"], batch: Batch, u: Float[Array, "B"], key: PRNGKeyArray) -> Measured:
        rows = len(u)
        if mesh is not None:  # every device gets as many rows: the last row again fills them up
            index = jnp.minimum(jnp.arange(-(-rows // mesh.size) * mesh.size), rows - 1)
            batch, u = jax.lax.with_sharding_constraint(jax.tree.map(lambda a: a[index], (batch, u)), batch_sharding(mesh))
        tokens, segments = batch["tokens"], batch.get("segments")
        warp = make_warp(config, params["warp"])
        table = kernel.normalise(params["embeddings"]["table"])
        x0 = table[tokens]
        denoise = make_denoise(config, apply, params, log_prior, jnp.zeros(tokens.shape, bool), jnp.zeros_like(x0), segments)
        passes = PASSES if config.train.self_conditioning else 1
        diffusion_key, reconstruction_key = jax.random.split(key)
        terms = likelihood.terms(denoise, warp, x0, tokens, u, diffusion_key, passes)
        reconstruction = likelihood.reconstruction(denoise, warp, x0, tokens, reconstruction_key, passes)
        local = kernel.cross_entropy(kernel.local_posterior(terms.x, warp.sigma(u), table, log_prior).logits, tokens)
        terms_of_bound = (terms.diffusion, reconstruction, terms.cross_entropy, local)
        if segments is None:
            counts, means = jnp.full(len(u), float(tokens.shape[1])), [a.mean(axis=-1) for a in terms_of_bound]
        else:
            counts = jnp.sum(segments > 0, axis=-1).astype(jnp.float32)
            means = [jnp.sum(a * (segments > 0), axis=-1) / counts for a in terms_of_bound]
        return Measured(counts[:rows], warp.sigma(u)[:rows], *(a[:rows] for a in means))

    return jax.jit(measure, out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def measure_all(
    measure: Measure,
    params: Any,
    log_prior: Array,
    data: Rows,
    u: Float[np.ndarray, "n"],
    key: PRNGKeyArray,
    before_batch: Callable[[], None] = lambda: None,
) -> Measured:
    """Measurements of any number of rows at their warped times u, a batch at a time so that memory does not grow with them.

    `before_batch` is called before each of them, and may raise to cut it short.
    """
    number = len(data)
    batch = min(BATCH, number)
    rows: list[Measured] = []
    for start in range(0, number, batch):
        before_batch()
        index = np.minimum(np.arange(start, start + batch), number - 1)  # the last batch is filled up with its last row
        part = measure(params, log_prior, data.read(index), u[index].astype(np.float32), jax.random.fold_in(key, start))
        rows.append(jax.tree.map(lambda a, left=number - start: np.asarray(a)[:left], part))
    return Measured(*(np.concatenate(field) for field in zip(*rows, strict=True)))


def bound(config: Config, measured: Measured) -> tuple[float, float]:
    """The bound in nats per token and its standard error, from measurements whose u were spread evenly over [0, 1]."""
    mean, error = per_token(np.asarray(measured.diffusion) + np.asarray(measured.reconstruction), np.asarray(measured.tokens))
    return float(mean + likelihood.prior(config.model.embedding_dim, config.diffusion.sigma_max)), float(error)


def per_token(means: Float[np.ndarray, "B"], tokens: Float[np.ndarray, "B"]) -> tuple[np.floating, np.floating]:
    """The mean over all tokens, from the means of rows of so many, and its standard error over rows."""
    weights = tokens / tokens.mean()
    mean = (weights * means).mean()
    error = np.sqrt(np.sum((weights * (means - mean)) ** 2) / (len(means) - 1)) / len(means) ** 0.5
    return mean, error


def straightness(entropy: Float[np.ndarray, "K"]) -> float:
    """How far entropy over evenly spaced u departs from the straight line that fits it best: the largest distance over its range."""
    u = np.linspace(0.0, 1.0, len(entropy))
    slope, offset = np.polyfit(u, entropy, 1)
    return float(np.abs(entropy - (slope * u + offset)).max() / max(np.ptp(entropy), 1e-9))


def binned(u: Float[np.ndarray, "B"], values: Float[np.ndarray, "B"], weights: Float[np.ndarray, "B"], bins: int) -> Float[np.ndarray, "K"]:
    """Weighted means of the values in bins of equal width in u; NaN where a bin is empty."""
    index = np.minimum((u * bins).astype(int), bins - 1)
    sums = np.bincount(index, weights, minlength=bins)
    return np.bincount(index, weights * values, minlength=bins) / np.where(sums, sums, np.nan)


def probe(
    config: Config,
    measure: Measure,
    params: Any,
    log_prior: Array,
    data: Rows,
    characters_per_token: float,
    key: Array,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """One line of telemetry.jsonl, as docs/DESIGN.md section 9 lists it. data: held-out rows."""
    u = (np.arange(len(data)) + 0.5) / len(data)
    measured = measure_all(measure, params, log_prior, data, u, key, before_batch)
    nats, error = bound(config, measured)
    bins = min(BINS, len(data))
    entropy, local, log_sigma = (
        binned(u, np.asarray(a), measured.tokens, bins) for a in (measured.cross_entropy, measured.local_cross_entropy, np.log(measured.sigma))
    )
    sigma = np.exp(log_sigma)
    per_char = np.log(2.0) * characters_per_token
    log_prior, seen = whole((log_prior, {name: params[name] for name in ("embeddings", "warp")}))
    return {
        "bits_per_char": nats / per_char,
        "bits_per_char_stderr": error / per_char,
        "nats_per_token": nats,
        "stderr": error,
        "context_gain": float((local - entropy).max()),
        "linearity": straightness(entropy),
        "u": ((np.arange(bins) + 0.5) / bins).tolist(),
        "sigma": sigma.tolist(),
        "cross_entropy": entropy.tolist(),
        "local_cross_entropy": local.tolist(),
        "unigram_entropy": float(-np.sum(np.exp(log_prior) * np.asarray(log_prior))),
        "chars_per_token": characters_per_token,
        **warp_picture(config, seen),
        **embedding_picture(seen),
    }


def whole(tree: Any) -> Any:
    """Arrays, whole on one device of this process, gathered from all processes, which all must call it."""
    return jax.tree.map(jnp.asarray, multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else jax.device_get(tree))


def warp_picture(config: Config, params: Any) -> dict[str, Any]:
    """The fitted curve, the density of noise levels over log sigma, and the sigma at which half of the information is resolved."""
    warp = make_warp(config, params["warp"])
    sigma = jnp.geomspace(warp.sigma_min, warp.sigma_max, 101)
    return {
        "half_information_sigma": float(warp.sigma(jnp.float32(0.5))),
        "warp_sigma": sigma.tolist(),
        "warp_entropy": warp.entropy(sigma).tolist(),
        "warp_density": (warp.pdf(sigma) * sigma).tolist(),
    }


def embedding_picture(params: Any) -> dict[str, Any]:
    """Quantiles (0, 25, 50, 75, 100 %) of the raw norms, and of the distance to the nearest other embedding over sqrt(2 D) (1: orthogonal)."""
    raw = params["embeddings"]["table"]
    table = np.asarray(kernel.normalise(raw)) / np.sqrt(raw.shape[-1])
    closest = []
    for start in range(0, len(table), 1024):  # in blocks: all pairs of a large vocabulary at once are gigabytes
        cosine = table[start : start + 1024] @ table.T
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -1.0
        closest.append(cosine.max(axis=-1))
    nearest = jnp.sqrt(jnp.maximum(1.0 - np.concatenate(closest), 0.0))
    marks = jnp.linspace(0.0, 1.0, 5)
    return {
        "embedding_norm_quantiles": jnp.quantile(jnp.linalg.norm(raw, axis=-1), marks).tolist(),
        "nearest_distance_quantiles": jnp.quantile(nearest, marks).tolist(),
    }


def warnings(line: dict[str, Any]) -> list[str]:
    """What a line of telemetry gives reason to warn of, a sentence each."""
    said = []
    if line["context_gain"] < 0.05:
        said.append(
            f"context adds {line['context_gain']:.3f} nats at most: the model knows no more than each token's own noisy embedding tells "
            "(the closed-form posterior), so nothing of the language is learnt yet, whatever the loss looks like."
        )
    if line["nearest_distance_quantiles"][2] < 0.1:
        said.append(
            f"embeddings collapse: half of them have a neighbour closer than {line['nearest_distance_quantiles'][2]:.3f} of the distance between "
            "orthogonal ones."
        )
    misfit = float(np.mean(np.abs(np.interp(line["sigma"], line["warp_sigma"], line["warp_entropy"]) - np.asarray(line["cross_entropy"]))))
    # The warp is fitted to the training mix, part of whose tokens are given, so it always lies somewhat off what is measured with none given.
    if misfit > 0.2 * line["unigram_entropy"]:
        said.append(f"the warp does not fit: its curve is {misfit:.2f} nats from the measured cross-entropy on average.")
    return said
