"""Files on disk; of buckets what can be said without one. tests/test_bucket.py goes there."""

import importlib.util
import os
import pathlib
import threading

import pytest
from etils import epath

from cdcd_jax.config import UserError
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


@pytest.mark.parametrize("name", ["az://a/b", "file:///tmp/x", "http://a/b", "GS://a/b"])
def test_an_address_of_another_kind_is_refused(name: str, asked: list[str]) -> None:
    with pytest.raises(UserError, match=f"'{name}' is no place for files: name a path on disk, gs://bucket/folder or s3://bucket/folder."):
        files.locate(name)


def test_an_address_without_a_bucket_is_refused(asked: list[str]) -> None:
    with pytest.raises(UserError, match="'gs:///run' names no bucket: write gs://bucket/folder."):
        files.locate("gs:///run")
    assert not asked


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
    with pytest.raises(UserError, match="the bucket gs://silent did not answer within 0 s"):
        files.locate("gs://silent/run")
    gone.set()


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
