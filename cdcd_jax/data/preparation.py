"""From a source to a folder of records: the plan, the stages one after the other, and how a preparation that was interrupted goes on.

    OUTPUT/unfinished/lock          held by the one process that is at it
    OUTPUT/unfinished/plan.json     what decides the records: who has another plan is refused, once any tokens are finished
    OUTPUT/unfinished/tokenizer/    made first
    OUTPUT/unfinished/tokens/       the tokens of each part of the source, with a note (stages.py)
    OUTPUT/unfinished/shards.json   the names of the shards that are written, so that those of a plan given up can be taken away
    OUTPUT/unfinished/shards/       a note for each shard that is written
    OUTPUT/unfinished/results-*     what machines of Beam hand back to the process that asked
    OUTPUT/                         as records.py says; manifest.json makes it whole, and then unfinished/ goes

Nothing here depends on the number of workers, nor on whether they are processes or machines.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from etils import epath

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import files, outputs, places, records, sources, stages, tokenizers, unigram
from cdcd_jax.data.layout import Layout, check_sizes, lay_out
from cdcd_jax.data.records import MANIFEST, RESULTS, TOKEN_COUNTS, TOKENIZER, UNFINISHED, Manifest
from cdcd_jax.data.splits import SPLITS
from cdcd_jax.data.stages import Filled, Filling
from cdcd_jax.data.streams import Job, Stream
from cdcd_jax.data.workers import Map

OTHERWISE = ("source", "tokenizer_from", "pad_insertion")  # keys of the config that a plan holds by content, or that training alone needs
# Of what is written one name of each kind, to see that no glob takes it for a text.
WRITTEN = (
    MANIFEST, TOKEN_COUNTS, f"{TOKENIZER}/tokenizer.json", f"{TOKENIZER}/spm.model", *(f"{split}-00000-of-00001.array_record" for split in SPLITS),
    *(f"{UNFINISHED}/{name}" for name in ("lock", "plan.json", outputs.SHARD_NAMES, f"{RESULTS}0", "shards/train.json")),
    *(f"{UNFINISHED}/tokens/000000.{last}" for last in ("json", *SPLITS)),
)  # fmt: skip
Watch = Callable[[str, int, Iterable[Any]], Iterable[Any]]


def unwatched(what: str, total: int, results: Iterable[Any]) -> Iterable[Any]:
    """What watches nothing: others show how many results of a stage have come."""
    return results


def prepare(
    config: DataConfig, folder: epath.Path, run: Map = map, watch: Watch = unwatched, say: Callable[[str], None] = lambda sentence: None
) -> tuple[Manifest, bool]:
    """Prepares the config's source in a folder, or goes on with it: (what the folder holds, whether it was whole before).

    run: a map over workers. say: is told in a sentence what the user should know.
    Raises UserError as sources and tokenizers do, if the folder holds something else, whole or begun, and if there are too few tokens for rows to
    train on and to hold out. Whatever ends it, the same call goes on where it was, and the folder is not whole before it is finished.
    """
    folder = files.absolute(folder)
    with files.writing(folder):
        if any(places.reads(config, folder / name) for name in WRITTEN):
            raise UserError(f"data.source {config.source!r} would read what is written into {folder} as text: name another folder as --output.")
        outputs.refuse_others(folder)
    with outputs.alone(folder):
        # Before hours are spent on reading.
        outputs.refuse_another(folder, settings(config))
        _check_fractions(config)
        listing = sources.list_parts(config, run)
        with files.writing(folder):
            return _prepare(config, folder, listing, run, watch, say)


def _prepare(
    config: DataConfig, folder: epath.Path, listing: sources.Listing, run: Map, watch: Watch, say: Callable[[str], None]
) -> tuple[Manifest, bool]:
    """The same, of what is listed, by the only process that is at it."""
    plan = make_plan(config, listing.parts)
    outputs.refuse_another(folder, plan)
    if (folder / MANIFEST).exists():
        return _whole(folder, run, watch), True
    outputs.begin(folder, plan, say)
    if config.packing != "wrap" and (alone := single_texts(listing.parts)):
        say(
            f"warning: data.packing = {config.packing!r} keeps documents apart, and in {' and '.join(alone)} there is only one: a file of text is a "
            "single document, however many lines it has; to make a document of each line, turn it into JSON lines (docs/DATA.md)."
        )
    tokenizer = _tokenizer(config, listing.parts, folder / UNFINISHED / TOKENIZER, run, watch)
    job = Job(config, str(folder), records.digest_of_values([plan, tokenizer.fingerprint]))
    numbered = list(enumerate(listing.parts))
    streams = list(watch("parts tokenised", len(numbered), run(functools.partial(stages.tokenise, job), numbered)))
    try:
        everything = [stream for of_part in streams for stream in of_part.values()]
        if not any(stream.characters for stream in everything):
            raise sources.no_text(config, sum(stream.empty for stream in everything))
        layouts = {split: lay_out(config, tokenizer.vocab_size, streams, split) for split in SPLITS}
        check_sizes(config, layouts)
    except UserError:  # this plan comes to nothing, and must not be in the way of one that is put right
        outputs.take_away(folder / UNFINISHED, but=("lock",))
        raise
    fillings = [filling for layout in layouts.values() for filling in layout.fillings]
    shards, counts = _fill(job, fillings, tokenizer.vocab_size, run, watch)
    splits = {
        split: _counts(job, layout, [of_part[split] for of_part in streams if split in of_part], listing.empty_documents.get(split, 0))
        for split, layout in layouts.items()
        if layout.tokens
    }
    resolved = dataclasses.replace(config, tokenizer=tokenizer.name)
    if tokenizer.name == "sentencepiece":
        resolved = dataclasses.replace(resolved, vocab_size=tokenizer.vocab_size)
    manifest = Manifest(
        format=records.FORMAT,
        source=config.source,
        num_records=sum(split.num_records for split in splits.values()),
        record_length=config.sequence_length,
        num_characters=sum(split.num_characters for split in splits.values()),
        tokenizer_fingerprint=tokenizer.fingerprint,
        data_fingerprint=job.key,
        plan=plan,
        dtype=records.dtype_for(tokenizer.vocab_size),
        packing=config.packing,
        config=dataclasses.asdict(resolved),
        inputs=listing.inputs,
        splits=splits,
        shards=shards,
    )
    tokenizer.save(folder / TOKENIZER)
    files.write_whole(folder / TOKEN_COUNTS, json.dumps(counts) + "\n")
    records.write_manifest(folder, manifest)
    outputs.take_away(folder / UNFINISHED)
    return manifest, False


def make_plan(config: DataConfig, parts: list[sources.Part]) -> dict[str, Any]:
    """All that decides the records, before there is a tokenizer: two equal plans have equal records."""
    return settings(config) | {"text": records.digest_of_values([_content(part) for part in parts])}


def settings(config: DataConfig) -> dict[str, Any]:
    """A plan but for its text."""
    unused = {"tokenizer", "vocab_size"} if config.tokenizer_from else {"vocab_size"} if config.tokenizer != "sentencepiece" else set()
    plan = {f"data.{key}": value for key, value in dataclasses.asdict(config).items() if key not in {*OTHERWISE, *unused}}
    made = tokenizers.named(config).fingerprint if config.tokenizer_from else "made from the text"
    return {"format": records.FORMAT} | plan | {"tokenizer": made}


def _check_fractions(config: DataConfig) -> None:
    """Raises UserError for shares that leave nothing to hold out, or nothing to train on, where the source has no splits of its own."""
    held_out = config.valid_fraction + config.test_fraction
    if config.valid_fraction > 0 and held_out < 1:
        return
    own = places.find(config)
    if "valid" not in own and config.valid_fraction == 0:
        raise UserError(
            f"data.valid_fraction = {config.valid_fraction} holds nothing of {config.source!r} out, which has no validation split of its own: "
            "give a share, such as --config.data.valid_fraction=0.05."
        )
    held_out -= sum(share for split, share in (("valid", config.valid_fraction), ("test", config.test_fraction)) if split in own)
    if held_out >= 1:
        raise UserError(
            f"data.valid_fraction = {config.valid_fraction} and data.test_fraction = {config.test_fraction} leave nothing of {config.source!r} to "
            "train on: give smaller shares, such as --config.data.valid_fraction=0.05."
        )


def single_texts(parts: list[sources.Part]) -> list[str]:
    """The splits that hold a single document, which is a file of text."""
    uses = [use for part in parts for use in part.uses]
    found = {split: [use for use in uses if use.split in (split, "")] for split in SPLITS}
    return [split for split, mine in found.items() if all(use.span.is_text for use in mine) and sum(use.begins for use in mine) == 1]


def _content(part: sources.Part) -> list[Any]:
    """All that decides what is read of a part, but where it lies: a file that was moved is the same."""
    return [part.fractions, *(dataclasses.asdict(use) | {"span": [use.span.kind, use.span.first, use.span.last]} for use in part.uses)]


def _whole(folder: epath.Path, run: Map, watch: Watch) -> Manifest:
    """The manifest of a whole folder, if every byte is there. Removes what a kill may have left of its making."""
    manifest = records.read_manifest(folder)
    faults = watch("shards verified", len(manifest.shards), run(functools.partial(records.fault, str(folder)), manifest.shards))
    for shard, fault in zip(manifest.shards, faults, strict=True):
        if fault:
            raise UserError(f"{folder / shard.name} {fault}: put the right file back, or remove {folder} and prepare it again.")
    if tokenizers.load(folder / TOKENIZER).fingerprint != manifest.tokenizer_fingerprint:
        raise UserError(f"{folder / TOKENIZER} is not the tokenizer that {folder} was prepared with; put that one back.")
    records.read_token_counts(folder)
    outputs.take_away(folder / UNFINISHED)
    return manifest


def _tokenizer(config: DataConfig, parts: list[sources.Part], folder: epath.Path, run: Map, watch: Watch) -> tokenizers.Tokenizer:
    """The config's tokenizer, saved in a folder, where it is found by a preparation that goes on."""
    if (folder / "tokenizer.json").exists():
        with contextlib.suppress(UserError):  # damaged: it is made again
            return tokenizers.load(folder)
    if config.tokenizer_from:
        tokenizer = tokenizers.named(config)
    elif config.tokenizer == "byte":
        tokenizer = tokenizers.ByteTokenizer()
    else:
        tokenizer = _made(config, parts, run, watch)
    tokenizer.save(folder)
    return tokenizer


def _made(config: DataConfig, parts: list[sources.Part], run: Map, watch: Watch) -> tokenizers.Tokenizer:
    """A tokenizer made from the train split, or from a sample of a long one; it knows the characters of all splits."""
    join, counts, train, splits = sources.joiner(config), dict[str, int](), 0, set[str]()
    for survey in watch("parts surveyed", len(parts), run(functools.partial(stages.survey, config), parts)):
        train += survey.train
        splits |= survey.splits
        for character, number in survey.counts.items():
            counts[character] = counts.get(character, 0) + number
    counts[join] = counts.get(join, 0) - len(splits)  # the first document of a split is joined to none
    counts = {character: number for character, number in counts.items() if number > 0}
    train -= len(join)
    if train <= 0:
        raise UserError(
            f"the train split of {config.source!r} is empty: data.valid_fraction = {config.valid_fraction} and data.test_fraction = "
            f"{config.test_fraction} leave it no document."
        )
    if config.tokenizer != "sentencepiece":
        return tokenizers.from_sample(config, [], train, counts)
    fraction = unigram.TRAINING_CHARACTERS / max(train, 1)
    found = watch("parts sampled", len(parts), run(functools.partial(stages.sample, config, fraction), list(enumerate(parts))))
    texts = list(itertools.chain.from_iterable(found))
    sentences = texts if fraction < 1 else unigram.sentences("".join(texts)[len(join) :])
    return tokenizers.from_sample(config, sentences, train, counts)


def _fill(job: Job, fillings: list[Filling], vocabulary: int, run: Map, watch: Watch) -> tuple[list[records.Shard], list[int]]:
    """Writes all shards: (shards, how often each token is in those of the train split)."""
    files.write_whole(job.unfinished / outputs.SHARD_NAMES, json.dumps([filling.name for filling in fillings]))
    shards, counts = [], np.zeros(vocabulary, np.int64)
    filled: Filled
    for filled in watch("shards written", len(fillings), run(functools.partial(stages.fill, job), fillings)):
        shards.append(filled.shard)
        if filled.counts:
            counts += np.array(filled.counts)
    return shards, counts.tolist()


def _counts(job: Job, layout: Layout, streams: list[Stream], empty: int) -> records.SplitCounts:
    characters = sum(stream.characters for stream in streams)
    alone = job.config.packing != "wrap" or streams[0].alone
    return records.SplitCounts(
        num_records=layout.records,
        num_tokens=layout.tokens,
        num_characters=characters - (0 if alone else len(sources.joiner(job.config))),  # the first is joined to none
        num_documents=sum(stream.documents for stream in streams),
        tokens_dropped=layout.dropped,
        empty_documents=empty + sum(stream.empty for stream in streams),
    )
