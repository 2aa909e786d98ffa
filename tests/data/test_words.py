"""The ids of words in bulk, against a plain loop over the words of each text."""

import itertools
import random
import re

import numpy as np
import pytest

from cdcd_jax.data import words


def ids_of(asked: list[bytes]) -> list[list[int]]:
    """Between none and four ids, by what the word is."""
    return [[len(word), *word[-3:]][: sum(word) % 5] for word in asked]


def plain(texts: list[bytes]) -> tuple[list[int], list[int]]:
    each = [[i for ids in ids_of(re.findall(rb"[ \n][^ \n]*|[^ \n]+", text)) for i in ids] for text in texts]
    return [i for ids in each for i in ids], [len(ids) for ids in each]


def texts(seed: int) -> list[bytes]:
    """Words of all lengths about those of the keys, which begin or end alike; white space of all kinds; texts of none."""
    generator = random.Random(seed)
    known = [b"abcdefgh" * 4 for _ in range(3)] + [bytes(generator.choices(b"ab\0\xe6", k=40)) for _ in range(20)]

    def word() -> bytes:
        cut = generator.choice([0, 1, 2, 6, 7, 8, 9, 14, 15, 16, 17, 21, 22, 23, 24, 25, 40])
        return generator.choice([b" ", b" ", b"\n", b"  ", b" \n", b"\r", b""]) + generator.choice(known)[:cut] + generator.choice([b"", b"", b"\0"])

    return [b"".join(word() for _ in range(generator.choice([0, 0, 1, 3, 30, 200]))) for _ in range(12)]


def check(memory: words.Memory, given: list[bytes]) -> None:
    ids, lengths = memory.ids(given, ids_of)
    wanted, wanted_lengths = plain(given)
    assert ids.dtype == np.int32 and (ids.tolist(), lengths.tolist()) == (wanted, wanted_lengths)


@pytest.mark.parametrize("block, slots, most, seeds", [(1 << 20, 21, 1 << 19, 20), (64, 7, 30, 10), (1, 9, 1, 1)])
def test_ids_are_those_of_a_loop_over_words(monkeypatch, block, slots, most, seeds):
    """In one block; in many, with a table where most slots are taken, and all is forgotten again and again; and in blocks of a word each."""
    monkeypatch.setattr(words, "BLOCK", block)
    monkeypatch.setattr(words, "SLOTS", slots)
    monkeypatch.setattr(words, "MOST_WORDS", most)
    monkeypatch.setattr(words, "FEW", 0)
    memory = words.Memory()
    for seed in range(seeds):
        check(memory, texts(seed))
    for given in ([], [b""], [b"", b""], [b" "], [b"\n\n "], [b"a"], [b"", b"a", b"", b" a", b""]):
        check(memory, given)


def test_a_word_is_asked_for_once(monkeypatch):
    monkeypatch.setattr(words, "BLOCK", 100)
    monkeypatch.setattr(words, "FEW", 30)
    asked: list[bytes] = []
    memory = words.Memory()
    for seed in (1, 2, 1):
        memory.ids(texts(seed), lambda new: asked.extend(new) or ids_of(new))
    assert len(asked) == len(set(asked)) > 50


@pytest.mark.parametrize("sizes", [[50], [10, 90]])
def test_blocks_are_whole_words_and_all_of_the_text(sizes):
    given = [b"one two\nthree " * 30, b"", b"x" * 400, b"a b", b" " * 120]
    found, about = [b""] * len(given), itertools.cycle(sizes)
    for first, block in words.blocks(given, lambda: next(about)):
        assert sum(map(len, block)) < 90 + 400
        for number, part in enumerate(block, first):
            assert not found[number] or part[:1] in (b" ", b"\n")
            found[number] += part
    assert found == given
