"""From files to text, a block at a time, so that no file is ever in memory whole: plain text and JSON lines, each also as .gz or .zst.

A large file is read in stretches, by several workers at once. A stretch of text begins where a word does, one of JSON lines where a line does,
whatever bytes it was asked for, and one ends where the next begins.
"""

import codecs
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import zstandard
from etils import epath

from cdcd_jax.config import UserError, did_you_mean
from cdcd_jax.data import files

BLOCK = 1 << 20  # bytes read at a time
PIECE = 1 << 20  # most characters in a piece of text; a multiple of the 256 after which unigram.WORD cuts a word
LONGEST_LINE = 1 << 26  # bytes of a JSON line
SEARCHED = 1 << 16  # bytes in which a stretch of text looks for a space to begin with
COMPRESSED = (".gz", ".zst")
JSON_LINES = (".jsonl", ".ndjson", ".json")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPELLED = [(str(digit).encode(), f" {word} ".encode()) for digit, word in enumerate(DIGITS)]
# Letters in lower case and digits stay; every other byte, those of characters beyond ASCII included, becomes a space.
LETTERS = bytes(ord(chr(i).lower()) if i < 128 and chr(i).isalnum() else ord(" ") for i in range(256))


class _NoLine(Exception):
    """What is wrong with a line; `further` is 1 if it is the line after the one that was read last."""

    def __init__(self, what: str, further: int = 0):
        super().__init__(what)
        self.further = further


def is_compressed(name: str) -> bool:
    """Whether a file can be read from its beginning only."""
    return name.endswith(COMPRESSED)


def is_json(name: str) -> bool:
    """Whether a file holds JSON lines, by its name."""
    return name.removesuffix(".gz").removesuffix(".zst").endswith(JSON_LINES)


def read_text(name: str, first: int, last: int, alphabet: str, see: Callable[[bytes], None]) -> Iterator[str]:
    """The text of bytes [first, last) of a file, in pieces; of all of it if both are 0. Together they are the file's text, for any stretches.

    see: called with every block of the file as it lies there, if all of it is read. With alphabet "27" white space at the ends of the file is
    dropped if all of it is read, else what stands at a stretch's end becomes a space.
    Raises UserError, naming the byte, for a file that cannot be read, is damaged, binary or not UTF-8. Bytes are those of the text, unpacked.
    """
    start, blocks = _stretch(name, first, last, _word, see)
    texts = _decoded(blocks, name, start)
    return pieces(letters(texts, not (first or last)) if alphabet == "27" else texts)


def count_lines(name: str, first: int, last: int, see: Callable[[bytes], None], take: Callable[[bytes], None]) -> int:
    """How many lines begin in bytes [first, last), or in all of the file if both are 0, with anything but white space in them.

    see: as in `read_text`. take: called with every block of the lines, unpacked. Raises UserError for a line that is too long.
    """
    start, blocks = _stretch(name, first, last, _line, see)
    number = found = 0
    try:
        for lines in _lines(_seen(blocks, take)):
            number += len(lines)
            found += sum(not line.isspace() for line in lines if line)
    except _NoLine as error:
        raise _bad(name, f"has in line {_lines_before(name, start) + number + error.further:,} {error}") from error
    return found


def read_lines(
    name: str, first: int, last: int, key: str, see: Callable[[bytes], None], take: Callable[[bytes], None]
) -> Iterator[list[str]]:
    """The texts that stand at `key` in the JSON lines that begin in bytes [first, last), or in all if both are 0, some at a time; "" for null.

    see, take: as in `count_lines`. Raises UserError, naming the line, for what is no such line, is too long, or has no text at `key`.
    """
    start, blocks = _stretch(name, first, last, _line, see)
    number = 0
    try:
        for lines in _lines(_seen(blocks, take)):
            texts = _fields(lines, key)
            if texts is None:
                texts = []
                for line in lines:
                    number += 1
                    if line and not line.isspace():
                        texts.append(_field(line, key))
            else:
                number += len(lines)
            yield texts
    except _NoLine as error:
        raise _bad(name, f"has in line {_lines_before(name, start) + number + error.further:,} {error}") from error


def _stretch(
    name: str, first: int, last: int, find: Callable[[str, int], int], see: Callable[[bytes], None]
) -> tuple[int, Iterator[bytes]]:
    """Where bytes [first, last) begin, once both ends are moved to where `find` allows a cut, and their blocks; of all of a file, unpacked."""
    if not (first or last):
        return 0, _unpacked(name, see)
    start = _place(name, first, find)
    return start, _between(name, start, _place(name, last, find))


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """The same text in pieces of at most PIECE characters, cut where a space or a line break begins a word, so that words are those of the whole."""
    rest = ""
    for text in texts:
        rest += text
        while len(rest) > PIECE:
            cut = max(rest.rfind(" ", 1, PIECE + 1), rest.rfind("\n", 1, PIECE + 1))
            cut = cut if cut > 0 else PIECE
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def to_27(text: str) -> str:
    """text8's format (Mahoney): lower-case a-z and single spaces; each digit is spelled out; any other run of characters is one space."""
    return "".join(letters([text], True))


def letters(texts: Iterable[str], whole: bool) -> Iterator[str]:
    """The same in blocks, cut anywhere. Spaces at the two ends are left out only if `whole`."""
    begun, due = not whole, False  # whether a space may stand here, and whether one is due before the next letter
    for text in texts:
        squeezed = _squeezed(text)
        due, ends = due or squeezed[:1] == b" ", squeezed[-1:] == b" "
        if squeezed := squeezed.strip(b" "):
            yield (" " if due and begun else "") + squeezed.decode("ascii")
            begun, due = True, ends
    if due and not whole:
        yield " "


def digest_file(name: str, see: Callable[[bytes], None]) -> None:
    """Shows a file's bytes to `see`, a block at a time."""
    for block in _blocks(name):
        see(block)


def _squeezed(text: str) -> bytes:
    data = text.encode("utf-8").translate(LETTERS)
    for digit, word in SPELLED:
        if digit in data:
            data = data.replace(digit, word)
    letter = np.frombuffer(data, np.uint8) != ord(" ")
    kept = letter.copy()
    kept[1:] |= letter[:-1]  # of the spaces, the first after a letter
    kept[:1] = True
    return np.frombuffer(data, np.uint8)[kept].tobytes()


def _bad(name: str, what: str) -> UserError:
    return UserError(f"data.source file {name!r} {what}.")


def _blocks(name: str, start: int = 0) -> Iterator[bytes]:
    """A file's bytes from some place on, as they lie there."""
    with files.reading(f"data.source file {name!r}"), epath.Path(name).open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block


def _between(name: str, start: int, stop: int) -> Iterator[bytes]:
    left = stop - start
    for block in _blocks(name, start) if left else ():
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return


def _unpacked(name: str, see: Callable[[bytes], None]) -> Iterator[bytes]:
    blocks = _seen(_blocks(name), see)
    if name.endswith(".gz"):
        return _unpack(name, blocks, lambda: zlib.decompressobj(31), "gzip")  # 31: with gzip's header and checksum
    if name.endswith(".zst"):
        return _unpack(name, blocks, lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(), "Zstandard")
    return blocks


def _seen(blocks: Iterable[bytes], see: Callable[[bytes], None]) -> Iterator[bytes]:
    for block in blocks:
        see(block)
        yield block


def _unpack(name: str, blocks: Iterable[bytes], begin: Callable[[], Any], kind: str) -> Iterator[bytes]:
    """A compressed file may hold several streams, one after the other. What is fed to one is small, so that what comes out of it is as well."""
    stream, done, small = begin(), 0, BLOCK >> 5
    for block in blocks:
        for feed in (block[i : i + small] for i in range(0, len(block), small)):
            while feed and (stream is not None or feed.strip(b"\0")):  # zeros may fill up the end
                stream = stream or begin()
                try:
                    data = stream.decompress(feed)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise _bad(name, f"is no whole {kind} file (after {done:,} bytes of text: {error})") from error
                done += len(data)
                yield from (data[i : i + BLOCK] for i in range(0, len(data), BLOCK))
                feed, stream = stream.unused_data if stream.eof else b"", None if stream.eof else stream
    if stream is not None:
        raise _bad(name, f"is truncated: its {kind} stream ends in the middle, after {done:,} bytes of text")


def _decoded(blocks: Iterable[bytes], name: str, place: int) -> Iterator[str]:
    """UTF-8 to text. place: that of the first byte in the file; a byte order mark at its beginning is dropped."""
    rest, mark = b"", place == 0
    for block in blocks:
        nul = block.find(0)
        if nul >= 0:
            raise _bad(name, f"is binary (a NUL at byte {place + len(rest) + nul}); it must be UTF-8 text")
        text, rest, place = _decode(name, rest + block, place, False)
        if mark and text:
            text, mark = text.removeprefix("\ufeff"), False
        yield text
    yield _decode(name, rest, place, True)[0]


def _decode(name: str, data: bytes, place: int, final: bool) -> tuple[str, bytes, int]:
    """The text of some bytes, those at the end that are no whole character, and their place."""
    try:
        text, used = codecs.utf_8_decode(data, "strict", final)
    except UnicodeDecodeError as error:
        raise _bad(name, f"is not UTF-8 (byte {place + error.start} is 0x{data[error.start]:02x})") from error
    return text, data[used:], place + used


def _place(name: str, nominal: int, find: Callable[[str, int], int]) -> int:
    """Where a stretch that was to begin at a byte begins, or the end of the file."""
    return find(name, nominal) if nominal > 0 else 0


def _word(name: str, nominal: int) -> int:
    """The next space or line break; if none is near, as in a text without any, the next character."""
    near = b"".join(_between(name, nominal, nominal + SEARCHED))
    space = re.search(rb"[ \n]", near)
    return nominal + (space.start() if space else len(near) - len(near.lstrip(bytes(range(0x80, 0xC0)))))


def _line(name: str, nominal: int) -> int:
    """The next byte after a line break."""
    seen = nominal - 1
    for block in _blocks(name, nominal - 1):
        at = block.find(b"\n")
        if at >= 0:
            return seen + at + 1
        seen += len(block)
        if seen - nominal > LONGEST_LINE:
            raise _bad(name, f"has in line {_lines_before(name, nominal) + 1:,} {_too_long()}")
    return seen


def _lines(blocks: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest: list[bytes] = []
    for block in blocks:
        first, *others = block.split(b"\n")
        rest.append(first)
        if sum(map(len, rest)) > LONGEST_LINE:
            raise _NoLine(_too_long(), 1)
        if others:
            yield [b"".join(rest), *others[:-1]]
            rest = others[-1:]
    yield [b"".join(rest)]


def _lines_before(name: str, place: int) -> int:
    return sum(block.count(b"\n") for block in _between(name, 0, place))


def _fields(lines: list[bytes], key: str) -> list[str] | None:
    """The texts at a key of many lines, read as one list of JSON, in a third of the time; None if any line must be looked at by itself."""
    joined = b"\n".join(lines)
    if joined[:1] != b"{" or joined[-1:] != b"}" or joined.count(b"}\n{") != len(lines) - 1:
        lines = [line for line in map(bytes.strip, lines) if line]  # as they may be, with white space around them and between them
        joined = b"\n".join(lines)
        if joined[:1] != b"{" or joined[-1:] != b"}" or joined.count(b"}\n{") != len(lines) - 1:
            return None
    try:
        decoded = joined.replace(b"\n", b",").decode("utf-8")
        found = [values[key] for values in json.loads(f"[{decoded}]")]
        if b"\\ud" in joined or b"\\uD" in joined:
            "".join(found).encode("utf-8")  # no lone surrogates
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return found if len(found) == len(lines) and set(map(type, found)) == {str} else None


def _field(line: bytes, key: str) -> str:
    """The text at a key of a JSON object. Raises _NoLine, whose message goes on after "has in line 3"."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _NoLine(f"what is not UTF-8 (its byte {error.start} is 0x{line[error.start]:02x})") from error
    except (ValueError, RecursionError) as error:
        raise _NoLine(f"no JSON ({error}): {_shown(line)}") from error
    if not isinstance(values, dict):
        raise _NoLine(f"JSON that is no object with a text: {_shown(line)}")
    if key not in values:
        raise _NoLine(f"no key {key!r}, which data.text_key names{did_you_mean(key, values)}")
    text = values[key]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise _NoLine(f"at key {key!r}, which data.text_key names, no text but {_shown(json.dumps(text).encode())}")
    if b"\\ud" in line or b"\\uD" in line:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _NoLine(f"a lone surrogate {text[error.start]!r}, which is no character") from error
    return text


def _too_long() -> str:
    return f"more than {LONGEST_LINE >> 20} MB; a line is one JSON object with one document"


def _shown(data: bytes) -> str:
    return data[:40].decode("utf-8", "replace") + ("..." if len(data) > 40 else "")
