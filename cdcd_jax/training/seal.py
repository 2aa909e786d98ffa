"""The seal of a checkpoint: the list of its files, each with size and digest, so that whatever changes later is noticed and named.

orbax and tensorstore notice some damages and read on over others: a byte flipped in an uncompressed chunk, a file of another checkpoint, a
position in the data that is another number. The seal is the last file that a save writes, and covers all others.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import fsspec
from etils import epath

from cdcd_jax.data import files

NAME = "seal.json"
READERS = 16  # threads: hashing frees Python's lock, and files in a bucket or on a network disk are slow one by one


class File(NamedTuple):
    """A file as a listing shows it: its bytes, and the MD5 that a bucket has stored of it, or None."""

    size: int
    md5: str | None


def listing(folder: epath.Path) -> dict[str, File]:
    """Every file below a folder, by its path there; on a disk or in a bucket, of which no older listing is believed."""
    system, root = fsspec.url_to_fs(str(folder))
    system.invalidate_cache()
    root = root.rstrip("/")
    return {path[len(root) + 1 :]: File(info["size"], _stored_md5(info)) for path, info in system.find(root, detail=True).items()}


def write(folder: epath.Path, step: int) -> None:
    """Seals the folder of a step as it is now. An object whose MD5 the bucket tells is not read for it."""
    digests = _each(lambda item: f"md5:{item[1].md5}" if item[1].md5 else _digest(folder / item[0], "sha256"), sorted(listing(folder).items()))
    content = {"step": step, "files": {name: [file.size, digest] for (name, file), digest in digests}}
    (folder / NAME).write_bytes(_bytes(content))


def faults(folder: epath.Path, step: int) -> list[str]:
    """What is wrong with the folder of a step, a phrase for each file; empty if every byte is as it was sealed.

    Raises what access raises (files.failures) where the folder cannot be reached just now: that is no damage.
    """
    found = listing(folder)
    if found.pop(NAME, None) is None:
        return [f"{NAME} is missing"]
    try:
        there = (folder / NAME).read_bytes()
        content = json.loads(there)
        whole = isinstance(content, dict) and content.pop("digest", None) is not None and _bytes(content) == there
    except OSError as error:
        return [f"{NAME} {_unreadable(error)}"]
    except ValueError:  # no JSON, or no text
        whole = False
    if not whole:
        return [f"{NAME} has another content than was saved"]
    if content["step"] != step:
        return [f"{NAME} is that of step {content['step']}"]
    sealed = {name: (size, digest) for name, (size, digest) in content["files"].items()}
    wrong = {name: "is not part of the checkpoint" for name in found.keys() - sealed.keys()}
    wrong |= {name: "is missing" for name in sealed.keys() - found.keys()}
    sizes = [(name, found[name].size, size) for name, (size, _) in sealed.items() if name in found]
    wrong |= {name: f"has {there} bytes instead of {size}" for name, there, size in sizes if there != size}
    rest = [(name, digest) for name, (_, digest) in sealed.items() if name not in wrong]
    wrong |= {name: fault for (name, _), fault in _each(lambda item: _compare(folder / item[0], item[1], found[item[0]]), rest) if fault}
    return [f"{name} {fault}" for name, fault in sorted(wrong.items())]


def _compare(path: epath.Path, sealed: str, file: File) -> str:
    kind = sealed.partition(":")[0]
    try:
        same = (f"md5:{file.md5}" if kind == "md5" and file.md5 else _digest(path, kind)) == sealed
    except OSError as error:
        return _unreadable(error)
    return "" if same else "has another content than was saved"


def _unreadable(error: OSError) -> str:
    """A fault of the file's own; what says nothing about the file, a bucket that is busy, is raised again."""
    if files.transient(error):
        raise error
    return f"cannot be read ({error.strerror or error})"


def _digest(path: epath.Path, kind: str) -> str:
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, kind).hexdigest()}"  # type: ignore[arg-type]


def _bytes(content: dict[str, Any]) -> bytes:
    """The seal's own file, in which a digest covers the rest: what is there must be what would be written, to the byte."""
    return json.dumps(content | {"digest": "sha256:" + hashlib.sha256(json.dumps(content).encode()).hexdigest()}, indent=0).encode()


def _stored_md5(info: dict[str, Any]) -> str | None:
    """Hexadecimal. Cloud Storage tells it of whatever was written in one piece; S3's ETag is one unless it has another form."""
    if stored := info.get("md5Hash"):
        return base64.b64decode(stored).hex()
    tag = str(info.get("ETag", "")).strip('"')
    return tag if re.fullmatch("[0-9a-f]{32}", tag) else None


def _each(function: Any, items: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Each item with what the function makes of it."""
    items = list(items)
    with ThreadPoolExecutor(READERS) as pool:
        return list(zip(items, pool.map(function, items), strict=True))
