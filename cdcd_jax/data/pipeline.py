"""From a config to tokens, and from tokens to batches of random crops, on grain: shuffled, endless, resumable by any number of processes."""

import dataclasses
from typing import Any

import grain
import numpy as np
from jaxtyping import Float32, Int32

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import sources, tokenizers


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A tokenised text. `fingerprint` is that of the whole text; `train_characters` are the characters that `train` decodes to."""

    train: Int32[np.ndarray, "n"]
    valid: Int32[np.ndarray, "m"]
    train_characters: int
    valid_characters: int
    tokenizer: tokenizers.Tokenizer
    fingerprint: str


def load_corpus(config: DataConfig, tokenizer: tokenizers.Tokenizer | None = None) -> Corpus:
    """Reads, splits and tokenises the text; the tokenizer is trained on the training part unless one is given.

    Raises UserError as the source and the tokenizer do, and when the training part is shorter than one sequence or the
    held-out part shorter than two, of which no standard error is.
    """
    texts = sources.load_texts(config)
    train, valid, text = texts["train"], texts["valid"], "".join(texts.values())
    for part, what in ((train, "training"), (valid, "held-out")):
        if not part:
            raise UserError(f"the {what} part of {config.source!r} is empty: data.valid_fraction = {config.valid_fraction} leaves it no text.")
        if len(part.encode()) < config.sequence_length:  # no tokenizer makes more tokens than bytes of it
            raise UserError(
                f"the {what} part of {config.source!r} has {len(part.encode())} bytes, fewer than one sequence of data.sequence_length = "
                f"{config.sequence_length} tokens; give more text or a shorter sequence."
            )
    if tokenizer is None:
        tokenizer = tokenizers.train(config, train, text)
    tokens = {"training": tokenizer.encode(train), "held-out": tokenizer.encode(valid)}
    for what, least in (("training", "one sequence"), ("held-out", "two sequences")):
        ids = tokens[what]
        if len(ids) < config.sequence_length * (1 if what == "training" else 2):
            raise UserError(
                f"the {what} part of {config.source!r} has {len(ids)} tokens, fewer than {least} of data.sequence_length = "
                f"{config.sequence_length}; give more text or a shorter sequence, or change data.valid_fraction = {config.valid_fraction}."
            )
    return Corpus(tokens["training"], tokens["held-out"], len(train), len(valid), tokenizer, sources.fingerprint(text))


def unigram_log_probabilities(tokens: Int32[np.ndarray, "n"], vocab_size: int) -> Float32[np.ndarray, "V"]:
    """Natural logarithms of the ids' frequencies, each id counted once more than it occurs, so that all are finite."""
    counts = np.bincount(tokens, minlength=vocab_size) + 1.0
    return np.log(counts / counts.sum()).astype(np.float32)


def windows(tokens: Int32[np.ndarray, "n"], length: int) -> Int32[np.ndarray, "w L"]:
    """Consecutive windows that do not overlap, for evaluation; the remainder is dropped."""
    number = len(tokens) // length
    return tokens[: number * length].reshape(number, length)


class _Crops:
    """A random-access source: record i is tokens[i : i + L], for every i that fits."""

    def __init__(self, tokens: Int32[np.ndarray, "n"], length: int):
        self._tokens, self._length = tokens, length

    def __len__(self) -> int:
        return len(self._tokens) - self._length + 1

    def __getitem__(self, index: int) -> dict[str, Int32[np.ndarray, "L"]]:
        return {"tokens": self._tokens[index : index + self._length]}


class _InOrder(grain.MapDataset):
    """Reorders records within each global batch, so that process p of n, which is dealt records p, p + n, ..., gets rows p b, p b + 1, ...

    The processes' rows, one process after the other, are then the same global batch, in the same order, for any number of processes.
    """

    def __init__(self, parent: grain.MapDataset, global_batch: int, process_count: int):
        super().__init__(parent)
        self._global, self._count = global_batch, process_count

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, within = divmod(index, self._global)
        row, process = divmod(within, self._count)
        return self._parent[batch * self._global + process * (self._global // self._count) + row]


def batches(
    tokens: Int32[np.ndarray, "n"], sequence_length: int, batch_size: int, seed: int, process_index: int, process_count: int
) -> grain.DatasetIterator:
    """An endless iterator over {"tokens": int32 [b, L]}, this process's b = batch_size / process_count rows of the global batch.

    An epoch is every crop of L tokens, at every start, once, in an order of its own. `get_state()` is {"global_next_index": k}, the number of
    crops that all processes together have yielded: the same on all of them, exact while crops are read ahead, and good for another number of
    processes with the same `batch_size`. `close()` ends the thread that reads ahead.
    Raises UserError when the batch does not divide, the text is shorter than a crop or the seed is no unsigned 32-bit number.
    """
    if batch_size % process_count:
        raise UserError(f"train.batch_size = {batch_size} must be a multiple of the number of processes, {process_count}.")
    if len(tokens) < sequence_length:
        raise UserError(f"a text of {len(tokens)} tokens has no crop of data.sequence_length = {sequence_length}.")
    if not 0 <= seed < 2**32:
        raise UserError(f"train.seed must lie in [0, 2^32), not {seed}.")
    crops = grain.MapDataset.source(_Crops(tokens, sequence_length)).shuffle(seed=seed).repeat(None)
    return iter(
        grain.experimental.ElasticIterator(
            _InOrder(crops, batch_size, process_count),
            batch_size,
            grain.sharding.ShardOptions(process_index, process_count),
            read_options=grain.ReadOptions(num_threads=1, prefetch_buffer_size=2),  # the text is in memory: more threads only contend
        )
    )
