"""Metrics: the held-out bound, the straightness of entropy over warped time, and what samples are made of."""

import re
import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from cdcd_jax.config import UserError
from cdcd_jax.data import pipeline
from cdcd_jax.diffusion import likelihood
from cdcd_jax.evaluation.generate import Sample
from cdcd_jax.evaluation.model import Model
from cdcd_jax.training import telemetry
from cdcd_jax.training.progress import progress

STRAIGHTNESS_BINS = 20


def measure(model: Model, windows: Int[np.ndarray, "n L"], draws: int, seed: int) -> tuple[Array, dict[str, Array]]:
    """(u, the fields of telemetry.Measured), each [n, R]: R = `draws` noise levels for every window.

    All n R levels together are the midpoints of as many equal parts of [0, 1]; every window's own are spread evenly.
    """
    number = len(windows)
    offset = (np.random.default_rng(seed).permutation(number)[:, None] + 0.5) / number
    u = (np.arange(draws)[None, :] + offset) / draws
    columns = []
    with progress(draws * number, "scoring") as bar:
        for draw in range(draws):
            began = time.monotonic()
            key = jax.random.fold_in(jax.random.key(seed), draw)
            columns.append(telemetry.measure_all(model.measure, model.params, model.log_prior, windows, u[:, draw], key)._asdict())
            bar.update((draw + 1) * number, f"{windows.size / (time.monotonic() - began):,.0f} tokens/s")
    return u, {name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]}


def nll(model: Model, tokens: Int[np.ndarray, "n"], draws: int = 4, seed: int = 0) -> dict[str, Any]:
    """The variational bound on the tokens' negative log-likelihood, in windows of the model's length (the remainder is not scored).

    `stderr` is that of nats_per_token over windows. `linearity` is the largest distance of the mean cross-entropy over u from a straight line, over
    its range. UserError when there is less than one window, or fewer than two windows, whose spread is no standard error.
    """
    windows = pipeline.windows(tokens, model.length)
    if len(windows) < 2:
        raise UserError(f"a text of {len(tokens)} tokens is too short to score: two sequences of {model.length} tokens are needed.")
    u, measured = measure(model, windows, draws, seed)
    per_window = (measured["diffusion"] + measured["reconstruction"]).mean(axis=1)
    prior = likelihood.prior(model.config.model.embedding_dim, model.config.diffusion.sigma_max)
    nats = float(per_window.mean() + prior)
    error = float(per_window.std(ddof=1) / len(windows) ** 0.5)
    characters = len(model.tokenizer.decode(windows.reshape(-1).tolist()))
    nats_per_bit = np.log(2.0) * characters / windows.size
    entropy = telemetry.binned(u.reshape(-1), measured["cross_entropy"].reshape(-1), min(STRAIGHTNESS_BINS, u.size))
    return {
        "kind": "elbo",
        "bits_per_char": nats / nats_per_bit,
        "bits_per_char_stderr": error / nats_per_bit,
        "nats_per_token": nats,
        "stderr": error,
        "reconstruction": float(measured["reconstruction"].mean()),
        "prior": prior,
        "num_tokens": int(windows.size),
        "num_characters": characters,
        "linearity": telemetry.straightness(entropy),
        "entropy_over_u": entropy.tolist(),
        "step": model.step,
    }


def words(text: str) -> list[str]:
    """The words of a text: runs of letters, in lower case."""
    return re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text.lower())


def inner_words(text: str) -> list[str]:
    """The words without the first and the last, which a crop may have cut."""
    return words(text)[1:-1]


def valid_word_rate(texts: list[str], vocabulary: set[str]) -> float:
    """The share of the texts' words that occur in the vocabulary; 0 when there are no words."""
    found = [word in vocabulary for text in texts for word in inner_words(text)]
    return float(np.mean(found)) if found else 0.0


def token_entropy(sequences: list[list[int]]) -> float:
    """Entropy of the pooled tokens' distribution, nats (paper, section 6.2)."""
    counts = np.unique(np.concatenate([np.asarray(s) for s in sequences]), return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def sample_metrics(model: Model, samples: list[Sample], corpus: pipeline.Corpus, seed: int = 0) -> dict[str, Any]:
    """Pooled token entropy and valid-word rate of samples, beside those of held-out text and of independent draws from the unigram model."""
    vocabulary = set(words(model.tokenizer.decode(corpus.train.tolist())))
    windows = pipeline.windows(corpus.valid, model.length)
    drawn = np.random.default_rng(seed).choice(len(model.log_prior), size=(256, model.length), p=_probabilities(model))
    decode = model.tokenizer.decode
    return {
        "num_samples": len(samples),
        "entropy": token_entropy([s.tokens for s in samples]),
        # Of as much text as was sampled: the entropy of few tokens comes out lower than that of many.
        "entropy_heldout": token_entropy(windows[np.linspace(0, len(windows) - 1, len(samples)).astype(int)].tolist()),
        "valid_word_rate": valid_word_rate([s.text for s in samples], vocabulary),
        "valid_word_rate_heldout": valid_word_rate([decode(w.tolist()) for w in windows], vocabulary),
        "valid_word_rate_unigram": valid_word_rate([decode(w.tolist()) for w in drawn], vocabulary),
        "nfe": samples[0].nfe,
        "step": model.step,
    }


def _probabilities(model: Model) -> Float[np.ndarray, "V"]:
    p = np.exp(np.asarray(model.log_prior, np.float64))
    return p / p.sum()
