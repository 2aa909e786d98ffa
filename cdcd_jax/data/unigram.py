"""Fits a SentencePiece unigram vocabulary (Kudo 2018) that loses nothing and is the same each time.

SentencePiece is kept from changing the text (no normalisation, no added or removed spaces), from treating some characters as its own, and from
drawing anything at random: one thread, one order of the sentences, and the sample of a long text is drawn here.
"""

import io
import re
from collections.abc import Mapping

import numpy as np
import sentencepiece

from cdcd_jax.config import UserError

# A word carries the white space before it, so no piece spans two words and a word's pieces do not depend on where in the text it stands.
LONGEST = 256  # characters of a word
WORD = re.compile(r"[ \n][^ \n]{0,255}|[^ \n]{1,256}")
SENTENCE = re.compile(r"(?:[ \n][^ \n]{0,255}|[^ \n]{1,256})(?: [^ \n]{0,255}){0,15}")  # up to 16 words of a line
TRAINING_CHARACTERS = 10_000_000  # of a longer text, a random sample of sentences is trained on
SPACE = "\u2581"  # SentencePiece writes a space so
# Characters that SentencePiece gives a meaning of its own, or drops: control characters, its space and its unknown.
SPECIAL = frozenset([chr(i) for i in range(32)] + ["\x7f", SPACE, "\u2585"])
BYTES = 256


def fit(vocab_size: int, sentences: list[str], characters: int, counts: Mapping[str, int]) -> tuple[bytes, dict[str, str]]:
    """The serialised model of `vocab_size` + 1 pieces (its piece 0 means unknown and never occurs), and the special characters' stand-ins.

    sentences: what the pieces are learnt from, of a text of so many characters. counts: how often the whole corpus has each of its characters, all
    of which must be encodable. They are all pieces if they fill at most half of the vocabulary, or if it is below 512; else the 256 bytes are pieces,
    and the rarest characters fall back to them.
    Raises UserError when no vocabulary of that size exists, with the size that does.
    """
    byte_fallback = len(counts) > vocab_size // 2 and vocab_size >= 2 * BYTES
    if not byte_fallback and len(counts) > vocab_size:
        need = min(len(counts), 2 * BYTES)
        raise UserError(f"data.vocab_size must be at least {need} for a text of {len(counts)} different characters, not {vocab_size}.")
    private = (chr(i) for i in range(0xE000, 0xF900) if chr(i) not in counts)
    stand_ins = {c: next(private) for c in sorted(SPECIAL & set(counts))}
    alphabet = sorted(counts, key=lambda c: (c != " " and c not in stand_ins, -counts[c], c))
    kept = (vocab_size - BYTES) // 2 if byte_fallback else len(alphabet)
    while True:
        try:
            return _fit(sentences, alphabet[:kept], alphabet[kept:], stand_ins, vocab_size, byte_fallback), stand_ins
        except RuntimeError as error:
            most = re.search(r"value <= (\d+)", str(error))
            if not most:
                raise UserError(f"SentencePiece cannot fit data.vocab_size = {vocab_size} to this text: {error}") from error
            largest = int(most[1]) - 1
            if kept == len(alphabet):
                message = f"data.vocab_size must be at most {largest} for this text of {characters} characters, not {vocab_size}."
                raise UserError(message) from error
            kept = min(kept + vocab_size - largest, len(alphabet))  # too few pieces: there is room for more of the rare characters


def sentences(text: str) -> list[str]:
    """The sentences to train on: all of the text's, or, of a text longer than TRAINING_CHARACTERS, a random sample of about so many characters."""
    found = SENTENCE.findall(text)
    if len(text) <= TRAINING_CHARACTERS:
        return found
    number = max(1, len(found) * TRAINING_CHARACTERS // len(text))
    chosen = np.sort(np.random.default_rng(0).choice(len(found), number, replace=False))
    return [found[i] for i in chosen]


def _fit(sentences: list[str], kept: list[str], dropped: list[str], stand_ins: dict[str, str], vocab_size: int, byte_fallback: bool) -> bytes:
    table = str.maketrans({**stand_ins, **dict.fromkeys(dropped)})
    missing = sorted(set(kept).difference(*sentences))  # SentencePiece 0.2.3 loses some of its `required_chars`, so they are shown to it instead
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(sentence.translate(table) for sentence in [*sentences, *missing]),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size + 1,
        character_coverage=1.0,
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        unk_piece="\x7f",  # a text may hold "<unk>", but not this: it is special
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,  # sums are rounded in another order with more
        shuffle_input_sentence=False,
        max_sentence_length=1 << 20,  # bytes; longer ones would be skipped
        minloglevel=2,
    )
    return model.getvalue()
