"""What is for training, for validation and for the test, where a source does not say so itself: the end of it, or documents by their hash."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int

from cdcd_jax.config import DataConfig
from cdcd_jax.data.spans import Facts, Span, documents

SPLITS = ("train", "valid", "test")
FEW = 50  # files of text, of which a share of some hundredths may be none: their end is held out instead
Fractions = tuple[float, float]  # of validation and of test


@dataclasses.dataclass(frozen=True, slots=True)  # of many small files there are many
class Use:
    """Characters [start, stop) of a span's text, for a split; "" is each document's own, by its hash. digest: the span's.

    begins: whether a document begins here, if the span is a stretch of one. Where it holds whole documents, start and stop fall between them.
    """

    span: Span
    digest: str
    start: int
    stop: int
    begins: bool
    split: str

    def __len__(self) -> int:
        return self.stop - self.start


def whole(spans: list[Span], facts: list[Facts], config: DataConfig) -> tuple[list[Use], int, int]:
    """All that is used of some spans, for training so far; the number of documents in it, and of empty ones that are left out."""
    uses: list[Use] = []
    found = empty = 0
    for _, group in itertools.groupby(zip(spans, facts, strict=True), key=lambda pair: (pair[0].kind, pair[0].place)):
        pairs = list(group)
        if pairs[0][0].is_text:
            text = [] if all(fact.blank for _, fact in pairs) else _joined(pairs, config.alphabet == "27")
            uses, found, empty = uses + text, found + bool(text), empty + (not text)
        else:
            uses += [Use(span, fact.digest, 0, fact.characters, True, "train") for span, fact in pairs if fact.documents]
            found, empty = found + sum(fact.documents for _, fact in pairs), empty + sum(fact.empty for _, fact in pairs)
    return uses, found, empty


def _joined(pairs: list[tuple[Span, Facts]], letters: bool) -> list[Use]:
    """The stretches of one text. Of 27 letters, spaces at the ends of the text are left out, and of several spaces that meet, all but one."""
    windows = [[0, fact.characters] for _, fact in pairs]
    spare = None  # the stretch whose last space was left out, and is wanted if the next letters have none before them
    begun = False
    for i, (_, fact) in enumerate(pairs if letters else []):
        if fact.blank:
            windows[i] = [0, 0]
            spare = i if begun and fact.characters and spare is None else spare
            continue
        windows[i] = [int(fact.left and not begun), fact.characters - fact.right]
        if spare is not None and not fact.left:
            windows[spare][1] += 1
        spare, begun = i if fact.right else None, True
    used = [(span, fact.digest, start, stop) for (span, fact), (start, stop) in zip(pairs, windows, strict=True) if stop > start]
    return [Use(span, digest, start, stop, i == 0, "train") for i, (span, digest, start, stop) in enumerate(used)]


def by_hash(digests: Iterable[bytes], fractions: Fractions) -> Int[np.ndarray, "d"]:
    """The splits, by their places in SPLITS, of documents whose texts, in UTF-8, have these SHA-256. The same text is always in the same split."""
    numbers = np.frombuffer(b"".join(digest[:8] for digest in digests), ">u8") / 2.0**64
    return np.where(numbers < fractions[1], 2, np.where(numbers < sum(fractions), 1, 0))


def documents_by_hash(texts: list[str], encoded: list[bytes], fractions: Fractions) -> dict[str, list[str]]:
    """The documents of each split, in order; encoded: their bytes."""
    split = by_hash((hashlib.sha256(data).digest() for data in encoded), fractions)
    return {name: [texts[i] for i in np.flatnonzero(split == number).tolist()] for number, name in enumerate(SPLITS)}


def files_by_hash(digests: Iterable[str], fractions: Fractions) -> dict[str, str]:
    """The splits of a few long documents, by the SHA-256 of their texts in hexadecimal: by hash, but none that has a share goes away empty.

    The lowest hashes are for the test, those after them for validation, the highest for training: where by_hash gives a split nothing, it has the one
    that comes next in this order. There must be as many different documents as splits with a share.
    """
    different = sorted(set(digests))
    split = by_hash(map(bytes.fromhex, different), fractions)
    test = max(int((split == 2).sum()), int(fractions[1] > 0))
    held_out = max(int((split > 0).sum()), test + int(fractions[0] > 0))
    held_out = min(held_out, len(different) - int(sum(fractions) < 1))
    test = min(test, held_out - int(fractions[0] > 0))
    return {digest: "test" if i < test else "valid" if i < held_out else "train" for i, digest in enumerate(different)}


def hashed(uses: list[Use], digests: dict[str, str], fractions: Fractions) -> list[Use]:
    """Each document for the split of its hash; of a file that holds many, each is looked at when it is read.

    digests: the SHA-256, in hexadecimal, of each text, by its place.
    """
    if len(digests) == len({use.span.place for use in uses}):
        split = files_by_hash(digests.values(), fractions)
    else:  # among files of many documents one text is one of many
        chosen = by_hash(map(bytes.fromhex, digests.values()), fractions).tolist()
        split = {digest: SPLITS[number] for digest, number in zip(digests.values(), chosen, strict=True)}
    return [dataclasses.replace(use, split=split[digests[use.span.place]] if use.span.place in digests else "") for use in uses]


def tail(uses: list[Use], fractions: Fractions, config: DataConfig, exact: bool) -> list[Use]:
    """The end of what is used for the test, what is before that for validation.

    Of text, a cut moves forward to the next white space, so that no word is cut, unless `exact`; where there is none it stays. Of documents of JSON
    lines or a data set, a cut moves back to the beginning of the document in which it falls, or forward after the first.
    """
    total, (valid, test) = sum(map(len, uses)), fractions
    cuts = [round(total * (1 - (valid + test))), round(total * (1 - test))]
    if not exact:
        move = _to_space if all(use.span.is_text for use in uses) else _to_document
        cuts = [move(uses, cut, config) if 0 < cut < total else cut for cut in cuts]
    at, done = 0, []
    for use in uses:
        ends = sorted({min(max(cut - at, 0), len(use)) for cut in (0, *cuts, total)})
        for start, stop in itertools.pairwise(ends):
            split = SPLITS[sum(at + start >= cut for cut in cuts)]
            begins = use.begins and start == 0 or at + start in cuts
            done.append(dataclasses.replace(use, start=use.start + start, stop=use.start + stop, split=split, begins=begins))
        at += len(use)
    return done


def _to_space(uses: list[Use], cut: int, config: DataConfig) -> int:
    at = 0
    for use in uses:
        if at + len(use) > cut:
            for place, piece in _window(use, config):
                space = re.compile(r"\s").search(piece, max(cut - at - place, 0))
                if space:
                    return at + place + space.start()
        at += len(use)
    return cut


def _to_document(uses: list[Use], cut: int, config: DataConfig) -> int:
    starts = [0]  # of the documents up to the cut, and of the one after it
    at = 0
    for use in uses:
        if use.span.is_text:
            starts += [at] if use.begins else []
        elif at + len(use) > cut or at == 0:
            starts += [at + place for place, _ in _window(use, config)]
        else:
            starts.append(at)
        at += len(use)
        if at > cut and starts[-1] > cut:
            break
    before = max(start for start in starts if start <= cut)
    return before or min((start for start in starts if start > 0), default=at)


def _window(use: Use, config: DataConfig) -> Iterator[tuple[int, str]]:
    """The pieces or documents of a use, each with its place in it."""
    at = -use.start
    for piece in documents(use.span, config):
        inside = piece[max(-at, 0) : max(use.stop - use.start - at, 0)]
        if inside:
            yield max(at, 0), inside
        at += len(piece)
