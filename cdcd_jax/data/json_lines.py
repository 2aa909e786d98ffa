"""From bytes to the documents of JSON lines: one object a line, with its text at a key. A stretch of such a file begins where a line does."""

import json
from collections.abc import Callable, Iterable, Iterator

from cdcd_jax.config import did_you_mean
from cdcd_jax.data import stretches

ENDINGS = (".jsonl", ".ndjson", ".json")
LONGEST_LINE = 1 << 26  # bytes


class _NoLine(Exception):
    """What is wrong with a line; `further` is 1 if it is the line after the one that was read last."""

    def __init__(self, what: str, further: int = 0):
        super().__init__(what)
        self.further = further


def is_json(name: str) -> bool:
    """Whether a file holds JSON lines, by its name."""
    return name.removesuffix(".gz").removesuffix(".zst").endswith(ENDINGS)


def count_lines(name: str, first: int, last: int, see: Callable[[bytes], None], take: Callable[[bytes], None]) -> int:
    """How many lines begin in bytes [first, last), or in all of the file if both are 0, with anything but white space in them.

    see: called with every block of the file as it lies there, if all of it is read. take: with every block of the lines, unpacked.
    Raises UserError for a line that is too long.
    """
    start, blocks = stretches.read_stretch(name, first, last, _line, see)
    number = found = 0
    try:
        for lines in _lines(stretches.seen_by(blocks, take)):
            number += len(lines)
            found += sum(not line.isspace() for line in lines if line)
    except _NoLine as error:
        raise stretches.bad_file(name, f"has in line {_lines_before(name, start) + number + error.further:,} {error}") from error
    return found


def read_lines(
    name: str, first: int, last: int, key: str, see: Callable[[bytes], None], take: Callable[[bytes], None]
) -> Iterator[list[str]]:
    """The texts that stand at `key` in the JSON lines that begin in bytes [first, last), or in all if both are 0, some at a time; "" for null.

    see, take: as in `count_lines`. Raises UserError, naming the line, for what is no such line, is too long, or has no text at `key`.
    """
    start, blocks = stretches.read_stretch(name, first, last, _line, see)
    number = 0
    try:
        for lines in _lines(stretches.seen_by(blocks, take)):
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
        raise stretches.bad_file(name, f"has in line {_lines_before(name, start) + number + error.further:,} {error}") from error


def _line(name: str, nominal: int) -> int:
    """The next byte after a line break."""
    seen = nominal - 1
    for block in stretches.blocks_from(name, nominal - 1):
        at = block.find(b"\n")
        if at >= 0:
            return seen + at + 1
        seen += len(block)
        if seen - nominal > LONGEST_LINE:
            raise stretches.bad_file(name, f"has in line {_lines_before(name, nominal) + 1:,} {_too_long()}")
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
    return sum(block.count(b"\n") for block in stretches.between(name, 0, place))


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
