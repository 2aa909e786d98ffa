"""Prompts and templates: what a blank is, what is text, and where each token comes to lie."""

from typing import Any

import numpy as np
import pytest

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import tokenizers
from cdcd_jax.evaluation import templates
from tests import tiny

CHAR = tokenizers.CharTokenizer("".join(tiny.SENTENCES) + "[]8")


@pytest.fixture(scope="module")
def pieces() -> tokenizers.Tokenizer:
    """SentencePiece on the sentences: its pieces carry the space before their word."""
    return tokenizers.train(DataConfig(tokenizer="sentencepiece", vocab_size=50), tiny.corpus(), tiny.corpus())


@pytest.mark.parametrize(
    "template, parts",
    [
        ("And the [8] said unto [4], [12]", ["And the ", 8, " said unto ", 4, ", ", 12]),
        ("[8]", [8]),
        ("[1] a", [1, " a"]),
        ("a [1]", ["a ", 1]),
        ("[3][4]", [3, 4]),
        ("[08]", [8]),
        ("", []),
        ("no blank", ["no blank"]),
        ("[[8]", ["[8]"]),
        ("[[[8]", ["[", 8]),
        ("[[[[", ["[["]),
        ("a[[b]c", ["a[b]c"]),
        ("a]b", ["a]b"]),
        ("[[x] [2]", ["[x] ", 2]),
        ("x\n[2]\ty", ["x\n", 2, "\ty"]),
    ],
)
def test_parse(template: str, parts: list[str | int]) -> None:
    assert templates.parse(template) == parts


@pytest.mark.parametrize("blank", ["[]", "[0]", "[00]", "[x]", "[-1]", "[+1]", "[ 8 ]", "[1.5]", "[8 tokens]", "[1e3]", "[²]", "[9999999999]"])
def test_what_is_no_blank_is_named(blank: str) -> None:
    with pytest.raises(UserError) as error:
        templates.parse(f"a {blank} b")
    assert str(error.value) == f"the blank {blank!r} of the template is no whole number of tokens, such as [8]; write [[ for a bracket."


@pytest.mark.parametrize("template", ["[", "a [", "a [8", "[8[", "[[[", "a [ b [2]"])
def test_a_bracket_without_its_end(template: str) -> None:
    with pytest.raises(UserError) as error:
        templates.parse(template)
    assert str(error.value) == f"the template {template!r} has a bracket without its end; write [[ for a bracket."


def encoded(template: str, length: int = 16, tokenizer: Any = CHAR) -> tuple[str, str, int]:
    """(the text with "?" for what is free, which are given as "x", used)."""
    tokens, given, used, _ = templates.encode(templates.parse(template), tokenizer, length, "template")
    assert tokens.shape == given.shape == (length,) and tokens.dtype == np.int32 and given.dtype == bool
    text = "".join(tokenizer.piece(int(token)) if known else "?" for token, known in zip(tokens, given, strict=True))
    return text, "".join("x" if known else "." for known in given), used


@pytest.mark.parametrize(
    "template, expected",
    [
        ("the [3] is", ("the ??? is??????", "xxxx...xxx......", 10)),
        ("[3] is", ("??? is??????????", "...xxx..........", 6)),
        ("the [3]", ("the ????????????", "xxxx............", 7)),
        ("[16]", ("?" * 16, "." * 16, 16)),
        ("[2][3]a[1]", ("?????a??????????", ".....x..........", 7)),
        ("a [12] a", ("a ???????????? a", "xx............xx", 16)),
        ("[[8] [2]", ("[8] ????????????", "xxxx............", 6)),
    ],
)
def test_encode(template: str, expected: tuple[str, str, int]) -> None:
    assert encoded(template) == expected


def test_a_prompt_is_text_brackets_included() -> None:
    tokens, given, used, spaced = templates.encode(["a [8] "], CHAR, 16, "prompt")
    assert CHAR.decode(tokens[given].tolist()) == "a [8] " and given.tolist() == [True] * 6 + [False] * 10 and used == 6
    assert not spaced.any()  # the space is there


def test_an_empty_prompt_is_no_prompt() -> None:
    _, given, *_ = templates.encode([""], CHAR, 16, "prompt")
    assert not given.any()


@pytest.mark.parametrize(
    "parts, what, said",
    [
        (["a cat"], "template", "leaves nothing to generate: it has no blank such as [8]."),
        ([], "template", "leaves nothing to generate"),
        (["a", 16], "template", "the template takes 17 tokens, and this model's sequences have 16: shorten it or its blanks."),
        ([9, "a", 8], "template", "the blanks of the template take 17 tokens, and this model's sequences have 16: shorten them."),
        ([999_999_999], "template", "the blanks of the template take 999999999 tokens"),
        (["a" * 16], "prompt", "the prompt fills all 16 tokens of a sequence and leaves nothing to generate"),
        (["a" * 17], "prompt", "the prompt takes 17 tokens, and this model's sequences have 16"),
        (["Zebra", 2], "template", "the char tokenizer lacks the characters 'Z'"),
        (["Zebra"], "prompt", "the char tokenizer lacks the characters 'Z'"),
    ],
)
def test_what_does_not_fit(parts: list[str | int], what: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        templates.encode(parts, CHAR, 16, what)
    assert said in str(error.value)


def test_a_prompt_of_all_but_one_fits() -> None:
    assert templates.encode(["a" * 15], CHAR, 16, "prompt")[1].sum() == 15


def spelt(tokenizer: tokenizers.Tokenizer, parts: list[str | int], what: str) -> list[str]:
    tokens, given, *_ = templates.encode(parts, tokenizer, 32, what)
    return [tokenizer.piece(int(token)) for token, known in zip(tokens, given, strict=True) if known]


def test_where_pieces_carry_spaces_a_blank_gets_the_one_before_it(pieces: tokenizers.Tokenizer) -> None:
    """A piece of a lone space before a blank would be one that the model never saw there."""
    assert spelt(pieces, ["the cat ", 3], "template") == spelt(pieces, ["the cat", 3], "template")
    assert spelt(pieces, ["the cat "], "prompt") == spelt(pieces, ["the cat"], "prompt")
    for parts, what in ((["the cat ", 3, " is"], "template"), (["the cat "], "prompt")):
        _, given, _, spaced = templates.encode(parts, pieces, 32, what)
        assert np.flatnonzero(spaced).tolist() == [int(np.argmin(given))]  # the first position that is not given
    assert not templates.encode(["the cat", 3], pieces, 32, "template").spaced.any()
    assert "".join(spelt(pieces, [2, " is black"], "template")) == " is black"


def test_where_pieces_carry_spaces_a_first_word_gets_one(pieces: tokenizers.Tokenizer) -> None:
    assert spelt(pieces, ["the cat", 3], "template")[0].startswith(" t")
    assert spelt(pieces, [" the cat", 3], "template") == spelt(pieces, ["the cat", 3], "template")
    assert templates.without_added_space(" the cat is", ["the cat"]) == "the cat is"
    assert templates.without_added_space(" the cat is", [" the cat"]) == " the cat is"
    assert templates.without_added_space(" the cat", [3, " cat"]) == " the cat" == templates.without_added_space(" the cat", [])


def test_every_word_of_the_sentences_is_laid_out_without_loss(pieces: tokenizers.Tokenizer) -> None:
    for sentence in tiny.SENTENCES:
        words = sentence.split()
        parts: list[str | int] = [words[0], 2, " " + " ".join(words[1:])]
        assert "".join(spelt(pieces, parts, "template")).strip() == " ".join(words)


def test_what_begins_with_a_space(pieces: tokenizers.Tokenizer) -> None:
    begin = templates.beginnings(pieces)
    assert begin.any() and all((pieces.piece(i)[0] == " " and len(pieces.piece(i)) > 1) == begin[i] for i in range(pieces.vocab_size))
    assert not templates.beginnings(CHAR).any()


def test_characters_keep_their_spaces() -> None:
    assert encoded("the [1]")[0].startswith("the ?")
