"""A corpus from a text in memory: what it reads, what its rows are, what it counts, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import padding, pipeline, sources, tokenizers
from tests import corpora

TOKENS = np.arange(1000, 1203, dtype=np.int32)  # a token names its own place


def all_rows(rows):
    return rows.read(np.arange(len(rows)))["tokens"]


def test_crops_are_at_every_start():
    crops = pipeline.Crops(TOKENS, 8)
    assert len(crops) == 196
    assert np.array_equal(crops.read(np.array([3, 195, 3]))["tokens"], np.array([[3], [195], [3]]) + np.arange(1000, 1008))
    assert all_rows(crops).dtype == np.int32


def test_windows_do_not_overlap():
    windows = pipeline.Windows(TOKENS, 20)
    assert all_rows(windows).shape == (10, 20) and all_rows(windows).dtype == np.int32
    assert np.array_equal(all_rows(windows).ravel(), TOKENS[:200])
    assert np.array_equal(windows.read(np.array([9, 0]))["tokens"][:, 0], [1180, 1000])
    assert len(pipeline.Windows(TOKENS, 203)) == 1 and len(pipeline.Windows(TOKENS, 204)) == 0


@pytest.mark.parametrize(("number", "starts"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))])
def test_spread_evenly(number, starts):
    spread = pipeline.Spread(pipeline.Windows(TOKENS, 20), number)
    assert len(spread) == len(starts)
    assert ((all_rows(spread)[:, 0] - 1000) // 20).tolist() == starts


def test_unigram_log_probabilities():
    logs = pipeline.unigram_log_probabilities(np.array([2, 0, 1, 0]))
    assert logs.dtype == np.float32 and logs.shape == (4,)
    np.testing.assert_allclose(np.exp(logs), np.array([3, 1, 2, 1]) / 7, rtol=1e-6)


def test_the_unigram_entropy_of_the_king_james(kjv_corpus):
    logs = pipeline.unigram_log_probabilities(kjv_corpus.token_counts).astype(np.float64)
    assert abs(np.exp(logs).sum() - 1) < 1e-5
    assert 5.1 < -(np.exp(logs) * logs).sum() < 5.3


def test_load_corpus(kjv, kjv_corpus):
    texts, tokenizer = dict(zip(("train", "valid"), corpora.split(kjv, 0.05), strict=True)), kjv_corpus.tokenizer
    assert list(kjv_corpus.splits) == ["train", "valid"] and kjv_corpus.pads is None
    for name, split in kjv_corpus.splits.items():
        tokens = tokenizer.encode(texts[name])
        assert (split.num_characters, split.num_tokens, len(split.rows)) == (len(texts[name]), len(tokens), len(tokens) // 64)
        assert np.array_equal(all_rows(split.rows).ravel(), tokens[: len(tokens) // 64 * 64])
    tokens = tokenizer.encode(texts["train"])
    assert len(kjv_corpus.train) == len(tokens) - 63
    assert np.array_equal(kjv_corpus.train.read(np.array([7]))["tokens"][0], tokens[7:71])
    assert np.array_equal(kjv_corpus.token_counts, np.bincount(tokens, minlength=512))


@pytest.fixture
def config(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the text\n" for i in range(200)))
    return DataConfig(source=str(tmp_path / "a.txt"), tokenizer="sentencepiece", vocab_size=24, sequence_length=16)


def same(one, other):
    rows = [(a.rows, b.rows) for a, b in zip(one.splits.values(), other.splits.values(), strict=True)] + [(one.train, other.train)]
    return all(np.array_equal(all_rows(a), all_rows(b)) for a, b in rows) and (one.tokenizer.fingerprint, one.fingerprint) == (
        other.tokenizer.fingerprint, other.fingerprint,
    )  # fmt: skip


def test_load_corpus_twice_is_the_same_and_takes_a_tokenizer(config, tmp_path):
    first = pipeline.load_corpus(config)
    first.tokenizer.save(tmp_path / "saved")
    assert same(first, pipeline.load_corpus(config))
    assert same(first, pipeline.load_corpus(config, tokenizers.load(tmp_path / "saved")))
    assert same(first, pipeline.load_corpus(dataclasses.replace(config, tokenizer_from=str(tmp_path / "saved"))))
    with pytest.raises(UserError, match="there is no tokenizer in "):
        pipeline.load_corpus(dataclasses.replace(config, tokenizer_from=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("tokenizer", ["byte", "char", "sentencepiece"])
@pytest.mark.parametrize("alphabet", ["text", "27"])
def test_load_corpus_with_every_tokenizer(config, tokenizer, alphabet):
    config = dataclasses.replace(config, tokenizer=tokenizer, alphabet=alphabet, vocab_size=len(set(corpora.load_text(config.source, alphabet))))
    corpus, texts = pipeline.load_corpus(config), sources.load_texts(config)
    for name, split in corpus.splits.items():
        decoded = corpus.tokenizer.decode(all_rows(split.rows).ravel())
        assert texts[name].startswith(decoded) and split.num_characters == len(texts[name])


def test_a_line_that_moves_between_splits_makes_another_corpus(tmp_path):
    """Though all text together is the same."""
    config = DataConfig(source=str(tmp_path / "{split}.txt"), tokenizer="byte", sequence_length=16)
    found = set()
    for first in ("one line of the text\n" * 9, "one line of the text\n" * 8):
        (tmp_path / "train.txt").write_text(first)
        (tmp_path / "valid.txt").write_text(("one line of the text\n" * 20)[len(first) :])
        found.add(pipeline.load_corpus(config).fingerprint)
    assert len(found) == 2


def test_the_test_split_is_there_if_any_text_is_held_out_for_it(config):
    assert list(pipeline.load_corpus(dataclasses.replace(config, test_fraction=0.1)).splits) == ["train", "valid", "test"]


def test_with_pad_insertion_there_is_a_token_more(config, tmp_path):
    plain, padded = pipeline.load_corpus(config), pipeline.load_corpus(dataclasses.replace(config, pad_insertion=0.2))
    assert padded.pads == padding.Pads(24, 0.2) and padded.tokenizer.pad_id == 24
    assert padded.fingerprint == plain.fingerprint and padded.tokenizer.fingerprint != plain.tokenizer.fingerprint
    assert np.exp(pipeline.unigram_log_probabilities(padded.token_counts))[24] == pytest.approx(0.2, rel=0.01)
    assert all((all_rows(split.rows) < 24).all() for split in padded.splits.values())  # what is scored has none
    padded.tokenizer.save(tmp_path / "saved")  # by a run, which goes on with it
    again = pipeline.load_corpus(dataclasses.replace(config, pad_insertion=0.2), tokenizers.load(tmp_path / "saved"))
    assert same(padded, again) and np.array_equal(again.token_counts, padded.token_counts)
    other = pipeline.load_corpus(dataclasses.replace(config, pad_insertion=0.0, tokenizer_from=str(tmp_path / "saved")))
    assert same(plain, other)


def test_parts_too_short_for_a_sequence(config):
    def refused(**changes):
        with pytest.raises(UserError) as error:
            pipeline.load_corpus(dataclasses.replace(config, tokenizer="char", **changes))
        return str(error.value)

    assert "the held-out part" in refused(sequence_length=1000) and "sequence_length = 1000" in refused(sequence_length=1000)
    assert "the training part" in refused(sequence_length=1000, valid_fraction=0.9)
    assert "the held-out part" in refused(valid_fraction=0.0)
    assert "the training part" in refused(valid_fraction=1.0)
    tokens = pipeline.load_corpus(dataclasses.replace(config, tokenizer="char")).splits["valid"].num_tokens
    assert f"has {tokens} bytes" in refused(sequence_length=tokens + 1)
    assert "data.packing = 'pack' is for prepared data" in refused(packing="pack")
    with pytest.raises(UserError, match="lacks the characters"):
        pipeline.load_corpus(config, tokenizers.CharTokenizer("abc"))
