"""From bytes to plain text, in pieces, and the alphabet of 27 characters. A stretch of a text begins where a word does."""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from cdcd_jax.data import stretches

PIECE = 1 << 20  # most characters in a piece of text; a multiple of the 256 after which unigram.WORD cuts a word
SEARCHED = 1 << 16  # bytes in which a stretch of text looks for a space to begin with
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPELLED = [(str(digit).encode(), f" {word} ".encode()) for digit, word in enumerate(DIGITS)]
# Letters in lower case and digits stay; every other byte, those of characters beyond ASCII included, becomes a space.
LETTERS = bytes(ord(chr(i).lower()) if i < 128 and chr(i).isalnum() else ord(" ") for i in range(256))


def read_text(name: str, first: int, last: int, alphabet: str, see: Callable[[bytes], None]) -> Iterator[str]:
    """The text of bytes [first, last) of a file, in pieces; of all of it if both are 0. Together they are the file's text, for any stretches.

    see: called with every block of the file as it lies there, if all of it is read. With alphabet "27" white space at the ends of the file is
    dropped if all of it is read, else what stands at a stretch's end becomes a space.
    Raises UserError, naming the byte, for a file that cannot be read, is damaged, binary or not UTF-8. Bytes are those of the text, unpacked.
    """
    start, blocks = stretches.read_stretch(name, first, last, _word, see)
    texts = _decoded(blocks, name, start)
    return pieces(letters(texts, not (first or last)) if alphabet == "27" else texts)


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


def _decoded(blocks: Iterable[bytes], name: str, place: int) -> Iterator[str]:
    """UTF-8 to text. place: that of the first byte in the file; a byte order mark at its beginning is dropped."""
    rest, mark = b"", place == 0
    for block in blocks:
        nul = block.find(0)
        if nul >= 0:
            raise stretches.bad_file(name, f"is binary (a NUL at byte {place + len(rest) + nul}); it must be UTF-8 text")
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
        raise stretches.bad_file(name, f"is not UTF-8 (byte {place + error.start} is 0x{data[error.start]:02x})") from error
    return text, data[used:], place + used


def _word(name: str, nominal: int) -> int:
    """The next space or line break; if none is near, as in a text without any, the next character."""
    near = b"".join(stretches.between(name, nominal, nominal + SEARCHED))
    space = re.search(rb"[ \n]", near)
    return nominal + (space.start() if space else len(near) - len(near.lstrip(bytes(range(0x80, 0xC0)))))
