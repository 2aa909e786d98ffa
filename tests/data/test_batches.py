"""Batches: every row once an epoch, the same global batches for any number of processes, and the right next one after any stop."""

import functools
import json
import time

import grain
import numpy as np
import pytest
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data import padding, pipeline
from tests.data import folders

TOKENS = np.arange(1000, 1203, dtype=np.int32)  # a token names its own place
LENGTH, BATCH, SEED = 8, 12, 3
NUMBER = len(TOKENS) - LENGTH + 1  # 196 crops: no multiple of the batch
PADS = padding.Pads(2000, 0.25)


@functools.cache
def crops():
    return pipeline.Crops(TOKENS, LENGTH)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """(rows, what is inserted)."""
    folder = epath.Path(tmp_path_factory.mktemp("batches"))
    wrap, pack = (folders.open_rows(folders.make(folder / kind, LENGTH, kind, {"train": 61}, per_shard=17), kind) for kind in ("wrap", "pack"))
    return {"text": (crops(), None), "text with PAD": (crops(), PADS), "records": (wrap, None), "records of documents with PAD": (pack, PADS)}


def make(process_index=0, process_count=1, seed=SEED, batch=BATCH, rows=None, pads=None):
    return pipeline.batches(rows or crops(), batch, seed, process_index, process_count, pads)


def take(iterator, number):
    return [next(iterator)["tokens"] for _ in range(number)]


def joined(batches):
    """The parts of one global batch, process after process."""
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_batch_is_crops_of_the_text():
    for batch in take(make(), 40):
        assert batch.shape == (BATCH, LENGTH) and batch.dtype == np.int32
        assert np.array_equal(batch, batch[:, :1] + np.arange(LENGTH))
        assert batch.min() >= TOKENS[0] and batch.max() <= TOKENS[-1]


def test_every_crop_once_an_epoch_and_each_epoch_in_its_own_order():
    starts = np.concatenate(take(make(), 3 * NUMBER // BATCH))[:, 0] - TOKENS[0]
    epochs = starts[: 3 * NUMBER].reshape(3, NUMBER)
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUMBER))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    assert (np.diff(epochs[0]) == 1).mean() < 0.1


def test_the_order_is_that_of_grains_shuffle():
    """Which is what runs were trained with before batches were made in one call."""
    plain = grain.MapDataset.source(range(NUMBER)).shuffle(seed=SEED).repeat(None)
    starts = np.concatenate(take(make(), 40))[:, 0] - TOKENS[0]
    assert starts.tolist() == [plain[i] for i in range(len(starts))]


def test_shuffled_by_the_seed():
    assert np.array_equal(take(make(seed=1), 3), take(make(seed=1), 3))
    assert not np.array_equal(take(make(seed=1), 3), take(make(seed=2), 3))


@pytest.mark.parametrize(("kind", "stops"), [("text", 200), ("text with PAD", 40), ("records", 40), ("records of documents with PAD", 200)])
def test_the_next_batch_is_right_after_any_stop_and_with_any_number_of_processes(sources, kind, stops):
    """Stops at random places, each with the next of 1, 2, 4, 3 and 1 processes, which read ahead; the state passes through JSON."""
    rows, pads = sources[kind]
    reference = make(rows=rows, pads=pads)
    generator, state = np.random.default_rng(0), {"global_next_index": 0}
    for stop in range(stops):
        count = (1, 2, 4, 3, 1)[stop % 5]
        iterators = [make(i, count, rows=rows, pads=pads) for i in range(count)]
        for iterator in iterators:
            iterator.set_state(json.loads(json.dumps(state)))
        for _ in range(generator.integers(0, 4)):
            assert same(joined([next(iterator) for iterator in iterators]), next(reference)), f"stop {stop}"
        states = [iterator.get_state() for iterator in iterators]
        assert states == [reference.get_state()] * count
        state = states[0]
        for iterator in iterators:
            iterator.close()
    assert state["global_next_index"] > stops * BATCH  # several epochs
    reference.close()


@pytest.mark.parametrize("stop", [0, 1, 17, 40])
def test_an_iterator_can_be_set_back_and_asking_for_its_state_changes_nothing(stop):
    reference = take(make(), stop + 6)
    iterator = make()
    take(iterator, stop)
    time.sleep(0.02)  # it has read ahead by now
    state = iterator.get_state()
    assert state == {"global_next_index": stop * BATCH}
    assert np.array_equal(take(iterator, 6), reference[stop:])
    iterator.set_state(state)
    assert np.array_equal(take(iterator, 6), reference[stop:])


def test_one_crop_alone_repeats():
    iterator = make(batch=2, rows=pipeline.Crops(TOKENS[:LENGTH], LENGTH))
    assert np.array_equal(take(iterator, 3), np.broadcast_to(TOKENS[:LENGTH], (3, 2, LENGTH)))


def test_what_cannot_be_batched():
    with pytest.raises(UserError, match="batch_size = 12 must be a multiple of the number of processes, 5"):
        make(process_count=5)
    with pytest.raises(UserError, match="7 tokens has no crop of data.sequence_length = 8"):
        pipeline.Crops(TOKENS[:7], LENGTH)
    with pytest.raises(UserError, match="the data position 30 is no multiple of train.batch_size = 12"):
        make().set_state({"global_next_index": 30})
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match="train.seed must lie"):
            make(seed=seed)


def test_the_step_does_not_wait():
    iterator = pipeline.batches(pipeline.Crops(np.arange(100_000, dtype=np.int32), 64), 64, 0, 0, 1)
    take(iterator, 3)
    waits = []
    for _ in range(30):
        time.sleep(0.02)  # the step
        start = time.perf_counter()
        next(iterator)
        waits.append(time.perf_counter() - start)
    assert np.median(waits) < 2e-3  # typically 0.1 ms; the machine may be busy
    iterator.close()


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_pads_are_inserted_and_the_rest_moves_right(share):
    tokens = np.arange(4000 * 32, dtype=np.int32).reshape(4000, 32)
    found = padding.insert({"tokens": tokens}, padding.Pads(-1, share), 7, 0)["tokens"]
    assert found.dtype == np.int32
    pads = found == -1
    assert abs(pads.mean() - share) < 4 * (share * (1 - share) / tokens.size) ** 0.5
    assert np.abs(pads.mean(axis=0) - share).max() < 5 * (share * (1 - share) / 4000) ** 0.5  # anywhere, at either end too
    for row, kept in zip(tokens, found, strict=True):
        kept = kept[kept >= 0]
        assert np.array_equal(kept, row[: len(kept)])
    assert padding.insert({"tokens": tokens}, padding.Pads(-1, 0.0), 7, 0)["tokens"].tolist() == tokens.tolist()


def test_what_is_inserted_depends_on_seed_and_position_alone():
    tokens = np.zeros((60, 13), np.int32)
    whole = padding.insert({"tokens": tokens}, PADS, 7, 100)["tokens"]
    parts = [padding.insert({"tokens": tokens[i : i + 7]}, PADS, 7, 100 + i)["tokens"] for i in range(0, 60, 7)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert len(np.unique(whole, axis=0)) > 55  # another draw for each position
    assert not np.array_equal(whole, padding.insert({"tokens": tokens}, PADS, 8, 100)["tokens"])


def test_pads_belong_to_the_document_that_they_precede_and_none_to_padding():
    segments = np.tile(np.array([1, 1, 1, 2, 2, 3, 0, 0]), (500, 1))
    tokens = np.where(segments > 0, 10 * segments + np.arange(8), 0).astype(np.int32)
    found = padding.insert({"tokens": tokens, "segments": segments}, padding.Pads(99, 0.3), 0, 0)
    for row, numbers in zip(found["tokens"], found["segments"], strict=True):
        own = (row != 99) & (numbers > 0)
        assert (row[own] // 10 == numbers[own]).all() and (row[numbers == 0] == 0).all()
        places = np.arange(8)[own]
        following = [numbers[places[places > place]][:1] for place in np.flatnonzero(row == 99)]
        assert all(len(number) == 0 or number[0] == numbers[place] for number, place in zip(following, np.flatnonzero(row == 99), strict=True))
        assert (np.diff(numbers[numbers > 0]) >= 0).all()


def test_pads_are_counted():
    assert padding.with_pads(np.array([30, 60]), padding.Pads(2, 0.1)).tolist() == [30, 60, 10]
