"""Where text comes from: an embedded text, files on disk or in a bucket, TFDS, Hugging Face. Found, read once, divided into parts, read again.

A part is what one worker reads by itself. The division depends on the content alone. `read` gives a part's text in pieces, and notices if it is no
longer what it was when the parts were listed.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import hub, places, spans, splits, text
from cdcd_jax.data.spans import Facts, Hashes, Span
from cdcd_jax.data.splits import SPLITS, Fractions, Use
from cdcd_jax.data.workers import Map


class Piece(NamedTuple):
    """Some text of a split; `begins` if a document begins with it. A long document is several pieces, cut where a word begins."""

    split: str
    text: str
    begins: bool


@dataclasses.dataclass(frozen=True)
class Part:
    """What one worker reads by itself. name: for messages."""

    name: str
    uses: tuple[Use, ...]
    fractions: Fractions  # of the documents that go by their hash


class Listing(NamedTuple):
    """inputs: name, bytes and sha256 of each file, or of each split of a data set.

    empty_documents: how many each split has that are left out, besides those that `read_some` tells of.
    """

    parts: list[Part]
    inputs: list[dict[str, Any]]
    empty_documents: dict[str, int]


def joiner(config: DataConfig) -> str:
    """What stands between the documents of a split when they are one text."""
    return " " if config.alphabet == "27" else "\n"


def list_parts(config: DataConfig, run: Map = map) -> Listing:
    """Finds a source, reads all of it once, and divides it into parts and splits.

    run: a map over workers; what it is given can be pickled. Documents of nothing but white space are left out and counted.
    Raises UserError, naming the file and line or byte, if there is no such source, it cannot be read, or no text is in it.
    """
    if config.valid_fraction + config.test_fraction > 1:
        raise UserError(
            f"data.valid_fraction = {config.valid_fraction} and data.test_fraction = {config.test_fraction} must not be more than 1 together."
        )
    found = places.find(config)
    groups = [group for mine in found.values() for group in mine]
    listed = [span for group in groups for span in group]
    scanned = run(functools.partial(spans.scan, config=config), groups)
    facts = dict(zip(listed, itertools.chain.from_iterable(scanned), strict=True))
    if all(fact.blank for fact in facts.values()):
        raise no_text(config, sum(fact.empty for span, fact in facts.items() if not span.is_text))
    fractions = (0.0 if "valid" in found else config.valid_fraction, 0.0 if "test" in found else config.test_fraction)
    uses, numbers, empty = dict[str, list[Use]](), dict[str, int](), dict[str, int]()
    for split in found:
        mine = [span for group in found[split] for span in group]
        used, numbers[split], empty[split] = splits.whole(mine, [facts[span] for span in mine], config)
        uses[split] = [dataclasses.replace(use, split=split) for use in used]
    rule = _rule(uses["train"], numbers["train"], fractions, config)
    in_stretches = dict.fromkeys((span.kind, span.place) for span in listed if span.kind in ("text", "lines", "hf") and not span.whole)
    # Which files hold the same text is asked wherever some of several are held out.
    hashed = run(functools.partial(spans.hash_file, config, bool(rule) and numbers["train"] > 1), in_stretches)
    hashes = {place: of_file for (_, place), of_file in zip(in_stretches, hashed, strict=True)}
    if rule == "hash":
        uses["train"] = _by_hash(uses["train"], hashes, fractions, config)
    elif rule:
        uses["train"] = splits.tail(uses["train"], fractions, config, rule == "exact")
        _no_text_on_both_sides(uses["train"], _digests(uses["train"], hashes), config)
    return Listing(_parts(uses, groups, fractions), _inputs(facts, hashes), empty)


def read(part: Part, config: DataConfig) -> Iterator[Piece]:
    """The text of a part. Raises UserError, naming the file, if it is not what was listed any more, and as `list_parts` does."""
    for split, texts, begins in read_some(part, config):
        yield from (Piece(split, text, begins) for text in texts if text)


def read_some(part: Part, config: DataConfig) -> Iterator[tuple[str, list[str], bool]]:
    """The same as (split, texts, whether a document begins with each of them), of short documents many at a time.

    Documents of JSON lines that are empty, and were not found to be when they were listed, come as "": they are to be counted and left out.
    """
    for use in part.uses:
        digest, at, begins = spans.begun(use.span, config), 0, use.begins
        for some in spans.batches(use.span, config, take=digest.update):
            encoded = spans.update(digest, use.span, some)
            if not use.span.is_text:
                yield from _documents(use, at, some, encoded, part.fractions)
            elif inside := some[0][max(use.start - at, 0) : max(use.stop - at, 0)]:
                yield use.split, [inside], begins
                begins = False
            at += sum(map(len, some))
        if digest.hexdigest() != use.digest:
            raise UserError(f"data.source {use.span.name!r} changed while it was read; begin again when it is whole.")


def _documents(use: Use, at: int, some: list[str], encoded: list[bytes], fractions: Fractions) -> Iterator[tuple[str, list[str], bool]]:
    """Of whole documents, before which come so many characters of the span, those that are used."""
    starts = list(itertools.accumulate(map(len, some), initial=at))
    if use.stop == spans.UNCOUNTED and "" in some:
        yield use.split or "train", [""] * some.count(""), True
    if at < use.start or starts[-1] > use.stop or "" in some:
        used = [i for i, document in enumerate(some) if document and use.start <= starts[i] < use.stop]
        some, encoded = [some[i] for i in used], [encoded[i] for i in used]
    for split, documents in ({use.split: some} if use.split else splits.documents_by_hash(some, encoded, fractions)).items():
        if documents and max(map(len, documents)) <= text.PIECE:
            yield split, documents, True
        else:
            yield from ((split, [piece], i == 0) for document in documents for i, piece in enumerate(text.pieces([document])))


def load_texts(config: DataConfig) -> dict[str, str]:
    """The text of "train" and "valid", and of "test" if there is any, in memory: the documents of each, joined. Raises UserError as `list_parts`."""
    pieces: dict[str, list[str]] = {split: [] for split in SPLITS}
    empty = 0
    for part in list_parts(config).parts:
        for split, texts, begins in read_some(part, config):
            mine, empty = pieces[split], empty + texts.count("")
            for piece in filter(None, texts):
                mine += [joiner(config), piece] if begins and mine else [piece]
    if not any(pieces.values()):
        raise no_text(config, empty)
    return {split: "".join(mine) for split, mine in pieces.items() if mine or split != "test"}


def fingerprint(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _rule(uses: list[Use], number: int, fractions: Fractions, config: DataConfig) -> str:
    """How what is for training, so many documents, is divided: "tail", "exact" or "hash"; "" if it is not."""
    if not uses:
        raise UserError(f"data.source {config.source!r} has no text for training; its train split is empty.")
    if not any(fractions):
        return ""
    if number == 1 and not uses[0].span.is_text:
        raise UserError(f"data.source {config.source!r} is a single document, which is not divided; give more, or files for each split ({{split}}).")
    if config.split == "hash" and number == 1:
        raise UserError(f'data.split = "hash" divides documents, and data.source {config.source!r} is a single one; use "tail" or "exact".')
    if config.split == "exact" and number > 1:
        raise UserError(f'data.split = "exact" cuts one text, and data.source {config.source!r} is {number:,} documents; use "tail" or "hash".')
    if config.split == "auto":
        return "tail" if number < splits.FEW and all(use.span.is_text for use in uses) else "hash"
    return config.split


def _digests(uses: list[Use], hashes: dict[str, Hashes]) -> dict[str, str]:
    """The SHA-256 of each file's text, however the file is read."""
    return {use.span.place: hashes[use.span.place].text if use.span.place in hashes else use.digest for use in uses if use.span.is_text}


def _no_text_on_both_sides(uses: list[Use], digests: dict[str, str], config: DataConfig) -> None:
    """Of few files the end is held out, and nobody means to be tested on what is in an earlier file as well."""
    sides = dict[str, dict[str, set[str]]]()
    for use in uses:
        if use.span.is_text:
            sides.setdefault(digests[use.span.place], {}).setdefault(use.span.place, set()).add(use.split)
    for names in sides.values():
        if len(names) > 1 and len(set.union(*names.values())) > 1:
            first, second, *_ = names
            raise UserError(
                f"{first!r} and {second!r} of data.source hold the same text, so the same text would be in training and held out; "
                'leave one out, or use data.split = "hash".'
            )


def _by_hash(uses: list[Use], hashes: dict[str, Hashes], fractions: Fractions, config: DataConfig) -> list[Use]:
    """Each document for the split of its hash."""
    digests = _digests(uses, hashes)
    different, wanted = len(set(digests.values())), [sum(fractions) < 1, *map(bool, fractions)].count(True)
    if different < wanted and all(use.span.is_text for use in uses):
        raise UserError(
            f"data.source {config.source!r} holds {different} different text{'s' if different > 1 else ''}, and {wanted} splits need as many, "
            "since none is divided; give more files, or fewer splits."
        )
    return splits.hashed(uses, digests, fractions)


def _parts(uses: dict[str, list[Use]], groups: list[tuple[Span, ...]], fractions: Fractions) -> list[Part]:
    """What is read together, and for the same split, is a part."""
    group_of = {span: i for i, group in enumerate(groups) for span in group}
    parts = []

    def place(use: Use) -> tuple[int, str]:
        return group_of[use.span], use.split

    # By hash one split's files stand between another's: of all that one worker reads they are brought together.
    for _, together in itertools.groupby(sorted(itertools.chain.from_iterable(uses.values()), key=place), place):
        mine = tuple(together)
        parts.append(Part(mine[0].span.name + (f" and {len(mine) - 1} more" if mine[1:] else ""), mine, fractions))
    return parts


def _inputs(facts: dict[Span, Facts], hashes: dict[str, Hashes]) -> list[dict[str, Any]]:
    inputs = []
    for (kind, place, split), group in itertools.groupby(facts, lambda span: (span.kind, span.place, span.split)):
        mine = [facts[span] for span in group]
        size, sha256 = sum(fact.size for fact in mine), fingerprint(" ".join(fact.digest for fact in mine))
        if kind == "embedded":
            size, sha256 = len(spans.king_james().encode("utf-8")), fingerprint(spans.king_james())
        elif kind == "tfds":
            place = f"tfds:{hub.tfds_version(place)} {split}"
        else:
            size, sha256 = hashes[place][:2] if place in hashes else (size, mine[0].sha256)
        inputs.append({"name": place, "bytes": size, "sha256": sha256})
    return inputs


def no_text(config: DataConfig, empty: int) -> UserError:
    """Why there is nothing to read, where so many documents are empty."""
    source, plain = f"data.source {config.source!r}", dataclasses.replace(config, alphabet="text")
    if config.alphabet == "27" and any(any(texts) for part in list_parts(plain).parts for _, texts, _ in read_some(part, plain)):
        return UserError(f'{source} holds no letter a-z and no digit, so data.alphabet = "27" leaves nothing of it; use "text".')
    if empty:
        return UserError(f"{source} is empty: none of its {empty:,} documents has any text.")
    return UserError(f"{source} is empty; it must hold UTF-8 text.")
