"""A file's bytes, a block at a time, so that no file is ever in memory whole: of .gz and .zst the unpacked ones, of others also those of a stretch.

A large file is read in stretches, by several workers at once: whatever bytes one was asked for, it begins where a format allows a cut, and one ends
where the next begins.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import zstandard
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data import files

BLOCK = 1 << 20  # bytes read at a time
COMPRESSED = (".gz", ".zst")


def is_compressed(name: str) -> bool:
    """Whether a file can be read from its beginning only."""
    return name.endswith(COMPRESSED)


def read_stretch(
    name: str, first: int, last: int, find: Callable[[str, int], int], see: Callable[[bytes], None]
) -> tuple[int, Iterator[bytes]]:
    """Where bytes [first, last) begin, once both ends are moved to where `find` allows a cut, and their blocks; of all of a file, unpacked.

    find: the next such place at or after a byte of a file. see: called with every block of the file as it lies there, if all of it is read.
    Raises UserError, naming the byte, for a file that cannot be read or unpacked.
    """
    if not (first or last):
        return 0, _unpacked(name, see)
    start = _place(name, first, find)
    return start, between(name, start, _place(name, last, find))


def digest_file(name: str, see: Callable[[bytes], None]) -> None:
    """Shows a file's bytes to `see`, a block at a time."""
    for block in blocks_from(name):
        see(block)


def bad_file(name: str, what: str) -> UserError:
    """The error of a file that cannot be used."""
    return UserError(f"data.source file {name!r} {what}.")


def blocks_from(name: str, start: int = 0) -> Iterator[bytes]:
    """A file's bytes from some place on, as they lie there."""
    with files.reading(f"data.source file {name!r}"), epath.Path(name).open("rb") as file:
        file.seek(start)
        while block := file.read(BLOCK):
            yield block


def between(name: str, start: int, stop: int) -> Iterator[bytes]:
    """A file's bytes [start, stop), as they lie there."""
    left = stop - start
    for block in blocks_from(name, start) if left else ():
        yield block[:left]
        left -= len(block)
        if left <= 0:
            return


def seen_by(blocks: Iterable[bytes], see: Callable[[bytes], None]) -> Iterator[bytes]:
    """The same blocks, each shown to `see` on its way."""
    for block in blocks:
        see(block)
        yield block


def _place(name: str, nominal: int, find: Callable[[str, int], int]) -> int:
    """Where a stretch that was to begin at a byte begins, or the end of the file."""
    return find(name, nominal) if nominal > 0 else 0


def _unpacked(name: str, see: Callable[[bytes], None]) -> Iterator[bytes]:
    blocks = seen_by(blocks_from(name), see)
    if name.endswith(".gz"):
        return _unpack(name, blocks, lambda: zlib.decompressobj(31), "gzip")  # 31: with gzip's header and checksum
    if name.endswith(".zst"):
        return _unpack(name, blocks, lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(), "Zstandard")
    return blocks


def _unpack(name: str, blocks: Iterable[bytes], begin: Callable[[], Any], kind: str) -> Iterator[bytes]:
    """A compressed file may hold several streams, one after the other. What is fed to one is small, so that what comes out of it is as well."""
    stream, done, small = begin(), 0, BLOCK >> 5
    for block in blocks:
        for feed in (block[i : i + small] for i in range(0, len(block), small)):
            while feed and (stream is not None or feed.strip(b"\0")):  # zeros may fill up the end
                stream = stream or begin()
                try:
                    data = stream.decompress(feed)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise bad_file(name, f"is no whole {kind} file (after {done:,} bytes of text: {error})") from error
                done += len(data)
                yield from (data[i : i + BLOCK] for i in range(0, len(data), BLOCK))
                feed, stream = stream.unused_data if stream.eof else b"", None if stream.eof else stream
    if stream is not None:
        raise bad_file(name, f"is truncated: its {kind} stream ends in the middle, after {done:,} bytes of text")
