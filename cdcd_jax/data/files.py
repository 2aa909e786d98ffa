"""Files on disk or in a bucket (gs://, s3://): where one lies, how one is written whole, and one sentence for whatever cannot be reached.

All access goes through etils.epath, which reaches buckets by fsspec. In a bucket there are no folders (a name may hold slashes), nothing can be
appended to, nothing is renamed in one stroke, and an object is seen whole or not at all.
"""

import contextlib
import fnmatch
import functools
import importlib.util
import logging
import re
import secrets
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator

import fsspec
from etils import epath

from cdcd_jax.config import TryAgain, UserError

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # what fsspec needs for each kind of bucket
SECONDS = 45.0  # for a bucket's first answer, the search for credentials and the packages' own retries included
# What these packages raise besides OSError: none of it is known before they are in use.
BEYOND = (
    ("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"), ("gcsfs.retry", "HttpError"),
    ("gcsfs.retry", "NonRetryableError"), ("google.auth.exceptions", "GoogleAuthError"),
)  # fmt: skip
# Of these, and of what they stand on, what tells of a connection that was lost or never made. The rest is refusal, or says its HTTP status.
CONNECTION = (
    ("aiohttp", "ClientConnectionError"), ("aiohttp", "ClientPayloadError"), ("botocore.exceptions", "ConnectionError"),
    ("botocore.exceptions", "HTTPClientError"), ("google.auth.exceptions", "TransportError"), ("requests.exceptions", "ConnectionError"),
    ("requests.exceptions", "Timeout"),
)  # fmt: skip
BUSY = (408, 429, 500, 502, 503, 504)  # the HTTP statuses of a store that has too much to do, or is being mended
# tensorstore raises a ValueError for everything; what happened stands in its text.
TOLD_BY_TENSORSTORE = re.compile(rf"\[(http_response_code='({'|'.join(map(str, BUSY))})'|curl_code='\d+')\]|^(UNAVAILABLE|DEADLINE_EXCEEDED):")


def in_bucket(path: epath.PathLike) -> bool:
    """Whether a path lies in a bucket."""
    return str(path).startswith(tuple(f"{scheme}://" for scheme in PACKAGES))


def locate(name: epath.PathLike) -> epath.Path:
    """The path of a file or folder, `~` expanded. It need not exist, but a bucket must.

    Raises UserError, naming the bucket, if it does not exist or refuses, if its package is not installed, for another kind of address, and for none;
    TryAgain if it does not answer in time, or answers that it cannot just now.
    """
    scheme, mark, rest = str(name).partition("://")
    if scheme and not mark:
        kind, colon, place = scheme.partition(":")
        if colon and kind in PACKAGES:
            raise UserError(f"{str(name)!r} is no place for files: did you mean {kind}://{place.lstrip('/')}?")
        return epath.Path(name).expanduser()
    if scheme not in PACKAGES:
        raise UserError(f"{str(name)!r} is no place for files: name a path on disk, gs://bucket/folder or s3://bucket/folder.")
    bucket = f"{scheme}://{rest.partition('/')[0]}"
    if bucket.endswith("/"):
        raise UserError(f"{str(name)!r} names no bucket: write {scheme}://bucket/folder.")
    _reach(bucket)
    return epath.Path(name)


@functools.cache
def _reach(bucket: str) -> None:
    """Asks a bucket whether it is there, once in a process, in a thread of its own: the search for credentials has no deadline."""
    scheme = bucket.partition(":")[0]
    package = PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{bucket} needs the package {package}: pip install {package}.")
    # What another process wrote meanwhile must be seen: listings would be remembered for ever.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    logging.getLogger(package).setLevel(logging.CRITICAL)  # the errors that it tells of at length are raised as well
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            epath.Path(bucket).stat()
        except failures() as error:
            answer.append(error)
        except (ImportError, ValueError) as error:  # the package is not whole, or sees that the name can be none of a bucket
            answer.append(error)
        else:
            answer.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not answer:
        raise TryAgain(f"the bucket {bucket} did not answer within {SECONDS:.0f} s: check its name, the network and this machine's credentials.")
    if isinstance(answer[0], FileNotFoundError):
        raise UserError(f"the bucket {bucket} does not exist, or this account may not see it: make it first, or name another.")
    if answer[0] is not None:
        advice = "" if transient(answer[0]) else ": check its name and this machine's credentials"
        raise failed(answer[0], f"the bucket {bucket} cannot be used ({reason(answer[0])}){advice}.") from answer[0]


def failures() -> tuple[type[Exception], ...]:
    """What access to a file may raise: OSError, and what the packages for buckets raise besides, as far as they are in use."""
    return (OSError, *_in_use(BEYOND))


def transient(error: BaseException) -> bool:
    """Whether a failure may be gone in a minute: a connection that was lost or timed out, a store that is busy. Not what refuses, or is missing."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
        return False
    # A broken pipe is not among them: it is a reader of our output that has gone, as `head` does.
    lost = (ConnectionResetError, ConnectionAbortedError, ConnectionRefusedError, TimeoutError, socket.gaierror)
    return any(isinstance(each, lost + _in_use(CONNECTION)) or _status(each) in BUSY or TOLD_BY_TENSORSTORE.search(str(each)) for each in chain)


def failed(error: BaseException, told: str) -> UserError | TryAgain:
    """What to raise for a failed access, of which `told` tells: TryAgain where it may be gone in a minute."""
    return TryAgain(told) if transient(error) else UserError(told)


def _in_use(names: tuple[tuple[str, str], ...]) -> tuple[type[Exception], ...]:
    """Those of the packages that were imported; one that a thread is importing just now may lack its names yet."""
    return tuple(getattr(sys.modules[module], name) for module, name in names if hasattr(sys.modules.get(module), name))


def _status(error: BaseException) -> int:
    """The HTTP status that a package's error carries; 0 for none."""
    response = getattr(error, "response", None)  # botocore's; what other packages have by this name is no dict
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    text = str(found or getattr(error, "code", None) or getattr(error, "status", None))  # gcsfs's, aiohttp's
    return int(text) if text.isdigit() else 0


def reason(error: Exception) -> str:
    """Why access failed, in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:300]


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turns a failure inside the block into the UserError, or TryAgain, that `what` (a path, or words with one) cannot be written, and why."""
    try:
        yield
    except failures() as error:
        raise failed(error, f"{what} cannot be written ({reason(error)}).") from error


@contextlib.contextmanager
def reading(what: object) -> Iterator[None]:
    """Turns a failure inside the block into the UserError, or TryAgain, that `what` (a path, or words with one) cannot be read, and why."""
    try:
        yield
    except failures() as error:
        raise failed(error, f"{what} cannot be read: {reason(error)}.") from error


def nearest(path: epath.Path) -> epath.Path:
    """Of a path on disk what is there already: itself, or the nearest of the folders above it. Of one in a bucket, where none need be, itself."""
    while not in_bucket(path) and not path.exists() and path != path.parent:
        path = path.parent
    return path


def output(name: str, ending: str) -> epath.Path:
    """The path of a file that will be written when long work is done. That it can be is tried now: an empty file is made and removed beside it.

    Its folder may be missing; that is then tried in what there is above it. Raises UserError for a name without that ending, for a folder, and as
    `locate` and `writing` do.
    """
    path = locate(name)
    with writing(path):
        if not path.name.endswith(ending) or kind(path) == "directory":
            raise UserError(f"{name!r} is no name for the file that will be written: take another, that ends in {ending}.")
        probe = nearest(path.parent) / f"{partial_name(path.name)}{secrets.token_hex(4)}"
        probe.write_bytes(b"")
        probe.unlink()
    return path


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Writes a file, whose folder is made if missing, so that a reader sees the old content or the new, never a part.

    Raises UserError, or TryAgain, as `writing` does.
    """
    data = content.encode() if isinstance(content, str) else content
    with writing(path):
        if in_bucket(path):
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{partial_name(path.name)}{secrets.token_hex(4)}")
        try:
            partial.write_bytes(data)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def filling(path: epath.Path, scratch: epath.Path) -> Iterator[epath.Path]:
    """For a large file: yields a place on this machine's disk to write it at, and moves it to `path` when the block ends without an error.

    scratch: a folder on the disk of `path`, where a kill may leave what was written. What is for a bucket is copied there, from a temporary folder.
    """
    if in_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            local = epath.Path(folder) / path.name
            yield local
            local.copy(path, overwrite=True)
        return
    scratch.mkdir(parents=True, exist_ok=True)
    partial = scratch / f"{partial_name(path.name)}{secrets.token_hex(4)}"
    written = False
    try:
        yield partial
        partial.replace(path)
        written = True
    finally:
        if not written:
            partial.unlink(missing_ok=True)


def partial_name(name: str) -> str:
    """How the names begin under which `write_whole` writes a file of that name; a kill may leave one behind."""
    return f".{name}.partial-"


def absolute(path: epath.Path) -> epath.Path:
    """The same place by its full name."""
    return path if in_bucket(path) else path.resolve()


def kind(path: epath.Path) -> str | None:
    """What lies there: "file", "directory", "other" (a pipe, say), or None for nothing. A link is what it points to."""
    try:
        return _filesystem(path).info(str(path))["type"]
    except (FileNotFoundError, NotADirectoryError):
        return None


def sizes(folder: epath.Path) -> dict[str, int]:
    """The bytes of each file in a folder, by its name, from one listing."""
    listed = _filesystem(folder).ls(str(folder), detail=True)
    return {about["name"].rstrip("/").rpartition("/")[2]: about["size"] for about in listed if about["type"] == "file"}


def matching(pattern: epath.Path) -> list[epath.Path]:
    """The files that a glob matches, in the order of their names. As in a shell, hidden names match only what begins with a dot itself.

    `**` stands for any number of folders.
    """
    if in_bucket(pattern):  # in one request, where epath would ask for every folder
        scheme, mark, _ = str(pattern).partition("://")
        listed = _filesystem(pattern).glob(str(pattern), detail=True)
        found = [epath.Path(scheme + mark + name) for name, about in listed.items() if about["type"] == "file"]
        found = [path for path in found if path.name[0] != "." or pattern.name[0] == "."]
    else:
        found = [path for path in _expand(pattern) if kind(path) == "file"]
    return sorted(set(found), key=str)


def matches(pattern: epath.Path, path: epath.Path) -> bool:
    """Whether `matching` would find a path, be it there or not."""
    return _match(pattern.parts, path.parts)


def _match(patterns: tuple[str, ...], names: tuple[str, ...]) -> bool:
    if not patterns or not names:
        return patterns in ((), ("**",)) and not names
    if patterns[0] == "**":
        return _match(patterns[1:], names) or names[0][0] != "." and _match(patterns, names[1:])
    shown = names[0][0] != "." or patterns[0][0] == "."
    return shown and fnmatch.fnmatchcase(names[0], patterns[0]) and _match(patterns[1:], names[1:])


def _filesystem(path: epath.Path) -> fsspec.AbstractFileSystem:
    """What epath itself stands on, for what it has no word for."""
    return fsspec.filesystem(str(path).partition("://")[0] if in_bucket(path) else "file")


def _expand(pattern: epath.Path) -> Iterator[epath.Path]:
    """The paths on disk that a glob matches; those of `**` may come twice."""
    if not any(c in str(pattern) for c in "*?["):
        if pattern.exists():
            yield pattern
        return
    for folder in (path for path in _expand(pattern.parent) if path.is_dir()):
        if pattern.name == "**":
            yield from _below(folder)
        elif any(c in pattern.name for c in "*?["):
            hidden = pattern.name.startswith(".")
            yield from (path for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern.name) and (hidden or path.name[0] != "."))
        elif (folder / pattern.name).exists():
            yield folder / pattern.name


def _below(folder: epath.Path) -> Iterator[epath.Path]:
    yield folder
    for path in folder.iterdir():
        if path.name[0] != ".":
            yield from _below(path) if path.is_dir() else [path]
