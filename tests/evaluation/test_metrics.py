"""Numbers for a trained model: the bound against plain numpy, and words, rates and entropies of texts made by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data.pipeline import Corpus, Crops, Split, Windows
from cdcd_jax.evaluation import metrics
from cdcd_jax.evaluation.generate import Sample
from cdcd_jax.evaluation.model import Model
from cdcd_jax.run import Run
from cdcd_jax.training import telemetry
from tests import plain, tiny

NUMBER, DRAWS, SEED = 10, 2, 4


def windows(number: int = NUMBER) -> Windows:
    """Ten windows and a remainder that is not scored."""
    return Windows(np.concatenate([tiny.tokens(number).reshape(-1), tiny.tokens(1)[0, :5]]), tiny.LENGTH)


def directly(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """(diffusion + reconstruction, cross-entropy), each [windows, draws], by plain numpy with the noise of scoring in batches of this size."""
    offset = np.random.default_rng(SEED).permutation(NUMBER)[:, None] + 0.5
    u = (np.arange(DRAWS) + offset / NUMBER) / DRAWS
    total, entropy = np.zeros((NUMBER, DRAWS)), np.zeros((NUMBER, DRAWS))
    for draw in range(DRAWS):
        for start in range(0, NUMBER, batch):
            rows = np.minimum(np.arange(start, start + batch), NUMBER - 1)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), draw), start)
            measured = plain.measure(tiny.overfitted(), tiny.tokens(NUMBER)[rows], u[rows, draw], key)
            kept = rows[: NUMBER - start]
            total[kept, draw] = (measured.diffusion + measured.reconstruction)[: NUMBER - start]
            entropy[kept, draw] = measured.cross_entropy[: NUMBER - start]
    return total, entropy


@pytest.mark.parametrize("batch", [64, 4])
def test_the_bound_is_that_of_plain_numpy_whatever_the_batch(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one batch, and in three of which the last is filled up with rows that must not count."""
    monkeypatch.setattr(telemetry, "BATCH", batch)
    result = metrics.nll(tiny.overfitted(), windows(), DRAWS, SEED)
    total, _ = directly(min(batch, NUMBER))
    nats, error = plain.bound(tiny.overfitted(), total.mean(axis=1))
    assert result["nats_per_token"] == pytest.approx(nats, rel=2e-3)
    assert result["stderr"] == pytest.approx(error, rel=5e-3)
    assert result["bits_per_char"] == pytest.approx(nats / math.log(2), rel=2e-3)  # a token is a character
    assert result["bits_per_char_stderr"] == pytest.approx(error / math.log(2), rel=5e-3)
    assert (result["num_tokens"], result["num_characters"], result["kind"]) == (160, 160, "elbo")
    assert result["prior"] == pytest.approx(16 / (2 * 30.0**2))
    assert result["nats_per_token"] > result["prior"] + result["reconstruction"] > 0


def test_the_batch_is_noise_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other batches draw other noise, and that is all: the two bounds differ by no more than their standard errors explain."""
    results = []
    for batch in (64, 4):
        monkeypatch.setattr(telemetry, "BATCH", batch)
        results.append(metrics.nll(tiny.overfitted(), windows(64), 2, SEED))
    one, other = results
    assert one["nats_per_token"] != other["nats_per_token"]
    assert abs(one["nats_per_token"] - other["nats_per_token"]) < 4 * math.hypot(one["stderr"], other["stderr"])


def test_scoring_again_gives_the_same_and_another_seed_another() -> None:
    one, again, other = (metrics.nll(tiny.overfitted(), windows(), 1, seed) for seed in (0, 0, 1))
    assert one == again and one["nats_per_token"] != other["nats_per_token"]


def test_noise_levels_are_spread_evenly() -> None:
    """Over all windows and draws together, and for each window by itself."""
    u, measured = metrics.measure(tiny.overfitted(), windows(), DRAWS, SEED)
    assert np.sort(u.reshape(-1)) == pytest.approx((np.arange(NUMBER * DRAWS) + 0.5) / (NUMBER * DRAWS))
    assert ((u * DRAWS).astype(int) == np.arange(DRAWS)).all()
    assert all(field.shape == (NUMBER, DRAWS) for field in measured.values())


def test_a_sentence_it_never_saw_scores_worse() -> None:
    run = Run(epath.Path("nowhere"), tiny.overfitted())
    known, unknown = (run.likelihood(sentence * 4)["nats_per_token"] for sentence in (tiny.SENTENCES[0], tiny.SENTENCES[0][::-1]))
    assert known < 1.0 < unknown


def test_likelihood_of_several_texts_is_that_of_one_stream() -> None:
    """Nothing is put between them: the tokenizer need not know a line break."""
    run = Run(epath.Path("nowhere"), tiny.overfitted())
    one = run.likelihood("".join(tiny.SENTENCES[:4]), draws=1)
    assert run.likelihood(tiny.SENTENCES[:4], draws=1) == one
    assert one["num_characters"] == 4 * tiny.LENGTH


@pytest.mark.parametrize("texts", ["", [], "the cat", "the cat is black", ["a dog ran to me.", "the cat"]])
def test_a_text_too_short_to_score(texts: str | list[str]) -> None:
    with pytest.raises(UserError, match="tokens is too short to score: two sequences of 16 tokens are needed."):
        Run(epath.Path("nowhere"), tiny.overfitted()).likelihood(texts)


def test_a_text_with_unknown_characters() -> None:
    with pytest.raises(UserError, match="lacks the characters 'Z'"):
        Run(epath.Path("nowhere"), tiny.overfitted()).likelihood("Z" * 64)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("And the LORD said", ["and", "the", "lord", "said"]),
        ("Moses' rod; it's", ["moses", "rod", "it's"]),
        ("men’s, o'er 3 4th_x", ["men’s", "o'er", "th", "x"]),
        ("Ça va, été", ["ça", "va", "été"]),
        (" ...12 ", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert metrics.words(text) == expected


def test_valid_word_rate() -> None:
    """The first and the last word of each text may be cut, so they do not count."""
    known = {"the", "cat", "is"}
    assert metrics.valid_word_rate(["xx the cat is yy"], known) == 1.0
    assert metrics.valid_word_rate(["the the xxx the the"], known) == pytest.approx(2 / 3)
    assert metrics.valid_word_rate(["q the q", "q xxx yyy zzz q"], known) == pytest.approx(1 / 4)
    assert metrics.valid_word_rate(["the cat", "", "is"], known) == 0.0
    assert metrics.valid_word_rate([], known) == 0.0


def test_documents_of_rows() -> None:
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 2, 2, 0, 0, 0]], np.int32)
    assert [ids.tolist() for ids in metrics.documents({"tokens": tokens, "segments": segments})] == [[0, 1], [2, 3, 4], [6], [7, 8]]
    assert [ids.tolist() for ids in metrics.documents({"tokens": tokens})] == tokens.tolist()


def test_a_vocabulary_is_that_of_stretches_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are not cut where a row ends; of many rows, a few stretches are looked at."""
    model, text = Model(tiny.config(), tiny.TOKENIZER, {}, jnp.asarray(tiny.LOG_PRIOR), 0), " ".join(tiny.SENTENCES)
    rows = Windows(tiny.TOKENIZER.encode(text), tiny.LENGTH)
    whole = text[: len(rows) * tiny.LENGTH]
    assert metrics.vocabulary(model, rows) == set(metrics.words(whole))
    monkeypatch.setattr(metrics, "STRETCHES", 2)
    monkeypatch.setattr(metrics, "STRETCH", 2)
    ends = {word for part in (whole[: 2 * tiny.LENGTH], whole[-2 * tiny.LENGTH :]) for word in metrics.words(part)}
    assert metrics.vocabulary(model, rows) == ends


def test_token_entropy() -> None:
    assert metrics.token_entropy([[5, 5, 5]]) == 0.0
    assert metrics.token_entropy([[0, 1], [1, 0]]) == pytest.approx(math.log(2))
    assert metrics.token_entropy([[0], [1, 2, 3], []]) == pytest.approx(math.log(4))
    assert metrics.token_entropy([[0, 0, 0, 1]]) == pytest.approx(math.log(4) - 0.75 * math.log(3))


def test_sample_metrics() -> None:
    model = tiny.overfitted()
    train, valid = (tiny.TOKENIZER.encode(part) for part in (" ".join(tiny.SENTENCES), "the cat is blackwe sang all day "))
    splits = {name: Split(Windows(ids, tiny.LENGTH), len(ids), len(ids)) for name, ids in (("train", train), ("valid", valid))}
    corpus = Corpus(Crops(train, tiny.LENGTH), splits, np.bincount(train), tiny.TOKENIZER, "f")
    samples = [Sample(text, tiny.TOKENIZER.encode(text).tolist(), [False] * 16, 31, 0) for text in ("the cat is black", "we gnas all day  ")]
    found = metrics.sample_metrics(model, samples, corpus)
    assert found["num_samples"] == 2 and found["nfe"] == 31 and found["step"] == model.step
    assert found["valid_word_rate"] == pytest.approx(3 / 4)
    assert found["entropy"] == metrics.token_entropy([sample.tokens for sample in samples])
    assert found["entropy_heldout"] == metrics.token_entropy([valid.tolist()])
    assert 0 <= found["valid_word_rate_unigram"] < 0.5 < found["valid_word_rate_heldout"]


def test_the_unigram_probabilities_sum_to_one() -> None:
    p = metrics._probabilities(tiny.overfitted())
    assert p.dtype == np.float64 and p.sum() == pytest.approx(1, abs=1e-12)
