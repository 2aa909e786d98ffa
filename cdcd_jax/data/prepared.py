"""A prepared folder, opened: that it is whole and fits the config, and its records, which are rows of tokens, by their numbers.

The manifest is there only when all else is, and names what all else must be: its tokenizer, and each shard's size and digest. A bucket's shards are
copied to this machine, where they are known by their content.
"""

import contextlib
import dataclasses
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from jaxtyping import Int

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import files, places, records, tokenizers
from cdcd_jax.data.records import Manifest, Shard
from cdcd_jax.data.spans import EMBEDDED

RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"  # ArrayRecord's own words for it
THREADS = 16  # hashing frees Python's lock; a bucket or a network disk answers many requests as fast as one
ABANDONED = 24 * 3600.0  # seconds after which a shard that is not whole is no copy under way; a slow bucket sends one in minutes
ANEW = "prepare the text anew, with python -m cdcd_jax.prepare into another folder"


def is_folder(source: str) -> bool:
    """Whether data.source names a folder, which must then be a prepared one. Raises UserError where that cannot be found out."""
    if source in EMBEDDED or source.partition(":")[0] in places.HUBS:
        return False
    with files.reading(f"data.source {source!r}"):
        return files.kind(files.locate(source)) == "directory"


def open_folder(config: DataConfig) -> "Folder":
    """The prepared folder that data.source names; its records are not read yet.

    Raises UserError if it is none, if its preparation is not finished, if its manifest, tokenizer or counts are damaged, if a shard is missing or of
    another size, and if the config asks for other rows than it holds.
    """
    path = files.locate(config.source)
    with files.reading(f"data.source {config.source!r}"):
        return _open(path, config)


def open_as_made(place: epath.PathLike) -> "Folder":
    """A prepared folder, with the config that it was made with: to look into it. Raises UserError as `open_folder` does."""
    path = files.locate(place)
    about = records.read_manifest(path).config if (path / records.MANIFEST).exists() else {}
    return open_folder(DataConfig(**about | {"source": str(place), "tokenizer_from": ""}))


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
    sizes = files.sizes(path)
    for shard in manifest.shards:
        if (size := sizes.get(shard.name)) != shard.bytes:
            fault = "is missing" if size is None else f"has {size:,} bytes instead of {shard.bytes:,}"
            raise UserError(f"the shard {path / shard.name} {fault}: put the right one back, or {ANEW}.")
    counts = records.read_token_counts(path)
    if len(counts) != tokenizer.vocab_size:
        raise UserError(f"{path / records.TOKEN_COUNTS} counts {len(counts)} tokens, and the tokenizer has {tokenizer.vocab_size}: {ANEW}.")
    return Folder(path, manifest, tokenizer, counts)


def _check_config(config: DataConfig, manifest: Manifest, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises UserError where the config asks for other rows, or for another tokenizer."""
    made = {"sequence_length": manifest.record_length, "packing": manifest.packing}
    made |= {key: manifest.config[key] for key in ("alphabet", "text_key", "split", "valid_fraction", "test_fraction", "valid_split")}
    made["tokenizer"] = tokenizer.name
    if tokenizer.name == "sentencepiece":
        made["vocab_size"] = tokenizer.vocab_size
    for key, there in made.items():
        if there != (here := getattr(config, key)):
            raise UserError(
                f"{config.source!r} was prepared with data.{key} = {there!r}, and this config has {here!r}: "
                f"give --config.data.{key}={there}, or {ANEW}."
            )
    if config.tokenizer_from and tokenizers.named(config).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"{config.source!r} was prepared with another tokenizer than that in {config.tokenizer_from!r}: leave data.tokenizer_from out, or {ANEW}."
        )


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
        if shard.name not in self._places:
            path = self.path / shard.name
            place, fault = _cached(path, shard) if files.in_bucket(path) else (path, records.fault(str(self.path), shard))
            if fault:
                raise UserError(f"the shard {path} {fault}: put the right one back, or {ANEW}.")
            self._places[shard.name] = str(place)
        return self._places[shard.name]


class Records:
    """The records of some shards, one shard after the other: pipeline.Rows. A shard is opened when it is first read, and stays open."""

    def __init__(self, folder: Folder, shards: list[Shard]):
        _allow_open_files(len(folder.manifest.shards))
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
        if number not in self._readers:
            self._readers[number] = self._opened(self._shards[number])
        try:
            # As a range of one: a list of records takes ArrayRecord a time that grows with the shard, fifty times as much.
            return self._readers[number].read(i, i + 1)[0]
        except RuntimeError as error:  # ArrayRecord raises this whatever it is
            path = self._folder.path / self._shards[number].name
            raise UserError(f"the shard {path} cannot be read any more ({str(error).partition(';')[0]}).") from error

    def _opened(self, shard: Shard) -> ArrayRecordReader:
        reader = ArrayRecordReader(self._folder.local(shard), RANDOM_ACCESS, file_reader_buffer_size=2048)
        if reader.num_records() != shard.num_records:  # ArrayRecord says no more when it cannot open a file
            path = self._folder.path / shard.name
            raise UserError(f"the shard {path} cannot be opened any more: it is gone or changed, or too many files are open.")
        return reader


def _allow_open_files(number: int) -> None:
    """Lets this process keep so many files open, and some hundred others: the system's usual limit is 1,024, which it allows to be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _remove_abandoned(cache: epath.Path) -> None:
    """Removes what copies that were killed have left: what nobody has written to for so long is no other process's copy under way."""
    for left in cache.glob(f"{files.partial_name('*')}*"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it as well, or its copy is finished
            if time.time() - left.stat().mtime > ABANDONED:
                left.unlink()


def _cached(path: epath.Path, shard: Shard) -> tuple[epath.Path, str]:
    """The copy on this machine of a bucket's shard, and what is wrong with it. It is named by its content, and made again if it is not that."""
    cache = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cdcd_jax" / "shards"
    copy, named = cache / shard.sha256, dataclasses.replace(shard, name=shard.sha256)
    if not records.fault(str(cache), named):
        return copy, ""
    try:
        _remove_abandoned(cache)
        with files.filling(copy, cache) as partial:
            path.copy(partial, overwrite=True)
    except files.failures() as error:
        raise files.failed(error, f"the shard {path} cannot be copied to {copy}: {files.reason(error)}.") from error
    return copy, records.fault(str(cache), named)
