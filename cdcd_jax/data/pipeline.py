"""From a corpus to batches, on grain: rows of tokens, shuffled anew in every epoch, endless, resumable by any number of processes.

A corpus, whether it is a text in memory or a prepared folder, is seen as `Rows`: so many, each to be read by its number.
"""

import dataclasses
import hashlib
import json
import sys
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Float32, Int, Int32

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import padding, prepared, sources, tokenizers

# "tokens" int32 [n, L]; and where rows hold several documents, or padding, "segments" int32 [n, L]: 1, 2, ... in the row, 0 for padding.
Batch = dict[str, np.ndarray]
# One thread keeps up, since a batch is made in one vectorised call. The thread begins the next batch just when the loop has taken one, and what the
# loop may wait for is Python's lock: more threads, or batches made row by row, would only hold it for longer. Two batches ahead outlast a slow read.
READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)


@runtime_checkable
class Rows(Protocol):
    """Rows of L tokens, numbered from 0."""

    def __len__(self) -> int: ...
    def read(self, indices: Int[np.ndarray, "n"]) -> Batch: ...


class Crops:
    """A text's crops of L tokens, at every start: row i is tokens[i : i + L]."""

    def __init__(self, tokens: Int32[np.ndarray, "n"], length: int):
        if len(tokens) < length:
            raise UserError(f"a text of {len(tokens)} tokens has no crop of data.sequence_length = {length}.")
        self._crops = np.lib.stride_tricks.sliding_window_view(tokens, length)

    def __len__(self) -> int:
        return len(self._crops)

    def read(self, indices: Int[np.ndarray, "n"]) -> Batch:
        return {"tokens": self._crops[indices]}


class Windows:
    """A text's consecutive windows of L tokens, which do not overlap; the remainder is dropped."""

    def __init__(self, tokens: Int32[np.ndarray, "n"], length: int):
        number = len(tokens) // length
        self._windows = tokens[: number * length].reshape(number, length)

    def __len__(self) -> int:
        return len(self._windows)

    def read(self, indices: Int[np.ndarray, "n"]) -> Batch:
        return {"tokens": self._windows[indices]}


class Spread:
    """So many of some rows, spread evenly over them; all of them, if there are no more."""

    def __init__(self, rows: Rows, number: int):
        self._rows, self._chosen = rows, np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int)

    def __len__(self) -> int:
        return len(self._chosen)

    def read(self, indices: Int[np.ndarray, "n"]) -> Batch:
        return self._rows.read(self._chosen[indices])


@dataclasses.dataclass(frozen=True)
class Split:
    """A split as rows that are to be scored: windows or records. The counts are of all of it."""

    rows: Rows
    num_tokens: int
    num_characters: int


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A tokenised corpus. `fingerprint` tells it, its splits and its rows from any other."""

    train: Rows  # what training draws from: every crop of a text, or the records
    splits: dict[str, Split]  # "train", "valid", perhaps "test"
    token_counts: Int[np.ndarray, "V"]  # in the train split; of PAD, as many as are inserted
    tokenizer: tokenizers.Tokenizer
    fingerprint: str
    pads: padding.Pads | None = None


def load_corpus(
    config: DataConfig, tokenizer: tokenizers.Tokenizer | None = None, share: tuple[int, int] | None = None, fingerprint: str = ""
) -> Corpus:
    """The config's corpus: a prepared folder, opened, or any other source, read and tokenised in memory.

    tokenizer: that of a run which goes on; without one it is the folder's, the one in data.tokenizer_from, or trained on the train split.
    fingerprint: of the corpus that such a run began with, if it is known; any other is refused, before it is tokenised, copied or hashed.
    share: (i, n) hashes the i-th of n parts of a folder's shards now, for one of n processes that train on it. Without it a shard is hashed when it
        is first read.
    Raises UserError as source, folder and tokenizer do, and when there is less than one sequence to train on, or less than two, of which no standard
    error is, are held out.
    """
    if tokenizer is not None:  # which is all that matters then; where it came from may be gone
        config = dataclasses.replace(config, tokenizer_from="")
    in_folder = prepared.is_folder(config.source)
    corpus = _prepared(config, share, fingerprint) if in_folder else _in_memory(config, tokenizer, fingerprint)
    if config.pad_insertion:
        pads = padding.Pads(corpus.tokenizer.vocab_size, config.pad_insertion)
        counts = padding.with_pads(corpus.token_counts, pads)
        corpus = dataclasses.replace(corpus, tokenizer=tokenizers.WithPad(corpus.tokenizer), token_counts=counts, pads=pads)
    if tokenizer is not None and (tokenizer.pad_id is None) != (config.pad_insertion == 0):
        began = "without" if tokenizer.pad_id is None else "with"
        raise UserError(f"this run began {began} PAD in its vocabulary, so data.pad_insertion = {config.pad_insertion} does not fit it.")
    if tokenizer is not None and tokenizer.fingerprint != corpus.tokenizer.fingerprint:
        raise UserError(f"data.source {config.source!r} was prepared with another tokenizer than this run has: name the folder that it began with.")
    return corpus


def _refuse_another(config: DataConfig, found: str, wanted: str) -> None:
    if wanted not in ("", found):
        raise UserError(
            f"data.source {config.source!r} does not hold the data that this run was trained on (compared by content; a prepared folder does not "
            "replace its text): give the place where those data are now."
        )


def _prepared(config: DataConfig, share: tuple[int, int] | None, fingerprint: str) -> Corpus:
    folder = prepared.open_folder(config)
    _refuse_another(config, folder.manifest.data_fingerprint, fingerprint)
    splits = {name: Split(folder.rows(name), about.num_tokens, about.num_characters) for name, about in folder.manifest.splits.items()}
    for name, what, least in (("train", "training", 1), ("valid", "held-out", 2)):
        number = len(splits[name].rows) if name in splits else 0
        if number < least:
            raise UserError(
                f"the {what} part of {config.source!r} has {number} records, fewer than {least}; prepare more text, or hold out another share of it."
            )
    if share is not None:
        folder.verify(*share)
    return Corpus(splits["train"].rows, splits, folder.token_counts, folder.tokenizer, folder.manifest.data_fingerprint)


def _in_memory(config: DataConfig, tokenizer: tokenizers.Tokenizer | None, fingerprint: str) -> Corpus:
    if config.packing != "wrap":
        raise UserError(
            f"data.packing = {config.packing!r} is for prepared data, and data.source {config.source!r} is a text: prepare it first "
            'with python -m cdcd_jax.prepare, or give data.packing = "wrap".'
        )
    texts = sources.load_texts(config)
    # Of each split by itself: a line that moves from one to the other makes another corpus.
    digest = hashlib.sha256(json.dumps({name: sources.fingerprint(text) for name, text in texts.items()}).encode()).hexdigest()
    _refuse_another(config, digest, fingerprint)
    for name, what in (("train", "training"), ("valid", "held-out")):
        if not texts[name]:
            raise UserError(f"the {what} part of {config.source!r} is empty: data.valid_fraction = {config.valid_fraction} leaves it no text.")
        if len(texts[name].encode()) < config.sequence_length:  # no tokenizer makes more tokens than bytes of it
            raise UserError(
                f"the {what} part of {config.source!r} has {len(texts[name].encode())} bytes, fewer than one sequence of data.sequence_length = "
                f"{config.sequence_length} tokens; give more text or a shorter sequence."
            )
    tokenizer = tokenizers.without_pad(tokenizer or _tokenizer(config, texts))
    tokens = {name: tokenizer.encode(text) for name, text in texts.items()}
    for name, what, least in (("train", "training", "one sequence"), ("valid", "held-out", "two sequences")):
        if len(tokens[name]) < config.sequence_length * (1 if name == "train" else 2):
            raise UserError(
                f"the {what} part of {config.source!r} has {len(tokens[name])} tokens, fewer than {least} of data.sequence_length = "
                f"{config.sequence_length}; give more text or a shorter sequence, or change data.valid_fraction = {config.valid_fraction}."
            )
    splits = {name: Split(Windows(ids, config.sequence_length), len(ids), len(texts[name])) for name, ids in tokens.items()}
    counts = np.bincount(tokens["train"], minlength=tokenizer.vocab_size)
    return Corpus(Crops(tokens["train"], config.sequence_length), splits, counts, tokenizer, digest)


def _tokenizer(config: DataConfig, texts: dict[str, str]) -> tokenizers.Tokenizer:
    if config.tokenizer_from:
        return tokenizers.named(config)
    return tokenizers.train(config, texts["train"], "".join(texts.values()))


def unigram_log_probabilities(counts: Int[np.ndarray, "V"]) -> Float32[np.ndarray, "V"]:
    """Natural logarithms of the ids' frequencies, each id counted once more than it occurs, so that all are finite."""
    return np.log((counts + 1.0) / (counts + 1.0).sum()).astype(np.float32)


class _GlobalBatches(grain.MapDataset):
    """Batch k of all processes together is rows k B, k B + 1, ... of the shuffled epochs; of these this process's part, in one vectorised call."""

    def __init__(self, rows: Rows, batch_size: int, seed: int, part: int, parts: int, pads: padding.Pads | None):
        super().__init__()
        self._rows, self._batch_size, self._seed, self._part, self._parts, self._pads = rows, batch_size, seed, part, parts, pads

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        size, number = self._batch_size // self._parts, len(self._rows)
        first = index * self._batch_size + self._part * size
        # An epoch is a permutation of all rows, another one each time.
        epochs = (divmod(position, number) for position in range(first, first + size))
        chosen = [grain.experimental.index_shuffle(row, number - 1, (self._seed + epoch) % 2**32, 4) for epoch, row in epochs]
        batch = self._rows.read(np.array(chosen))
        return batch if self._pads is None else padding.insert(batch, self._pads, self._seed, first)


class Batches:
    """An endless iterator over batches, which reads ahead; `close` ends the thread that does."""

    def __init__(self, dataset: _GlobalBatches, batch_size: int):
        self._iterator, self._batch_size = iter(dataset.to_iter_dataset(READ_AHEAD)), batch_size

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, int]:
        """{"global_next_index": the number of rows that all processes together have yielded}: exact while batches are read ahead."""
        return {"global_next_index": grain.experimental.get_next_index(self._iterator) * self._batch_size}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on from a state of the same batch size, of any number of processes. Raises UserError for one of another."""
        index, rest = divmod(state["global_next_index"], self._batch_size)
        if rest:
            raise UserError(f"the data position {state['global_next_index']} is no multiple of train.batch_size = {self._batch_size}.")
        grain.experimental.set_next_index(self._iterator, index)

    def close(self) -> None:
        self._iterator.close()


def batches(rows: Rows, batch_size: int, seed: int, process_index: int, process_count: int, pads: padding.Pads | None = None) -> Batches:
    """Endless batches of b = batch_size / process_count rows, this process's of the global batch, in an order that the seed decides.

    Every row comes once an epoch. The processes' rows, one process after the other, are the same global batch for any number of processes.
    Raises UserError when the batch does not divide or the seed is no unsigned 32-bit number.
    """
    if batch_size % process_count:
        raise UserError(f"train.batch_size = {batch_size} must be a multiple of the number of processes, {process_count}.")
    if not 0 <= seed < 2**32:
        raise UserError(f"train.seed must lie in [0, 2^32), not {seed}.")
    return Batches(_GlobalBatches(rows, batch_size, seed, process_index, process_count, pads), batch_size)
