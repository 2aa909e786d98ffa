import dataclasses
import json
import time

import grain
import numpy as np
import pytest

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import pipeline, sources, tokenizers
from tests import corpora

TOKENS = np.arange(1000, 1203, dtype=np.int32)  # a token names its own place
LENGTH, BATCH = 8, 12
CROPS = len(TOKENS) - LENGTH + 1  # 196: no multiple of the batch


def make(process_index=0, process_count=1, seed=3, batch=BATCH):
    return pipeline.batches(TOKENS, LENGTH, batch, seed, process_index, process_count)


def take(iterator, number):
    return [next(iterator)["tokens"] for _ in range(number)]


def global_batches(process_count, number, state=None):
    """The batches of all processes, put together, and the state that they agree on."""
    iterators = [make(i, process_count) for i in range(process_count)]
    for iterator in iterators:
        if state is not None:
            iterator.set_state(state)
    rows = [take(iterator, number) for iterator in iterators]
    states = [iterator.get_state() for iterator in iterators]
    for iterator in iterators:
        iterator.close()
    assert all(state == states[0] for state in states)
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)], states[0]


def test_a_batch_is_crops_of_the_text():
    for batch in take(make(), 40):
        assert batch.shape == (BATCH, LENGTH) and batch.dtype == np.int32
        assert np.array_equal(batch, batch[:, :1] + np.arange(LENGTH))
        assert batch.min() >= TOKENS[0] and batch.max() <= TOKENS[-1]


def test_every_crop_once_an_epoch_and_each_epoch_in_its_own_order():
    starts = np.concatenate(take(make(), 3 * CROPS // BATCH))[:, 0] - TOKENS[0]
    epochs = starts[: 3 * CROPS].reshape(3, CROPS)
    for epoch in epochs:
        assert sorted(epoch) == list(range(CROPS))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    assert (np.diff(epochs[0]) == 1).mean() < 0.1


def test_shuffled_by_the_seed():
    assert np.array_equal(take(make(seed=1), 3), take(make(seed=1), 3))
    assert not np.array_equal(take(make(seed=1), 3), take(make(seed=2), 3))


@pytest.mark.parametrize("stop", [0, 1, 2, 7, 16, 17, 40])
def test_resumes_exactly(stop):
    reference = take(make(), stop + 6)
    iterator = make()
    take(iterator, stop)
    time.sleep(0.05)  # it has read ahead by now
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"global_next_index": stop * BATCH}
    assert np.array_equal(take(iterator, 6), reference[stop:])  # asking for the state changes nothing
    iterator.set_state(state)
    assert np.array_equal(take(iterator, 6), reference[stop:])
    fresh = make()
    fresh.set_state(state)
    assert np.array_equal(take(fresh, 6), reference[stop:])
    assert fresh.get_state() == {"global_next_index": (stop + 6) * BATCH}


@pytest.mark.parametrize("processes", [(1, 2, 1), (2, 1, 2), (4, 3, 1), (1, 12, 6)])
def test_the_number_of_processes_may_change(processes):
    reference, end = global_batches(1, 27)
    got, state = [], None
    for process_count in processes:
        rows, state = global_batches(process_count, 9, state)
        got += rows
    assert np.array_equal(got, reference)  # the same rows in the same order
    assert state == end


def test_grain_finds_no_fault_with_the_checkpoint():
    grain.experimental.assert_equal_output_after_checkpoint(
        grain.MapDataset.source(pipeline._Crops(TOKENS, LENGTH)).shuffle(seed=3).batch(BATCH).to_iter_dataset()
    )


def test_one_crop_alone_repeats():
    iterator = pipeline.batches(TOKENS[:LENGTH], LENGTH, 2, 0, 0, 1)
    assert np.array_equal(take(iterator, 3), np.broadcast_to(TOKENS[:LENGTH], (3, 2, LENGTH)))


def test_what_cannot_be_batched():
    with pytest.raises(UserError, match="batch_size = 12 must be a multiple of the number of processes, 5"):
        make(process_count=5)
    with pytest.raises(UserError, match="7 tokens has no crop of data.sequence_length = 8"):
        pipeline.batches(TOKENS[:7], LENGTH, 2, 0, 0, 1)
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match="train.seed must lie"):
            make(seed=seed)


def test_the_step_does_not_wait(kjv_corpus):
    iterator = pipeline.batches(kjv_corpus.train, 64, 64, 0, 0, 1)
    take(iterator, 3)
    waits = []
    for _ in range(30):
        time.sleep(0.02)  # the step
        start = time.perf_counter()
        next(iterator)
        waits.append(time.perf_counter() - start)
    assert np.median(waits) < 2e-3  # typically 0.1 ms; the machine may be busy
    iterator.close()


def test_windows():
    windows = pipeline.windows(TOKENS, 20)
    assert windows.shape == (10, 20) and windows.dtype == np.int32
    assert np.array_equal(windows.ravel(), TOKENS[:200])
    assert pipeline.windows(TOKENS, 203).shape == (1, 203)
    assert pipeline.windows(TOKENS, 204).shape == (0, 204)


def test_unigram_log_probabilities():
    logs = pipeline.unigram_log_probabilities(np.array([0, 0, 2], np.int32), 4)
    assert logs.dtype == np.float32 and logs.shape == (4,)
    np.testing.assert_allclose(np.exp(logs), np.array([3, 1, 2, 1]) / 7, rtol=1e-6)


def test_the_unigram_entropy_of_the_king_james(kjv_corpus):
    logs = pipeline.unigram_log_probabilities(kjv_corpus.train, 512).astype(np.float64)
    assert abs(np.exp(logs).sum() - 1) < 1e-5
    assert 5.1 < -(np.exp(logs) * logs).sum() < 5.3


def test_load_corpus(kjv, kjv_corpus):
    train, valid = corpora.split(kjv, 0.05)
    assert kjv_corpus.train_characters == len(train) and kjv_corpus.valid_characters == len(valid)
    assert kjv_corpus.fingerprint == sources.fingerprint(kjv)
    assert kjv_corpus.train.dtype == kjv_corpus.valid.dtype == np.int32
    assert np.array_equal(kjv_corpus.valid, kjv_corpus.tokenizer.encode(valid))


@pytest.fixture
def config(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"line {i} of the text\n" for i in range(200)))
    return DataConfig(source=str(tmp_path / "a.txt"), tokenizer="sentencepiece", vocab_size=24, sequence_length=16)


def test_load_corpus_twice_is_the_same_and_takes_a_tokenizer(config, tmp_path):
    first, second = pipeline.load_corpus(config), pipeline.load_corpus(config)
    first.tokenizer.save(tmp_path / "saved")
    third = pipeline.load_corpus(config, tokenizers.load(tmp_path / "saved"))
    for other in (second, third):
        assert np.array_equal(first.train, other.train) and np.array_equal(first.valid, other.valid)
        assert first.tokenizer.fingerprint == other.tokenizer.fingerprint and first.fingerprint == other.fingerprint


@pytest.mark.parametrize("tokenizer", ["byte", "char", "sentencepiece"])
@pytest.mark.parametrize("alphabet", ["text", "27"])
def test_load_corpus_with_every_tokenizer(config, tokenizer, alphabet):
    config = dataclasses.replace(config, tokenizer=tokenizer, alphabet=alphabet, vocab_size=len(set(sources.load_text(config.source, alphabet))))
    corpus = pipeline.load_corpus(config)
    whole = corpus.tokenizer.decode(corpus.train) + corpus.tokenizer.decode(corpus.valid)
    assert whole == sources.load_text(config.source, alphabet)
    assert len(whole) == corpus.train_characters + corpus.valid_characters


def test_parts_too_short_for_a_sequence(config):
    def refused(**changes):
        with pytest.raises(UserError) as error:
            pipeline.load_corpus(dataclasses.replace(config, tokenizer="char", **changes))
        return str(error.value)

    assert "the held-out part" in refused(sequence_length=1000) and "sequence_length = 1000" in refused(sequence_length=1000)
    assert "the training part" in refused(sequence_length=1000, valid_fraction=0.9)
    assert "the held-out part" in refused(valid_fraction=0.0)
    assert "the training part" in refused(valid_fraction=1.0)
    tokens = len(pipeline.load_corpus(dataclasses.replace(config, tokenizer="char")).valid)
    assert f"has {tokens} bytes" in refused(sequence_length=tokens + 1)
    with pytest.raises(UserError, match="lacks the characters"):
        pipeline.load_corpus(config, tokenizers.CharTokenizer("abc"))
