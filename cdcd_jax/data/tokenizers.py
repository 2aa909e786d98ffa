"""Text to token ids and back, without loss: bytes, characters or SentencePiece pieces, one protocol.

Every id stands for some bytes, so any sequence of ids decodes. There is no id for unknown text: `encode` refuses what it cannot say.
"""

import collections
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import sentencepiece
from etils import epath
from jaxtyping import Int, Int32, Int64

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import files, unigram, words


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer has. pad_id is None where the tokenizer has no PAD."""

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def characters(self) -> Int[np.ndarray, "V"]: ...
    def encode(self, text: str) -> Int32[np.ndarray, "n"]: ...
    def encode_many(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "n"], Int64[np.ndarray, "k"]]: ...
    def decode(self, ids: Sequence[int] | Int[np.ndarray, "n"]) -> str: ...
    def piece(self, id: int | np.integer) -> str: ...
    def save(self, directory: epath.PathLike) -> None: ...


class _Pieces:
    """What the tokenizers share: an id is a string of bytes, and the tokenizer is what `content` and `model` say."""

    pad_id = None

    def __init__(self, name: str, pieces: list[bytes], content: dict[str, Any], model: bytes = b""):
        self.name, self.vocab_size = name, len(pieces)
        self.fingerprint = hashlib.sha256(json.dumps([name, content], sort_keys=True).encode() + model).hexdigest()
        # How many characters begin in each token: what a number of tokens stands for, whether or not one ends within a character.
        self.characters = np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces])
        self._pieces, self._content, self._model = pieces, content, model

    def decode(self, ids: Sequence[int] | Int[np.ndarray, "n"]) -> str:
        """The text of the ids; bytes that form no character become U+FFFD. Raises UserError for an id outside the vocabulary."""
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"token id {i} lies outside the vocabulary of {self.vocab_size} tokens.")
        return b"".join([self._pieces[i] for i in ids]).decode("utf-8", "replace")

    def piece(self, id: int | np.integer) -> str:
        """The token's own text, white space as it is; bytes that are no character on their own as <0xE2>."""
        try:
            return self._pieces[id].decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in self._pieces[id])

    def save(self, directory: epath.PathLike) -> None:
        """Writes tokenizer.json (and spm.model) into the directory, which is made if missing."""
        directory = epath.Path(directory)
        if self._model:
            files.write_whole(directory / "spm.model", self._model)
        about = {"name": self.name, "vocab_size": self.vocab_size, "fingerprint": self.fingerprint, **self._content}
        files.write_whole(directory / "tokenizer.json", json.dumps(about, indent=2) + "\n")


class ByteTokenizer(_Pieces):
    """The 256 bytes of UTF-8."""

    def __init__(self) -> None:
        super().__init__("byte", [bytes([i]) for i in range(256)], {})

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)

    def encode_many(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "n"], Int64[np.ndarray, "k"]]:
        """The ids of all texts, one after the other, and how many each has."""
        encoded = _all_utf8(texts)
        return np.frombuffer(b"".join(encoded), np.uint8).astype(np.int32), np.fromiter(map(len, encoded), np.int64, len(encoded))


class CharTokenizer(_Pieces):
    """The characters of an alphabet, in the order of their code points."""

    def __init__(self, alphabet: str):
        alphabet = "".join(sorted(set(alphabet)))
        super().__init__("char", [c.encode("utf-8") for c in alphabet], {"alphabet": alphabet})
        points = np.array([ord(c) for c in alphabet], np.int64)
        self._ids = np.full(int(points.max(initial=0)) + 2, -1, np.int32)  # of each code point; the last stands for all beyond
        self._ids[points] = np.arange(len(points), dtype=np.int32)

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        _utf8(text)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._ids[np.minimum(points, np.uint32(len(self._ids) - 1))]
        if len(ids) and ids.min() < 0:
            _refuse(self.name, set(text) - set(self._content["alphabet"]))
        return ids

    def encode_many(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "n"], Int64[np.ndarray, "k"]]:
        """The ids of all texts, one after the other, and how many each has."""
        return self.encode("".join(texts)), np.fromiter(map(len, texts), np.int64, len(texts))


class SentencePieceTokenizer(_Pieces):
    """A SentencePiece unigram model (Kudo 2018) whose id 0, its unknown token, is left out: our id is its id less one.

    model: the serialised model. stand_ins: a special character -> the private-use character that stands for it in the model.
    """

    def __init__(self, model: bytes, stand_ins: dict[str, str]):
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._stand_ins = stand_ins
        back = str.maketrans({stand_in: c for c, stand_in in stand_ins.items()} | {unigram.SPACE: " "})
        pieces = []
        for i in range(1, self.processor.vocab_size()):
            piece = self.processor.id_to_piece(i)
            pieces.append(bytes([int(piece[3:5], 16)]) if self.processor.is_byte(i) else piece.translate(back).encode("utf-8"))
        super().__init__("sentencepiece", pieces, {"stand_ins": stand_ins}, model)
        self._memories: list[words.Memory] = []
        self._checked: set[str] = set()  # characters that come back

    def encode(self, text: str) -> Int32[np.ndarray, "n"]:
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "n"], Int64[np.ndarray, "k"]]:
        """The ids of all texts, one after the other, and how many each has."""
        encoded = _all_utf8(texts)
        try:
            memory = self._memories.pop()  # of several threads each has one of its own, and one of which a call failed is not used again
        except IndexError:
            memory = words.Memory()
        ids, lengths = memory.ids(encoded, self._ids_of)
        self._memories.append(memory)
        return ids - np.int32(1), lengths

    def _ids_of(self, encoded: list[bytes]) -> list[list[int]]:
        """SentencePiece's own ids of words. A word of more characters than unigram.WORD allows is several."""
        everything = b"\xff".join(encoded).decode("utf-8", "surrogateescape")  # a byte, then a character, that is in no text
        between = "\udcff"
        new = set(everything) - self._checked - {between}
        _refuse(self.name, {character for character in new if not self._knows(character)})
        self._checked |= new
        for character, stand_in in self._stand_ins.items():
            everything = everything.replace(character, stand_in)
        texts = everything.split(between)
        if max(map(len, texts)) <= unigram.LONGEST:
            return self.processor.encode(texts, num_threads=1)
        parts = [[text[at : at + unigram.LONGEST] for at in range(0, len(text), unigram.LONGEST)] for text in texts]
        ids = iter(self.processor.encode([part for of_word in parts for part in of_word], num_threads=1))
        return [[i for _ in of_word for i in next(ids)] for of_word in parts]

    def _knows(self, character: str) -> bool:
        """Whether the character comes back: not where it is unknown, means something to SentencePiece, or stands for another."""
        ids = self.processor.encode(self._stand_ins.get(character, character))
        return 0 not in ids and b"".join(self._pieces[i - 1] for i in ids) == character.encode("utf-8")


class WithPad:
    """A tokenizer with one token more, PAD, the last: no text is encoded with it, and decoding leaves it out."""

    def __init__(self, without: Tokenizer):
        self.without = without
        self.name, self.pad_id, self.vocab_size = without.name, without.vocab_size, without.vocab_size + 1
        self.fingerprint = hashlib.sha256(f"PAD {without.fingerprint}".encode()).hexdigest()
        self.characters = np.append(without.characters, 0)
        self.encode, self.encode_many = without.encode, without.encode_many

    def decode(self, ids: Sequence[int] | Int[np.ndarray, "n"]) -> str:
        return self.without.decode([int(i) for i in ids if i != self.pad_id])

    def piece(self, id: int | np.integer) -> str:
        return "<pad>" if id == self.pad_id else self.without.piece(id)

    def save(self, directory: epath.PathLike) -> None:
        """Writes what the tokenizer without PAD does, which then says so in tokenizer.json."""
        self.without.save(directory)
        path = epath.Path(directory) / "tokenizer.json"
        about = json.loads(path.read_text()) | {"pad_id": self.pad_id}
        files.write_whole(path, json.dumps(about, indent=2) + "\n")


def without_pad(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer that makes text into tokens."""
    return tokenizer.without if isinstance(tokenizer, WithPad) else tokenizer


def named(config: DataConfig) -> Tokenizer:
    """The tokenizer in data.tokenizer_from, or in that run's or prepared folder; PAD, which a run may have added to its own, is no part of it.

    Raises UserError as `load` does, and if there is none.
    """
    folder = files.locate(config.tokenizer_from)
    found = next((place for place in (folder, folder / "tokenizer") if (place / "tokenizer.json").exists()), None)
    if found is None:
        raise UserError(
            f"there is no tokenizer in data.tokenizer_from = {config.tokenizer_from!r}: name a run's workdir, a prepared folder, or the folder "
            "tokenizer/ in one."
        )
    return without_pad(load(found))


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not valid Unicode: a lone surrogate {text[error.start]!r} at character {error.start}.") from error


def _all_utf8(texts: Sequence[str]) -> list[bytes]:
    try:
        return [text.encode("utf-8") for text in texts]
    except UnicodeEncodeError:
        return [_utf8(text) for text in texts]


def _refuse(name: str, missing: set[str]) -> None:
    if missing:
        names = " ".join(repr(c) for c in sorted(missing)[:20]) + (" ..." if len(missing) > 20 else "")
        raise UserError(f"the {name} tokenizer lacks the characters {names}; it knows those of the text that it was made from.")


def train(config: DataConfig, train_text: str, alphabet_text: str) -> Tokenizer:
    """The tokenizer that the config names.

    train_text: what SentencePiece learns pieces from. alphabet_text: the whole corpus, whose characters must all be in the vocabulary.
    Raises UserError when no vocabulary of `config.vocab_size` exists.
    """
    sentences = unigram.sentences(train_text) if config.tokenizer == "sentencepiece" else []
    return from_sample(config, sentences, len(train_text), collections.Counter(alphabet_text))


def from_sample(config: DataConfig, sentences: list[str], characters: int, counts: Mapping[str, int]) -> Tokenizer:
    """The same from sentences of a training text of so many characters, and from how often the corpus has each character. Raises UserError."""
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer == "char":
        return CharTokenizer("".join(sorted(counts)))
    if config.tokenizer != "sentencepiece":
        raise UserError(f'data.tokenizer {config.tokenizer!r} is unknown; it must be "sentencepiece", "char" or "byte".')
    return SentencePieceTokenizer(*unigram.fit(config.vocab_size, sentences, characters, counts))


def load(directory: epath.PathLike) -> Tokenizer:
    """The tokenizer saved in a directory. Raises UserError when it is missing, or is not what was saved."""
    directory = epath.Path(directory)
    path = directory / "tokenizer.json"
    if not path.exists():
        raise UserError(f"there is no tokenizer in {str(directory)!r}: {path.name} is missing.")
    try:
        about = json.loads(path.read_text())
        kind, fingerprint = about["name"], about["fingerprint"]
        if kind == "byte":
            tokenizer: Tokenizer = ByteTokenizer()
        elif kind == "char":
            tokenizer = CharTokenizer(about["alphabet"])
        elif kind == "sentencepiece":
            tokenizer = SentencePieceTokenizer((directory / "spm.model").read_bytes(), about["stand_ins"])
        else:
            raise KeyError(kind)
        same = tokenizer.fingerprint == fingerprint and tokenizer.vocab_size == about["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if files.transient(error):
            raise files.failed(error, f"the tokenizer in {str(directory)!r} cannot be read: {files.reason(error)}.") from error
        raise UserError(f"the tokenizer in {str(directory)!r} is damaged ({type(error).__name__}: {error}); restore it, or train anew.") from error
    if not same:
        raise UserError(
            f"the tokenizer in {str(directory)!r} is not the one that was saved: its content does not have the fingerprint {fingerprint}."
        )
    return WithPad(tokenizer) if "pad_id" in about else tokenizer
