"""Prompts and templates: from text with blanks to tokens with given positions."""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from cdcd_jax.config import UserError
from cdcd_jax.data.tokenizers import Tokenizer

_PART = re.compile(r"\[\[|\[([^\[\]]*)\]|[^\[]+|\[")


def parse(template: str) -> list[str | int]:
    """The template's parts: texts as they are, blanks as numbers of tokens. `[8]` is a blank of eight tokens, `[[` a literal bracket."""
    parts: list[str | int] = []
    for match in _PART.finditer(template):
        word = match.group(0)
        if match.group(1) is not None:
            if not match.group(1).isdecimal() or len(match.group(1)) > 9 or int(match.group(1)) < 1:
                raise UserError(f"the blank {word!r} of the template is no whole number of tokens, such as [8]; write [[ for a bracket.")
            parts.append(int(match.group(1)))
            continue
        if word == "[":
            raise UserError(f"the template {template!r} has a bracket without its end; write [[ for a bracket.")
        text = "[" if word == "[[" else word
        if parts and isinstance(parts[-1], str):
            parts[-1] += text
        else:
            parts.append(text)
    return parts


class Layout(NamedTuple):
    """A sequence to be filled: its first `used` positions are the prompt or template, what comes after them is free."""

    tokens: Int[np.ndarray, "L"]  # 0 where none is given
    given: Bool[np.ndarray, "L"]
    used: int
    spaced: Bool[np.ndarray, "L"]  # where the token must begin with the space that the text has there


def encode(parts: list[str | int], tokenizer: Tokenizer, length: int, what: str) -> Layout:
    """The parts laid out from the left in a sequence of `length`.

    Where pieces carry the space before their word, a space just before a blank is left to the blank's first token, and a first word is given the
    space that it has anywhere else in the text (`without_added_space` takes it off again). Raises UserError when the parts do not fit.
    """
    blanks = sum(part for part in parts if isinstance(part, int))
    if blanks > length:
        raise UserError(f"the blanks of the {what} take {blanks} tokens, and this model's sequences have {length}: shorten them.")
    carries = bool(beginnings(tokenizer).any())
    ids: list[int] = []
    given: list[bool] = []
    after_space: list[int] = []
    for index, part in enumerate(parts):
        if isinstance(part, int):
            ids += [0] * part
            given += [False] * part
            continue
        follows_blank = index + 1 < len(parts) or what == "prompt"
        text = part.removesuffix(" ") if follows_blank and carries else part
        piece_ids = tokenizer.encode(text).tolist()
        if index == 0 and carries and not text.startswith(" "):
            # "And" alone may be spelt in letters, where " And" is one piece.
            with_space = tokenizer.encode(" " + text).tolist()
            piece_ids = with_space if len(with_space) <= len(piece_ids) else piece_ids
        ids += piece_ids
        given += [True] * len(piece_ids)
        if text != part:
            after_space.append(len(ids))
    if len(ids) > length:
        shorten = "shorten it or its blanks" if blanks else "shorten it"
        raise UserError(f"the {what} takes {len(ids)} tokens, and this model's sequences have {length}: {shorten}.")
    if what == "prompt" and len(ids) == length:
        raise UserError(f"the prompt fills all {length} tokens of a sequence and leaves nothing to generate: shorten it.")
    if what == "template" and all(given):
        raise UserError(f"the template {''.join(map(str, parts))!r} leaves nothing to generate: it has no blank such as [8].")
    used = len(ids)
    rest = length - used
    spaced = np.isin(np.arange(length), after_space)
    return Layout(np.asarray(ids + [0] * rest, np.int32), np.asarray(given + [False] * rest), used, spaced)


def without_added_space(text: str, parts: list[str | int]) -> str:
    """A generated text without the space that `encode` may have put before a first word."""
    began = parts[0] if parts else 0
    return text.removeprefix(" ") if isinstance(began, str) and not began.startswith(" ") else text


def beginnings(tokenizer: Tokenizer) -> Bool[np.ndarray, "V"]:
    """Which tokens are a space and the beginning of a word; none where the space is a token of its own."""
    pieces = [tokenizer.piece(i) for i in range(tokenizer.vocab_size)]
    return np.array([tokenizer.name == "sentencepiece" and piece[:1] == " " != piece for piece in pieces])
