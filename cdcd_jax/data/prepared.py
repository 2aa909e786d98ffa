"""A prepared folder, opened: that it is whole and fits the config, and its records, which are rows of tokens, by their numbers.

The manifest is there only when all else is, and names what all else must be: its tokenizer, and each shard's size and digest. A bucket's shards are
copied to this machine, where they are known by their content.
"""

import functools
import hashlib
import json
import os
import secrets
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from jaxtyping import Int

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import files, records, tokenizers
from cdcd_jax.data.records import Manifest, Shard

RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"  # ArrayRecord's own words for it
THREADS = 16  # hashing frees Python's lock; a bucket or a network disk answers many requests as fast as one
ANEW = "prepare the text anew, with python -m cdcd_jax.prepare into another folder"


def is_folder(source: str) -> bool:
    """Whether data.source names a folder, which must then be a prepared one. Raises UserError where that cannot be found out."""
    if source.startswith(("tfds:", "hf:")):
        return False
    try:
        return files.kind(files.locate(source)) == "directory"
    except files.failures() as error:
        raise UserError(f"data.source {source!r} cannot be read: {files.reason(error)}.") from error


def open_folder(config: DataConfig) -> "Folder":
    """The prepared folder that data.source names; its records are not read yet.

    Raises UserError if it is none, if its preparation is not finished, if its manifest, tokenizer or counts are damaged, if a shard is missing or of
    another size, and if the config asks for other rows than it holds.
    """
    path = files.locate(config.source)
    try:
        return _open(path, config)
    except files.failures() as error:
        raise UserError(f"data.source {config.source!r} cannot be read: {files.reason(error)}.") from error


def _open(path: epath.Path, config: DataConfig) -> "Folder":
    if not (path / records.MANIFEST).exists():
        if (path / records.UNFINISHED).exists():
            raise UserError(f"the preparation of {path} is not finished: give its python -m cdcd_jax.prepare command again, which goes on with it.")
        raise UserError(
            f"data.source {config.source!r} is a directory; name a file or a glob of files, such as {str(path / '*.txt')!r}, or a folder that "
            f"python -m cdcd_jax.prepare has made: this one has no {records.MANIFEST}."
        )
    manifest = records.read_manifest(path)
    tokenizer = tokenizers.load(path / records.TOKENIZER)
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise UserError(f"{path / records.TOKENIZER} is not the tokenizer that {path} was prepared with: put that one back, or {ANEW}.")
    _check_config(config, manifest, tokenizer)
    for shard in manifest.shards:
        there = path / shard.name
        if not there.exists():
            raise UserError(f"the shard {there} is missing: put it back, or {ANEW}.")
        if (size := there.stat().length) != shard.bytes:
            raise UserError(f"the shard {there} has {size:,} bytes instead of {shard.bytes:,}: put the whole one back, or {ANEW}.")
    return Folder(path, manifest, tokenizer, _token_counts(path, tokenizer))


def _check_config(config: DataConfig, manifest: Manifest, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises UserError where the config asks for other rows, or for another tokenizer."""
    made = {"sequence_length": manifest.record_length, "packing": manifest.packing, "alphabet": manifest.config["alphabet"]}
    made["tokenizer"] = tokenizer.name
    if tokenizer.name == "sentencepiece":
        made["vocab_size"] = tokenizer.vocab_size
    for key, there in made.items():
        if there != (here := getattr(config, key)):
            raise UserError(
                f"{config.source!r} was prepared with data.{key} = {there!r}, and this config has {here!r}: "
                f"give --config.data.{key}={there}, or {ANEW}."
            )
    if config.tokenizer_from:
        named = tokenizers.without_pad(tokenizers.load(files.locate(config.tokenizer_from)))
        if named.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{config.source!r} was prepared with another tokenizer than that in {config.tokenizer_from!r}: "
                f"leave data.tokenizer_from out, or {ANEW}."
            )


def _token_counts(path: epath.Path, tokenizer: tokenizers.Tokenizer) -> Int[np.ndarray, "V"]:
    there = path / records.TOKEN_COUNTS
    try:
        counts = np.array(json.loads(there.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{there} cannot be read ({error}): put it back, or {ANEW}.") from error
    if counts.shape != (tokenizer.vocab_size,) or counts.dtype.kind != "i" or counts.min() < 0:
        raise UserError(f"{there} does not hold a count for each of the {tokenizer.vocab_size} tokens: put it back, or {ANEW}.")
    return counts


class Folder:
    """An open prepared folder."""

    def __init__(self, path: epath.Path, manifest: Manifest, tokenizer: tokenizers.Tokenizer, token_counts: Int[np.ndarray, "V"]):
        self.path, self.manifest, self.tokenizer, self.token_counts = path, manifest, tokenizer, token_counts
        self._places: dict[str, str] = {}  # where a shard lies on this machine, once its content is verified

    def rows(self, split: str) -> "Records":
        """The records of a split."""
        return Records(self, [shard for shard in self.manifest.shards if shard.split == split])

    def verify(self, part: int, parts: int) -> None:
        """Hashes one of so many parts of the shards, and takes the others for hashed by as many other processes.

        A bucket's are copied here, all of them, and hashed on the way. Raises UserError, naming the first shard whose content is not what was
        prepared.
        """
        shards = self.manifest.shards
        here = shards if files.in_bucket(self.path) else shards[part::parts]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self.local, here))
        self._places = {shard.name: str(self.path / shard.name) for shard in shards} | self._places

    def local(self, shard: Shard) -> str:
        """Where a shard lies on this machine, its content verified."""
        path = self.path / shard.name
        if shard.name not in self._places:
            try:
                if not files.in_bucket(path) and _digest(path) != shard.sha256:
                    raise _another(path)
                self._places[shard.name] = _cached(path, shard) if files.in_bucket(path) else str(path)
            except files.failures() as error:
                raise UserError(f"the shard {path} cannot be read: {files.reason(error)}.") from error
        return self._places[shard.name]


class Records:
    """The records of some shards, one shard after the other: pipeline.Rows. Shards are opened when they are first read."""

    def __init__(self, folder: Folder, shards: list[Shard]):
        self._folder, self._shards = folder, shards
        self._ends = np.cumsum([shard.num_records for shard in shards], dtype=np.int64)
        self._readers: dict[int, ArrayRecordReader] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, indices: Int[np.ndarray, "n"]) -> dict[str, np.ndarray]:
        """Rows by their numbers, in any order. Raises UserError if a shard has changed since it was opened."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        within = indices - np.append(0, self._ends)[numbers]
        found = [self._record(number, i) for number, i in zip(numbers.tolist(), within.tolist(), strict=True)]
        return records.from_bytes(found, self._folder.manifest)

    def _record(self, number: int, i: int) -> bytes:
        shard = self._shards[number]
        if number not in self._readers:
            self._readers[number] = ArrayRecordReader(self._folder.local(shard), RANDOM_ACCESS, file_reader_buffer_size=2048)
        try:
            # As a range of one: a list of records takes ArrayRecord a time that grows with the shard, fifty times as much.
            return self._readers[number].read(i, i + 1)[0]
        except RuntimeError as error:  # ArrayRecord raises this whatever it is
            raise UserError(f"the shard {self._folder.path / shard.name} cannot be read any more ({str(error).partition(';')[0]}).") from error


def _another(path: epath.Path) -> UserError:
    return UserError(f"the shard {path} has another content than was prepared: put the right one back, or {ANEW}.")


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cached(path: epath.Path, shard: Shard) -> str:
    """The copy on this machine of a shard in a bucket: made if it is not there, and verified whenever it is used."""
    home = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    copy = home / "cdcd_jax" / "shards" / shard.sha256
    if copy.exists() and copy.stat().length == shard.bytes and _digest(copy) == shard.sha256:
        return str(copy)
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f"{files.partial_name(copy.name)}{secrets.token_hex(4)}")
    digest = hashlib.sha256()
    try:
        with path.open("rb") as source, partial.open("wb") as target:
            for block in iter(functools.partial(source.read, 1 << 24), b""):
                digest.update(block)
                target.write(block)
        if digest.hexdigest() != shard.sha256:
            raise _another(path)
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)
    return str(copy)
