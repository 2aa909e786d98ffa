"""What is for training, for validation and for the test, where a source does not say so itself: the end of it, or documents by their hash."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator

import numpy as np

from cdcd_jax.config import DataConfig
from cdcd_jax.data.spans import Facts, Span, documents

SPLITS = ("train", "valid", "test")
Fractions = tuple[float, float]  # of validation and of test


@dataclasses.dataclass(frozen=True)
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


def by_hash(digest: bytes, fractions: Fractions) -> str:
    """The split of the document whose text, in UTF-8, has that SHA-256: test, valid or train. The same text is always in the same split."""
    number = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if number < fractions[1] else "valid" if number < sum(fractions) else "train"


def by_hashes(texts: list[str], encoded: list[bytes], fractions: Fractions) -> dict[str, list[str]]:
    """The same for many documents, which are given with their bytes: those of each split, in order."""
    numbers = np.frombuffer(b"".join(hashlib.sha256(data).digest()[:8] for data in encoded), ">u8") / 2.0**64
    split = np.where(numbers < fractions[1], 2, np.where(numbers < sum(fractions), 1, 0))
    return {name: [texts[i] for i in np.flatnonzero(split == number).tolist()] for number, name in enumerate(SPLITS)}


def hashed(uses: list[Use], fractions: Fractions) -> list[Use]:
    """Each document for the split of its hash. A text must be in one span."""
    return [dataclasses.replace(use, split=by_hash(bytes.fromhex(use.digest), fractions) if use.span.is_text else "") for use in uses]


def tail(uses: list[Use], number: int, fractions: Fractions, config: DataConfig, exact: bool) -> list[Use]:
    """The end of what is used for the test, what is before that for validation.

    number: of documents. Of one text, a cut moves forward to the next white space, so that no word is cut, unless `exact`; where there is none it
    stays. Between several documents, a cut moves back to the beginning of the document in which it falls, or forward after the first.
    """
    total, (valid, test) = sum(map(len, uses)), fractions
    cuts = [round(total * (1 - (valid + test))), round(total * (1 - test))]
    if not exact:
        move = _to_space if number == 1 else _to_document
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
