"""A part's tokens on their way into a file: a stream of them, or rows in which documents are whole."""

import dataclasses
import functools
import hashlib
import re
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Int32, Int64

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import packing, records, sources, tokenizers

BATCH = 1 << 20  # characters that are tokenised together, and whose documents are packed together
WHITE = re.compile(r"[ \n]")


@dataclasses.dataclass(frozen=True)
class Job:
    """What every part and shard of a preparation has in common. key: says in all notes to which preparation they belong."""

    config: DataConfig
    folder: str
    key: str

    @property
    def unfinished(self) -> epath.Path:
        return epath.Path(self.folder) / records.UNFINISHED

    def tokenizer(self) -> tokenizers.Tokenizer:
        """The preparation's tokenizer, read once in a process."""
        return _tokenizer(str(self.unfinished / records.TOKENIZER), self.key)


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: str, key: str) -> tokenizers.Tokenizer:
    return tokenizers.load(folder)


def _can_encode(tokenizer: tokenizers.Tokenizer, text: str) -> bool:
    try:
        tokenizer.encode(text)
    except UserError:
        return False
    return True


def next_word(text: str, place: int) -> int:
    """The first word's beginning from some place on."""
    if not 0 < place < len(text):
        return max(0, min(place, len(text)))
    space = WHITE.search(text, place)
    return space.start() if space else len(text)


class Stream(NamedTuple):
    """A file of tokens: those of a part, for one split. Where documents are joined, it begins with the first words of the first document twice.

    bare: bytes of these words as they are if no document comes before; joined: the bytes that follow, of the same words if one does. alone: none may,
    since the tokenizer lacks what would join them. tokens: in rows of whole documents. characters: with what joins each document to the one before.
    empty: documents left out, besides those that were found when the source was listed.
    """

    bytes: int
    sha256: str
    bare: int
    joined: int
    alone: bool
    tokens: int
    characters: int
    documents: int
    empty: int


class Writer:
    """Takes the pieces of a split, and writes tokens, or rows of them, a batch at a time."""

    def __init__(self, job: Job, file: Any):
        self._config, self._file, self._tokenizer = job.config, file, job.tokenizer()
        self._dtype = np.dtype(records.dtype_for(self._tokenizer.vocab_size)).newbyteorder("<")
        self._join = sources.joiner(job.config) if job.config.packing == "wrap" else ""
        self._texts: list[str] = []
        self._begins: list[bool] = []
        self._held = np.zeros(0, np.int32)  # the end of a document that may go on
        self._size = self._bytes = self._bare = self._joined = self._tokens = self._characters = self._documents = self._empty = 0
        self._alone = self._headed = False  # whether no document may come before; whether the first words are to be written
        self._digest = hashlib.sha256()

    def add(self, texts: list[str], begins: bool) -> None:
        """More pieces; whether a document begins with each of them, or none does."""
        if "" in texts:
            self._empty += texts.count("")
            texts = [text for text in texts if text]
        if not texts:
            return
        first = not self._characters
        self._documents += len(texts) if begins else 0
        if not self._join:
            self._begins += [begins] * len(texts)
        elif begins:
            texts = [*(self._begun(texts[0]) if first else [self._join + texts[0]]), *(self._join + text for text in texts[1:])]
        size = sum(map(len, texts))
        self._characters += size
        self._size += size
        self._texts += texts
        if self._size >= BATCH:
            self._flush()

    def finish(self) -> Stream:
        """Writes what is left."""
        self._flush()
        if self._config.packing != "wrap":
            self._write_rows(self._held, np.array([len(self._held)]))
        return Stream(
            self._bytes, self._digest.hexdigest(), self._bare, self._joined, self._alone, self._tokens, self._characters, self._documents, self._empty
        )

    def _begun(self, text: str) -> list[str]:
        """The text of the first document: its first words, the same if a document comes before, and the rest; or as it is, if none may."""
        self._alone = not _can_encode(self._tokenizer, self._join)  # type: ignore[arg-type] # hashed as the object that it is
        if self._alone:
            return [text]
        head = text[: next_word(text, 1)]
        self._characters -= len(head)  # it comes twice
        self._headed = True
        return [head, self._join + head, text[len(head) :]]

    def _flush(self) -> None:
        ids, lengths = self._tokenizer.encode_many(self._texts)
        if self._join:
            if self._headed:
                self._bare, self._joined = (int(length) * self._dtype.itemsize for length in lengths[:2])
                self._headed = False
            self._write_bytes(ids.astype(self._dtype).tobytes())
        elif len(ids):
            self._tokens += len(ids)
            ends = np.cumsum(lengths)
            before = np.r_[0, ends[:-1]][np.array(self._begins, bool)] + len(self._held)  # of each document, the tokens before it
            ids = np.concatenate([self._held, ids])
            documents = np.diff(before, prepend=0, append=len(ids))
            documents[-1] -= documents[-1] % self._config.sequence_length  # it may go on, but its full rows need not wait
            self._held = ids[int(documents.sum()) :]
            self._write_rows(ids[: int(documents.sum())], documents)
        self._texts, self._begins, self._size = [], [], 0

    def _write_rows(self, ids: Int32[np.ndarray, "n"], documents: Int64[np.ndarray, "d"]) -> None:
        length = self._config.sequence_length
        lengths = packing.stretches(documents, length)
        places = packing.one_a_row(lengths) if self._config.packing == "pad" else packing.best_fit(lengths, length)
        rows, segments = packing.fill(ids, lengths, places, length)
        self._write_bytes(b"".join(records.to_bytes(rows, segments, self._dtype.name)))

    def _write_bytes(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)
