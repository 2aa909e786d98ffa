"""From a source to a folder of records: the plan, the stages one after the other, and how a preparation that was interrupted goes on.

    OUTPUT/unfinished/plan.json     what decides the records: who has another plan is refused, once any tokens are finished
    OUTPUT/unfinished/tokenizer/    made first
    OUTPUT/unfinished/tokens/       the tokens of each part of the source, with a note (stages.py)
    OUTPUT/unfinished/shards.json   the names of the shards that are written, so that those of a plan given up can be taken away
    OUTPUT/unfinished/shards/       a note for each shard that is written
    OUTPUT/                         as records.py says; manifest.json makes it whole, and then unfinished/ goes

Nothing here depends on the number of workers, nor on whether they are processes or machines.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import files, places, records, sources, stages, tokenizers, unigram
from cdcd_jax.data.layout import Layout, check_sizes, lay_out
from cdcd_jax.data.records import MANIFEST, RESULTS, TOKEN_COUNTS, TOKENIZER, UNFINISHED, Manifest
from cdcd_jax.data.splits import SPLITS
from cdcd_jax.data.stages import Filled, Filling
from cdcd_jax.data.streams import Job, Stream
from cdcd_jax.data.workers import Map

OTHERWISE = ("source", "tokenizer_from", "pad_insertion")  # keys of the config that a plan holds by content, or that training alone needs
SHARD_NAMES = "shards.json"
FINISHING = (TOKEN_COUNTS, "tokenizer.json", "spm.model")  # what is written before the manifest, each time anew
OURS = ("lock", "plan.json", TOKENIZER, "tokens", SHARD_NAMES, "shards")  # what is written into unfinished/, besides RESULTS
# Of what is written one name of each kind, to see that no glob takes it for a text.
WRITTEN = (
    MANIFEST, TOKEN_COUNTS, f"{TOKENIZER}/tokenizer.json", f"{TOKENIZER}/spm.model", *(f"{split}-00000-of-00001.array_record" for split in SPLITS),
    f"{UNFINISHED}/lock", f"{UNFINISHED}/plan.json", f"{UNFINISHED}/{SHARD_NAMES}", f"{UNFINISHED}/{RESULTS}0", f"{UNFINISHED}/shards/train.json",
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

    run: a map over workers. say: is told in a sentence if what was begun cannot be gone on with.
    Raises UserError as sources and tokenizers do, if the folder holds something else, whole or begun, and if there are too few tokens for rows to
    train on and to hold out. Whatever ends it, the same call goes on where it was, and the folder is not whole before it is finished.
    """
    folder = files.absolute(folder)
    with files.writing(folder):
        if any(places.reads(config.source, folder / name) for name in WRITTEN):
            raise UserError(f"data.source {config.source!r} would read what is written into {folder} as text: name another folder as --output.")
        _refuse_others(folder)
    with _alone(folder):
        _refuse_another(folder, settings(config))  # before hours are spent on reading
        listing = sources.list_parts(config, run)
        with files.writing(folder):
            return _prepare(config, folder, listing, run, watch, say)


def _prepare(
    config: DataConfig, folder: epath.Path, listing: sources.Listing, run: Map, watch: Watch, say: Callable[[str], None]
) -> tuple[Manifest, bool]:
    """The same, of what is listed, by the only process that is at it."""
    plan = make_plan(config, listing.parts)
    _refuse_another(folder, plan)
    if (folder / MANIFEST).exists():
        return _whole(folder, run, watch), True
    _begin(folder, plan, say)
    tokenizer = _tokenizer(config, listing.parts, folder / UNFINISHED / TOKENIZER, run, watch)
    job = Job(config, str(folder), _digest([plan, tokenizer.fingerprint]))
    numbered = list(enumerate(listing.parts))
    streams = list(watch("parts tokenised", len(numbered), run(functools.partial(stages.tokenise, job), numbered)))
    try:
        everything = [stream for of_part in streams for stream in of_part.values()]
        if not any(stream.characters for stream in everything):
            raise sources.no_text(config, sum(stream.empty for stream in everything))
        layouts = {split: lay_out(config, tokenizer.vocab_size, streams, split) for split in sources.SPLITS}
        check_sizes(config, layouts)
    except UserError:  # this plan comes to nothing, and must not be in the way of one that is put right
        _take_away(folder / UNFINISHED, but=("lock",))
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
    _take_away(folder / UNFINISHED)
    return manifest, False


def make_plan(config: DataConfig, parts: list[sources.Part]) -> dict[str, Any]:
    """All that decides the records, before there is a tokenizer: two equal plans have equal records."""
    return settings(config) | {"text": _digest([_content(part) for part in parts])}


def settings(config: DataConfig) -> dict[str, Any]:
    """A plan but for its text."""
    unused = {"tokenizer", "vocab_size"} if config.tokenizer_from else {"vocab_size"} if config.tokenizer != "sentencepiece" else set()
    plan = {f"data.{key}": value for key, value in dataclasses.asdict(config).items() if key not in {*OTHERWISE, *unused}}
    made = tokenizers.named(config).fingerprint if config.tokenizer_from else "made from the text"
    return {"format": records.FORMAT} | plan | {"tokenizer": made}


def _content(part: sources.Part) -> list[Any]:
    """All that decides what is read of a part, but where it lies: a file that was moved is the same."""
    return [part.fractions, *(dataclasses.asdict(use) | {"span": [use.span.kind, use.span.first, use.span.last]} for use in part.uses)]


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What differs between two plans, in words; of what changes the text, the text itself is not named as well."""
    words = {"text": "the text is another", "tokenizer": "the tokenizer is another", "format": "it was made by another version"}
    keys = [key for key in here if there.get(key) != here[key]]
    if any(key.removeprefix("data.") in ("text_key", "alphabet", "split", "valid_fraction", "test_fraction", "valid_split") for key in keys):
        keys = [key for key in keys if key != "text"]
    return ", and ".join(words.get(key, f"{key} = {there.get(key)!r} there and {here[key]!r} here") for key in keys)


def _refuse_others(folder: epath.Path) -> None:
    """Raises UserError for a folder with anything in it that is no preparation, and for what is no folder."""
    if files.kind(folder) not in (None, "directory"):
        raise UserError(f"{folder} is a file; name a folder as --output.")
    # What stands for a folder in a bucket may be an object of the folder's own name.
    found = [path.name for path in folder.iterdir() if path != folder] if folder.exists() else []
    begun = (folder / UNFINISHED / "plan.json").exists() or found == [UNFINISHED] and _ours(folder / UNFINISHED)[1]
    if found and MANIFEST not in found and not begun:
        raise UserError(f"{folder} is not empty and holds no prepared data (no {MANIFEST}); name a new folder as --output.")


def _refuse_another(folder: epath.Path, plan: dict[str, Any]) -> None:
    """Raises UserError for a folder that another plan has made, or has finished a part of: what may have taken hours is not given up for a typo."""
    if (folder / MANIFEST).exists():
        there, what, way = records.read_manifest(folder).plan, "is prepared, but otherwise", ""
    else:
        there, what, way = _read(folder / UNFINISHED / "plan.json"), "is partly prepared, but otherwise", f", or remove {folder} to begin anew"
        if not isinstance(there, dict) or not _finished(folder):
            return
    if differences := _differences(there, plan):
        raise UserError(f"{folder} {what} ({differences}); name another folder as --output{way}.")


def _finished(folder: epath.Path) -> bool:
    """Whether the tokens of any part are finished."""
    tokens = folder / UNFINISHED / "tokens"
    return tokens.exists() and any(path.name.endswith(".json") and not path.name.startswith(".") for path in tokens.iterdir())


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[None]:
    """Keeps a second process of this machine from the same folder, and leaves nothing behind if nothing else was written.

    The lock is the kernel's, so a kill leaves none.
    """
    if files.in_bucket(folder) or (folder / MANIFEST).exists():
        yield
        return
    unfinished = folder / UNFINISHED
    made = list(itertools.takewhile(lambda path: not path.exists(), (unfinished, *unfinished.parents)))
    with contextlib.ExitStack() as stack:
        with files.writing(folder):
            unfinished.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((unfinished / "lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(file.fileno()).st_nlink:
                raise BlockingIOError("who had it took it away meanwhile, and another may be there")
        except BlockingIOError as error:
            raise UserError(f"another process prepares {folder} at this moment; wait for it, or name another --output.") from error
        try:
            yield
        finally:
            if unfinished.exists() and [path.name for path in unfinished.iterdir()] == ["lock"]:
                (unfinished / "lock").unlink()
                with contextlib.suppress(OSError):  # others may have written into them
                    for path in made:
                        path.rmdir()


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
    _take_away(folder / UNFINISHED)
    return manifest


def _begin(folder: epath.Path, plan: dict[str, Any], say: Callable[[str], None]) -> None:
    """Goes on with what was begun by the same plan; takes away what another plan left."""
    for left in (path for place in (folder, folder / TOKENIZER) if place.exists() for path in place.iterdir()):
        if left.name in FINISHING or left.name.startswith(tuple(map(files.partial_name, (*FINISHING, MANIFEST)))):
            left.unlink()
    path = folder / UNFINISHED / "plan.json"
    there = _read(path)
    if there == plan:
        return
    if isinstance(there, dict):
        say(f"{folder} is begun anew: {_differences(there, plan)}.")
    for name in _read(path.with_name(SHARD_NAMES)) or []:
        (folder / name).unlink(missing_ok=True)
    _take_away(path.parent, but=("lock", path.name))  # without its plan the folder would not be known for ours
    files.write_whole(path, json.dumps(plan, indent=2) + "\n")


def _ours(unfinished: epath.Path) -> tuple[list[epath.Path], bool]:
    """What of a folder `unfinished` was written here, and whether that is all of it."""
    found = [path for path in unfinished.iterdir() if path != unfinished] if unfinished.exists() else []
    begin = (RESULTS, f".{RESULTS}", *map(files.partial_name, OURS))
    ours = [path for path in found if path.name in OURS or path.name.startswith(begin)]
    return ours, len(ours) == len(found)


def _take_away(unfinished: epath.Path, but: tuple[str, ...] = ()) -> None:
    """Removes what was written here, and the folder if nothing else is in it."""
    ours, all_of_it = _ours(unfinished)
    for path in ours:
        if path.name not in but:
            path.rmtree() if files.kind(path) == "directory" else path.unlink()
    if all_of_it and not but and not files.in_bucket(unfinished) and unfinished.exists():
        unfinished.rmdir()


def _read(path: epath.Path) -> Any:
    """What a file of JSON holds; None if it is not there, or was not written by this program."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


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
    files.write_whole(job.unfinished / SHARD_NAMES, json.dumps([filling.name for filling in fillings]))
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
