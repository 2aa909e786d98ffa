"""Files on disk; of buckets what can be said without one. tests/test_bucket.py goes there."""

import contextlib
import http.server
import importlib.util
import os
import pathlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator

import aiohttp
import botocore.exceptions
import gcsfs
import google.auth.exceptions
import pytest
import requests
import s3fs
from etils import epath

from cdcd_jax.config import TryAgain, UserError
from cdcd_jax.data import files


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Buckets that were asked whether they are there; every one is, and both packages are."""
    names: list[str] = []
    monkeypatch.setattr(files, "_reach", names.append)
    return names


def test_locate_knows_a_bucket_from_a_folder(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert [str(files.locate(name)) for name in ("runs/demo", "~/run", "gs://a/b/c", "s3://a")] == ["runs/demo", "/home/me/run", "gs://a/b/c", "s3://a"]
    assert asked == ["gs://a", "s3://a"]
    assert [files.in_bucket(name) for name in ("gs://a/b", epath.Path("s3://a/b"), "runs/gs", "/gs/a")] == [True, True, False, False]


@pytest.mark.parametrize("name", ["az://a/b", "file:///tmp/x", "http://a/b", "GS://a/b", ""])
def test_an_address_of_another_kind_is_refused(name: str, asked: list[str]) -> None:
    with pytest.raises(UserError, match=f"'{name}' is no place for files: name a path on disk, gs://bucket/folder or s3://bucket/folder."):
        files.locate(name)


def test_a_slash_too_few_is_no_folder(asked: list[str]) -> None:
    with pytest.raises(UserError, match=r"'gs:/b/run' is no place for files: did you mean gs://b/run\?"):
        files.locate("gs:/b/run")
    assert not asked


def test_an_address_without_a_bucket_is_refused(asked: list[str]) -> None:
    with pytest.raises(UserError, match="'gs:///run' names no bucket: write gs://bucket/folder."):
        files.locate("gs:///run")
    assert not asked


@pytest.mark.parametrize(
    "name, said",
    [
        ("plan.txt", "no name for the file that will be written: take another, that ends in .json."),
        ("folder.json", "no name for the file"),
        ("file/plan.json", "file/plan.json cannot be written (Not a directory)."),
        ("", "'' is no place for files"),
        ("plan.json", ""),
        ("new/folder/plan.json", ""),
    ],
)
def test_what_will_be_written_is_tried_before(name: str, said: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves nothing behind, no folder either."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=re.escape(said)) if said else contextlib.nullcontext():
        assert str(files.output(name, ".json")) == name
    assert {path.name for path in tmp_path.rglob("*")} == {"folder.json", "file"}


@pytest.mark.parametrize("scheme, package", files.PACKAGES.items())
def test_a_missing_package_is_named_with_what_mends_it(scheme: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=f"^{scheme}://bkt needs the package {package}: pip install {package}.$"):
        files.locate(f"{scheme}://bkt/run")


def test_a_bucket_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = threading.Event()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(epath.Path("x").__class__, "stat", lambda self: gone.wait(30))
    monkeypatch.setattr(files, "SECONDS", 0.05)
    with pytest.raises(TryAgain, match="the bucket gs://silent did not answer within 0 s"):
        files.locate("gs://silent/run")
    gone.set()


@contextlib.contextmanager
def answering(statuses: Iterator[int]) -> Iterator[str]:
    """The address of a store that answers each request with the next of some statuses."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(next(statuses))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_store_that_is_busy_may_not_be_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real requests, by the real package."""
    with answering(iter([503, 403, 404])) as address:
        for name, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "MAX_ATTEMPTS": "1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        told = {"cannot be used (Service Unavailable)": TryAgain, "cannot be used (Forbidden)": UserError, "does not exist": UserError}
        for said, kind in told.items():
            with pytest.raises(kind, match=re.escape(f"the bucket s3://bkt {said}")):
                files.locate("s3://bkt/run")


def from_botocore(status: int, code: str) -> OSError:
    """What s3fs raises for an answer of S3."""
    answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return s3fs.errors.translate_boto_error(botocore.exceptions.ClientError(answer, "GetObject"))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


TENSORSTORE = 'ABORTED: Error opening "zarr" driver: Error reading "x/.zarray": All 32 retry attempts failed: '
PASSING = (
    ConnectionResetError(104, "Connection reset by peer"), ConnectionRefusedError(111, "Connection refused"), TimeoutError(),
    socket.gaierror(-3, "Temporary failure in name resolution"),
    gcsfs.retry.HttpError({"code": 503, "message": "backend"}), gcsfs.retry.HttpError({"code": "429", "message": "slow"}),
    aiohttp.ServerDisconnectedError(), aiohttp.ClientPayloadError(), requests.exceptions.ProxyError(), google.auth.exceptions.TransportError("x"),
    from_botocore(503, "SlowDown"), from_botocore(500, "InternalError"), botocore.exceptions.EndpointConnectionError(endpoint_url="x"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="x"), caused(ValueError("about it"), ConnectionResetError()),
    ValueError(TENSORSTORE + "Unknown [http_response_code='503'] [more='']"), ValueError(TENSORSTORE + "CURL error Could not [curl_code='7'] []"),
)  # fmt: skip
LASTING = (
    PermissionError(13, "Permission denied"), OSError(28, "No space left on device"), FileNotFoundError(2, "x"), BrokenPipeError(32, "x"),
    OSError("Forbidden: x"), gcsfs.retry.HttpError({"code": 401, "message": "who"}), gcsfs.retry.HttpError({}), KeyError("503"),
    google.auth.exceptions.DefaultCredentialsError("none"), from_botocore(403, "AccessDenied"), from_botocore(404, "NoSuchBucket"),
    botocore.exceptions.NoCredentialsError(), caused(aiohttp.ClientConnectionError(), ssl.SSLCertVerificationError("self-signed")),
    ValueError(TENSORSTORE + "Forbidden [http_response_code='403']"), UserError("503"),
)  # fmt: skip


def test_what_may_be_gone_in_a_minute_is_told_from_what_stays() -> None:
    assert [repr(error) for error in PASSING if not files.transient(error)] == []
    assert [repr(error) for error in LASTING if files.transient(error)] == []
    with pytest.raises(TryAgain, match=r"^a.txt cannot be written \(Connection reset by peer\).$"), files.writing("a.txt"):
        raise PASSING[0]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = epath.Path(tmp_path / "deep" / "er" / "a.json")
    files.write_whole(path, "é")
    files.write_whole(path, b"\xff")
    assert path.read_bytes() == b"\xff"
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"er/a.json cannot be written \(No space left on device\)."):
        files.write_whole(path, "new")
    assert [p.name for p in path.parent.iterdir()] == ["a.json"] and path.read_bytes() == b"\xff"
    monkeypatch.undo()
    (tmp_path / "taken").mkdir()
    for name in ("taken", "deep/er/a.json/b"):
        with pytest.raises(UserError, match=f"{name} cannot be written"):
            files.write_whole(epath.Path(tmp_path / name), "text")
    assert {p.name for p in tmp_path.iterdir()} == {"deep", "taken"}


def test_a_reason_is_one_line() -> None:
    assert files.reason(PermissionError(13, "Permission denied")) == "Permission denied"
    assert files.reason(OSError("Forbidden: https://x\nnot yours")) == "Forbidden: https://x not yours"
    assert files.reason(TimeoutError()) == "TimeoutError"
