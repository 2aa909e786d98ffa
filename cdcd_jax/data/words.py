"""The ids of words, looked up in bulk: numpy does for a million bytes of text at once what Python would do word by word.

A text has few different words. Whatever is expensive about one, such as asking SentencePiece for its ids, is done when it is first seen.
"""

import array
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt64

BLOCK = 1 << 20  # bytes that are looked up together: what a processor's cache holds is fastest
MOST_WORDS, MOST_IDS = 1 << 19, 1 << 22  # remembered before all is forgotten: 60 MB at most
FEW = 5000  # words known, below which blocks are small
SHORT = 23  # bytes of a word that is its own key
SLOTS = 21  # bits of a slot's number: a table that is at most a quarter full, or half within a block
MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # of the first n bytes of a number
FACTORS = [np.uint64(factor) for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)]  # odd, their bits well mixed
WHITE = re.compile(rb"[ \n]")


def blocks(texts: Sequence[bytes], about: Callable[[], int]) -> Iterator[tuple[int, list[bytes]]]:
    """(number of the first text, texts) for about so many bytes at a time, asked for each time anew.

    A long text comes in parts, cut where white space begins a word.
    """
    if sum(map(len, texts)) <= about():
        yield 0, list(texts)
        return
    first, size = 0, 0
    block: list[bytes] = []
    for number, text in enumerate(texts):
        for i, part in enumerate(_parts(text, about)):
            if size >= about() or i:  # two parts of a text are in two blocks
                yield first, block
                first, block, size = number, [], 0
            block.append(part)
            size += len(part)
    yield first, block


def _parts(text: bytes, about: Callable[[], int]) -> Iterator[bytes]:
    begin = 0
    while len(text) - begin > about() and (cut := WHITE.search(text, begin + about())):
        yield text[begin : cut.start()]
        begin = cut.start()
    yield text[begin:] if begin else text


class Keys(NamedTuple):
    """The bytes and the length of short words as numbers: the first seven bytes and the length, the eight after them, the eight after those."""

    first: UInt64[np.ndarray, "w"]
    second: UInt64[np.ndarray, "w"]
    third: UInt64[np.ndarray, "w"]


class Memory:
    """The ids of the words seen so far. A word is what begins with a space, a line break or a text, and holds no other space or line break.

    Words are numbered as they come; the ids of word n are ids[ends[n] : ends[n + 1]]. The number of a short word is found by its bytes in a hash
    table with open addresses, that of a longer one in a dictionary.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._ids, self._ends = array.array("i"), array.array("q", [0])
        self._keys = Keys(*(np.empty(MOST_WORDS + BLOCK, np.uint64) for _ in range(3)))
        self._table = np.full(1 << SLOTS, -1, np.int32)
        self._long: dict[bytes, int] = {}

    def ids(
        self, texts: Sequence[bytes], ids_of: Callable[[list[bytes]], list[list[int]]]
    ) -> tuple[Int32[np.ndarray, "n"], Int64[np.ndarray, "k"]]:
        """The ids of all texts, one after the other, and how many each has; `ids_of` is asked for those of words that are new."""
        found, lengths = [np.zeros(0, np.int32)], np.zeros(len(texts), np.int64)
        # At first nearly every word is new, and handed over as often as it comes in the block.
        for first, block in blocks(texts, lambda: BLOCK if len(self._ends) > FEW else max(BLOCK >> 5, 1)):
            if len(self._ends) > MOST_WORDS or len(self._ids) > MOST_IDS:
                self._forget()
            ids, sizes = self._of_block(block, ids_of)
            found.append(ids)
            lengths[first : first + len(block)] += sizes
        return np.concatenate(found), lengths

    def _of_block(
        self, block: list[bytes], ids_of: Callable[[list[bytes]], list[list[int]]]
    ) -> tuple[Int32[np.ndarray, "n"], Int64[np.ndarray, "k"]]:
        text_ends = np.cumsum(np.fromiter(map(len, block), np.int64, len(block)))
        size = int(text_ends[-1]) if block else 0
        data = b"".join([*block, bytes(SHORT + 1)])
        codes = np.frombuffer(data, np.uint8, size)
        begins = (codes == 32) | (codes == 10)
        begins[:1] = True
        begins[text_ends[text_ends < size]] = True
        starts = np.flatnonzero(begins)
        sizes = np.diff(starts, append=size)
        numbers = self._numbers(data, starts, sizes)
        unknown = np.flatnonzero(numbers < 0)
        if len(unknown):
            words = [data[start : start + length] for start, length in zip(starts[unknown].tolist(), sizes[unknown].tolist(), strict=True)]
            new = list(dict.fromkeys(words))
            self._add(new, ids_of(new))
            numbers[unknown] = self._numbers(data, starts[unknown], sizes[unknown])
        ids, ended = self._look_up(numbers)
        before = ended[np.searchsorted(starts, text_ends)]  # of each text, the ids up to its end
        return ids, np.diff(before, prepend=0)

    def _look_up(self, numbers: Int64[np.ndarray, "w"]) -> tuple[Int32[np.ndarray, "n"], Int64[np.ndarray, "w+1"]]:
        """The ids of numbered words, one after the other, and how many there are before each word and after the last."""
        ends = np.frombuffer(self._ends, np.int64)
        starts, sizes = ends[numbers], ends[numbers + 1] - ends[numbers]
        ended = np.concatenate([[0], np.cumsum(sizes)])
        return np.frombuffer(self._ids, np.int32)[np.repeat(starts - ended[:-1], sizes) + np.arange(ended[-1])], ended

    def _numbers(self, data: bytes, starts: Int64[np.ndarray, "w"], sizes: Int64[np.ndarray, "w"]) -> Int64[np.ndarray, "w"]:
        """The numbers of words at these places, -1 for those that are not known."""
        keys, slots = _keys(data, starts, sizes)
        numbers = self._table[slots].astype(np.int64)
        others = np.flatnonzero(self._differ(numbers, keys))
        while len(others):  # whose slot another word has: the next slot
            slots[others] = (slots[others] + 1) & (1 << SLOTS) - 1
            numbers[others] = self._table[slots[others]]
            others = others[self._differ(numbers[others], Keys(*(part[others] for part in keys)))]
        for i in np.flatnonzero(sizes > SHORT).tolist():
            numbers[i] = self._long.get(data[starts[i] : starts[i] + sizes[i]], -1)
        return numbers

    def _differ(self, numbers: Int64[np.ndarray, "w"], keys: Keys) -> Bool[np.ndarray, "w"]:
        """Whether the word of that number is another than the key's; no word, of number -1, is none."""
        first, second, third = self._keys
        differ = first[numbers] != keys.first
        longer = np.flatnonzero(keys.first >> np.uint64(56) > 7)
        wanted = numbers[longer]
        differ[longer] |= (second[wanted] != keys.second[longer]) | (third[wanted] != keys.third[longer])
        return differ & (numbers >= 0)

    def _add(self, words: list[bytes], ids: list[list[int]]) -> None:
        """Numbers new words. The slots of all are filled together: of those that want the same one the last gets it, the others try the next."""
        sizes = np.fromiter(map(len, words), np.int64, len(words))
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        numbers = np.arange(len(words)) + len(self._ends) - 1
        self._ends.frombytes((len(self._ids) + np.cumsum(counts)).tobytes())
        self._ids.frombytes(np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(counts.sum())).tobytes())
        keys, slots = _keys(b"".join([*words, bytes(SHORT + 1)]), np.cumsum(sizes) - sizes, sizes)
        for mine, theirs in zip(self._keys, keys, strict=True):
            mine[numbers] = theirs
        self._long.update((words[i], int(numbers[i])) for i in np.flatnonzero(sizes > SHORT).tolist())
        rest = np.flatnonzero(sizes <= SHORT)
        while len(rest):
            free = rest[self._table[slots[rest]] < 0]
            self._table[slots[free]] = numbers[free]
            rest = rest[self._table[slots[rest]] != numbers[rest]]
            slots[rest] = (slots[rest] + 1) & (1 << SLOTS) - 1


def _keys(data: bytes, starts: Int64[np.ndarray, "w"], sizes: Int64[np.ndarray, "w"]) -> tuple[Keys, Int64[np.ndarray, "w"]]:
    """The keys of words at these places, and the slots where they are looked for first; those of words that are not short say nothing.

    After the last word there are SHORT + 1 bytes more.
    """
    windows = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))  # the eight bytes from each byte on
    first = windows[starts] & MASKS[np.minimum(sizes, 7)] | np.minimum(sizes, 255).astype(np.uint64) << np.uint64(56)
    mixed = first * FACTORS[0]
    rest = []
    for at, factor in ((7, FACTORS[1]), (15, FACTORS[2])):
        longer = np.flatnonzero(sizes > at)  # few are
        key = windows[starts[longer] + at] & MASKS[np.minimum(sizes[longer] - at, 8)]
        mixed[longer] ^= key * factor
        rest.append(np.zeros_like(first))
        rest[-1][longer] = key
    mixed = (mixed ^ mixed >> np.uint64(32)) * FACTORS[0]
    return Keys(first, *rest), (mixed >> np.uint64(64 - SLOTS)).astype(np.int64)
