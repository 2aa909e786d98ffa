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

STRETCHES, STRETCH = 4, 1 << 16  # of a large corpus, so many stretches of so many rows tell its words


def measure(model: Model, rows: pipeline.Rows, draws: int, seed: int) -> tuple[Array, dict[str, Array]]:
    """(u, the fields of telemetry.Measured), each [n, R]: R = `draws` noise levels for every row.

    All n R levels together are the midpoints of as many equal parts of [0, 1]; every row's own are spread evenly.
    """
    number = len(rows)
    offset = (np.random.default_rng(seed).permutation(number)[:, None] + 0.5) / number
    u = (np.arange(draws)[None, :] + offset) / draws
    columns = []
    with progress(draws * number, "scoring") as bar:
        for draw in range(draws):
            began = time.monotonic()
            key = jax.random.fold_in(jax.random.key(seed), draw)
            columns.append(telemetry.measure_all(model.measure, model.params, model.log_prior, rows, u[:, draw], key)._asdict())
            bar.update((draw + 1) * number, f"{columns[-1]['tokens'].sum() / (time.monotonic() - began):,.0f} tokens/s")
    return u, {name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]}


def nll(model: Model, rows: pipeline.Rows, draws: int = 4, seed: int = 0) -> dict[str, Any]:
    """The variational bound on the negative log-likelihood of the rows' tokens, each document by itself, padding left out.

    `stderr` is that of nats_per_token over rows. `linearity` is the largest distance of the mean cross-entropy over u from a straight line, over its
    range. Bits are per character that begins in a token scored. UserError for fewer than two rows, whose spread is no standard error.
    """
    if len(rows) < 2:
        raise UserError(f"there are too few sequences to score, {len(rows)}: two of {model.length} tokens are needed.")
    u, measured = measure(model, rows, draws, seed)
    counts = measured["tokens"][:, 0]
    mean, error = telemetry.per_token((measured["diffusion"] + measured["reconstruction"]).mean(axis=1), counts)
    reconstruction, _ = telemetry.per_token(measured["reconstruction"].mean(axis=1), counts)
    prior = likelihood.prior(model.config.model.embedding_dim, model.config.diffusion.sigma_max)
    nats, tokens = float(mean + prior), int(counts.sum(dtype=np.float64))
    batches = (rows.read(np.arange(start, min(start + STRETCH, len(rows)))) for start in range(0, len(rows), STRETCH))
    characters = sum(int(model.tokenizer.characters[np.concatenate(documents(batch))].sum()) for batch in batches)
    nats_per_bit = np.log(2.0) * characters / tokens
    levels, values, weights = (a.reshape(-1) for a in (u, measured["cross_entropy"], measured["tokens"]))
    entropy = telemetry.binned(levels, values, weights, min(telemetry.BINS, u.size))
    return {
        "kind": "elbo",
        "bits_per_char": nats / nats_per_bit,
        "bits_per_char_stderr": float(error) / nats_per_bit,
        "nats_per_token": nats,
        "stderr": float(error),
        "reconstruction": float(reconstruction),
        "prior": prior,
        "num_sequences": len(rows),
        "num_tokens": tokens,
        "num_characters": characters,
        "linearity": telemetry.straightness(entropy),
        "entropy_over_u": entropy.tolist(),
        "step": model.step,
    }


def documents(batch: pipeline.Batch) -> list[Int[np.ndarray, "n"]]:
    """The ids of each document in the rows, padding left out; of each row, where rows are cut from running text."""
    tokens, segments = batch["tokens"], batch.get("segments")
    if segments is None:
        return list(tokens)
    numbers = np.arange(len(tokens))[:, None] * (tokens.shape[1] + 1) + segments  # another number for each document of each row
    begins = np.flatnonzero(np.diff(numbers.reshape(-1))) + 1
    parts = zip(np.split(tokens.reshape(-1), begins), np.split(segments.reshape(-1), begins), strict=True)
    return [ids for ids, of in parts if of[0] > 0]


def vocabulary(model: Model, rows: pipeline.Rows) -> set[str]:
    """The words of the rows; of more than STRETCHES times STRETCH rows, those of as many stretches, spread over them."""
    found: set[str] = set()
    for start in np.unique(np.linspace(0, max(len(rows) - STRETCH, 0), STRETCHES).astype(int)):
        batch = rows.read(np.arange(start, min(start + STRETCH, len(rows))))
        texts = documents(batch) if "segments" in batch else [batch["tokens"].reshape(-1)]  # no word is cut where a row ends
        found.update(word for ids in texts for word in words(model.tokenizer.decode(ids.tolist())))
    return found


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
    known = vocabulary(model, corpus.splits["train"].rows)
    drawn = np.random.default_rng(seed).choice(len(model.log_prior), size=(256, model.length), p=_probabilities(model))
    valid = corpus.splits["valid"].rows

    def held_out(number: int) -> list[list[int]]:
        rows = pipeline.Spread(valid, number)
        return [ids.tolist() for ids in documents(rows.read(np.arange(len(rows))))]

    def rate(sequences: list[list[int]]) -> float:
        return valid_word_rate([model.tokenizer.decode(ids) for ids in sequences], known)

    return {
        "num_samples": len(samples),
        "entropy": token_entropy([[i for i in s.tokens if i != model.tokenizer.pad_id] for s in samples]),
        # Of as much text as was sampled: the entropy of few tokens comes out lower than that of many.
        "entropy_heldout": token_entropy(held_out(len(samples))),
        "valid_word_rate": valid_word_rate([s.text for s in samples], known),
        "valid_word_rate_heldout": rate(held_out(STRETCH)),
        "valid_word_rate_unigram": rate(drawn.tolist()),
        "nfe": samples[0].nfe,
        "step": model.step,
    }


def _probabilities(model: Model) -> Float[np.ndarray, "V"]:
    p = np.exp(np.asarray(model.log_prior, np.float64))
    return p / p.sum()
