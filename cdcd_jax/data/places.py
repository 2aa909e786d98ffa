"""Which files, embedded text or data set a config names, and the spans into which they are divided: by their sizes alone."""

import re

from etils import epath

from cdcd_jax.config import DataConfig, UserError, did_you_mean
from cdcd_jax.data import files, hub, json_lines, stretches
from cdcd_jax.data.spans import EMBEDDED, Span, king_james

Groups = list[tuple[Span, ...]]  # of spans that are read together, by one worker
PARTS = 128  # into so many groups a source is divided, within these bounds:
BYTES = (1 << 20, 1 << 24)
EXAMPLES = (256, 4096)
HUBS = ("tfds", "hf")
GIVE = (
    "name a path or glob of UTF-8 text files, for training, also a folder made by prepare, or an embedded text "
    f"({', '.join(EMBEDDED)}): --config.data.source=PLACE"
)
# What files and data sets call their splits, the usual word first.
WORDS = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


def find(config: DataConfig) -> dict[str, Groups]:
    """The spans of each split that the source has of its own, in order; all under "train" if it has none. Raises UserError if there is no source."""
    kind, colon, name = config.source.partition(":")
    if colon and kind in HUBS:
        return _data_set(kind, name, config)
    if config.valid_split and "{split}" not in config.source:
        raise UserError(
            f"data.valid_split = {config.valid_split!r} names a split of a data set, or of files with {{split}} in their names, and data.source "
            f"{config.source!r} has none: give --config.data.valid_split= and a share of the text is held out."
        )
    if config.source in EMBEDDED:
        size = len(king_james())
        return {"train": [(Span("embedded", config.source, *ends),) for ends in _ranges(size, _share(size, BYTES))]}
    paths = _split_paths(config) if "{split}" in config.source else {"train": _paths(config.source)}
    sizes = {path: _size(path) for mine in paths.values() for path in mine}
    share = _share(sum(sizes.values()), BYTES)
    return {split: _grouped([(path, sizes[path]) for path in mine], share) for split, mine in paths.items()}


def reads(config: DataConfig, path: epath.Path) -> bool:
    """Whether a glob would read a file at that place, if one were there."""
    source = config.source
    if source.partition(":")[0] in HUBS or source in EMBEDDED:
        return False
    named = [source.replace("{split}", word) for words in _words(config).values() for word in words] if "{split}" in source else [source]
    return any(files.matches(files.absolute(files.locate(name)), path) for name in named)


def relative(config: DataConfig) -> list[str]:
    """The paths that begin in the folder where the trainer starts, and that other machines have only if they have that folder."""
    source = "" if config.source in EMBEDDED or config.source.partition(":")[0] in HUBS else config.source
    return [path for path in (source, config.tokenizer_from) if path and "://" not in path and not path.startswith(("/", "~"))]


def _share(total: int, bounds: tuple[int, int]) -> int:
    return min(max(total // PARTS, bounds[0]), bounds[1])


def _ranges(size: int, share: int) -> list[tuple[int, int]]:
    """Equal ones, none larger than the share."""
    number = -(-size // share)
    return [(size * i // number, size * (i + 1) // number) for i in range(number)]


def _kind(path: epath.Path) -> str:
    return "lines" if json_lines.is_json(path.name) else "text"


def _size(path: epath.Path) -> int:
    with files.reading(f"data.source file {str(path)!r}"):
        return path.stat().length


def _grouped(sized: list[tuple[epath.Path, int]], share: int) -> Groups:
    """Large files in ranges, if they can be read from the middle; small ones of one kind together."""
    groups: Groups = []
    room = 0
    for path, size in sized:
        kind, name = _kind(path), str(path)
        if size > share and not stretches.is_compressed(name):
            groups += [(Span(kind, name, *ends),) for ends in _ranges(size, share)]
            room = 0
        elif groups and size <= room:
            groups[-1] += (Span(kind, name),)
            room -= size
        else:
            groups.append((Span(kind, name),))
            room = share - size
    return groups


def _data_set(kind: str, name: str, config: DataConfig) -> dict[str, Groups]:
    if kind == "tfds":
        examples = hub.tfds_splits(name, config.text_key)
        chosen = _chosen(list(examples), config)
        share = _share(sum(examples[theirs] for theirs in chosen.values()), EXAMPLES)
        return {
            ours: [(Span(kind, name, *ends, theirs),) for ends in _ranges(examples[theirs], share)] for ours, theirs in chosen.items()
        }
    arrows = hub.hf_splits(name, config.text_key)
    chosen = _chosen(list(arrows), config)
    share = _share(sum(number for theirs in chosen.values() for _, number in arrows[theirs]), EXAMPLES)
    return {
        ours: [(Span(kind, arrow, *ends),) for arrow, number in arrows[theirs] for ends in _ranges(number, share)] for ours, theirs in chosen.items()
    }


def _chosen(splits: list[str], config: DataConfig) -> dict[str, str]:
    """Our splits to a data set's own."""
    chosen = {ours: next((word for word in words if word in splits), "") for ours, words in WORDS.items()}
    if not chosen["train"]:
        raise UserError(f"data.source {config.source!r} has no split {'train'!r}, only {', '.join(map(repr, splits)) or 'none'}.")
    if config.valid_split:
        if config.valid_split not in splits or config.valid_split == chosen["train"]:
            near = did_you_mean(config.valid_split, [split for split in splits if split != chosen["train"]])
            raise UserError(f"data.valid_split = {config.valid_split!r} is no split of {config.source!r} that can be held out{near}.")
        chosen["valid"] = config.valid_split
    if chosen["test"] == chosen["valid"]:
        chosen["test"] = ""
    return {ours: theirs for ours, theirs in chosen.items() if theirs}


def _words(config: DataConfig) -> dict[str, tuple[str, ...]]:
    """What the files of each split are called: by data.valid_split, what is held out."""
    return WORDS | ({"valid": (config.valid_split,)} if config.valid_split else {})


def _split_paths(config: DataConfig) -> dict[str, list[epath.Path]]:
    """The files of each split, of a source with {split} in it. What data.valid_split names is no test as well."""
    source, found = config.source, dict[str, list[epath.Path]]()
    for split, words in _words(config).items():
        named = [source.replace("{split}", word) for word in words]
        found[split] = next((paths for paths in map(_matching, named) if paths), [])
        if not found[split] and split != "test":
            raise UserError(
                f"data.source {source!r} matches no file for {split}: there is no {' and no '.join(map(repr, named))}; say where they are, "
                "with {split} for the split: --config.data.source='PATH/{split}.txt'."
            )
    if found["valid"] == found["train"]:
        raise UserError(f"data.valid_split = {config.valid_split!r} names the training files of {source!r}, which cannot be held out as well.")
    if found["test"] == found["valid"]:
        found["test"] = []
    return {split: paths for split, paths in found.items() if paths}


def _matching(source: str) -> list[epath.Path]:
    """The file of that name, or those that a glob of that name matches."""
    path = files.locate(source)
    with files.reading(f"data.source {source!r}"):
        kind = files.kind(path)
        return [path] if kind == "file" else files.matching(path) if kind is None and any(c in source for c in "*?[") else []


def _paths(source: str) -> list[epath.Path]:
    if found := _matching(source):
        return found
    path = files.locate(source)
    kind = files.kind(path)
    if kind == "directory":
        raise UserError(f"data.source {source!r} is a directory{_hint(path)}.")
    if kind is not None:
        raise UserError(f"data.source {source!r} is not a regular file; name a file of UTF-8 text.")
    if braces := re.search(r"\{.*?\}", source):  # "{split}" itself is no business of this function
        raise UserError(f"data.source {source!r} does not exist; for files of each split write '{{split}}', which {braces[0]!r} is not.")
    if any(c in source for c in "*?["):
        raise UserError(f"data.source {source!r} matches no file; {GIVE}.")
    scheme, colon, _ = source.partition(":")
    if colon and scheme.isalnum():
        raise UserError(f"data.source {source!r} does not exist, and {scheme!r} is no kind of data set{did_you_mean(scheme, HUBS)}.")
    if any(c in source for c in "/\\.~"):
        raise UserError(f"data.source {source!r} does not exist; {GIVE}.")
    raise UserError(f"data.source {source!r} is neither an embedded text{did_you_mean(source, EMBEDDED)} nor a file or folder; {GIVE}.")


def _hint(path: epath.Path) -> str:
    if (path / "manifest.json").exists():
        return " of prepared data, from which one trains; to prepare data, name a text"
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return f" of a saved data set: write 'hf:{path}'"
    return f"; name a file or a glob of files, such as {str(path / '*.txt')!r}"
