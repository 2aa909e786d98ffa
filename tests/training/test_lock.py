"""One trainer at a time: on disk by the system's lock, in a bucket by an object that shows signs of life."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data import files
from cdcd_jax.training import lock


@pytest.fixture
def bucket(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> epath.Path:
    """A folder that is taken for one, and patience that ends soon."""
    monkeypatch.setattr(files, "in_bucket", lambda path: str(path).startswith(str(tmp_path)))
    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", in_one_stroke)  # as an object in a bucket is written
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "STALE", 0.5)
    monkeypatch.setattr(lock, "LOOK", 0.02)
    return epath.Path(tmp_path)


def in_one_stroke(path: epath.Path, content: bytes) -> None:
    """Writes a file that no reader ever finds half-written."""
    partial = pathlib.Path(f"{path}.{threading.get_ident()}")
    partial.write_bytes(content)
    partial.replace(str(path))


def holder(bucket: epath.Path, **changes: object) -> dict[str, object]:
    """Writes a lock of this very process, with some fields changed."""
    content = lock._Lease(bucket).me | changes
    (bucket / "lock").write_text(json.dumps(content))
    return content


@contextlib.contextmanager
def beating(bucket: epath.Path) -> Iterator[None]:
    """A trainer of another machine that lives."""
    done = threading.Event()

    def beat() -> None:
        for beats in range(10**6):
            files.write_whole(bucket / "lock", json.dumps(lock._Lease(bucket).me | {"machine": "far away", "host": "far", "pid": 7, "beats": beats}))
            if done.wait(0.1):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        while not (bucket / "lock").exists():
            time.sleep(0.01)
        yield
    finally:
        done.set()
        thread.join()


def test_on_disk_a_second_trainer_is_kept_out_until_the_first_has_gone(tmp_path: pathlib.Path) -> None:
    directory = epath.Path(tmp_path)
    with lock.locked(directory) as check:
        check()
        said = rf"^process {os.getpid()} of {socket.gethostname()} has been training in {directory} since 20\S+ \S+ UTC: stop it, or name another"
        with pytest.raises(UserError, match=said), lock.locked(directory):
            pass
        (tmp_path / "lock").write_text("")  # between its being taken and its naming the holder
        with pytest.raises(UserError, match=f"^another process has been training in {directory}: stop it"), lock.locked(directory):
            pass
    (tmp_path / "lock").write_text("more than is written now, by whoever held it once" * 20)
    with lock.locked(directory), pytest.raises(UserError, match=said), lock.locked(directory):
        pass


def test_in_a_bucket_too(bucket: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STALE", 5.0)
    with lock.locked(bucket) as check:
        first = (bucket / "lock").read_text()
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"process {os.getpid()} of .* has been training in {bucket} since .*: stop it"), lock.locked(bucket):
            pass
        assert time.monotonic() - began < lock.STALE  # of this machine's own process nobody needs a sign of life
        while (bucket / "lock").read_text() == first:  # but it gives some
            assert time.monotonic() - began < lock.STALE
            time.sleep(lock.BEAT)
        check()
    assert not (bucket / "lock").exists()
    with lock.locked(bucket):
        pass


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(bucket: epath.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        born = lock._born(process.pid)
        assert born.isdigit()
        process.kill()
        while lock._born(process.pid) == born:  # it becomes a zombie
            time.sleep(0.01)
        holder(bucket, pid=process.pid, born=born)
        with lock.locked(bucket):
            pass
    holder(bucket, pid=process.pid, born=born)  # now it is no more
    with lock.locked(bucket):
        pass
    holder(bucket, born="1")  # its id is used again, by this very process
    with lock.locked(bucket):
        pass
    assert capsys.readouterr().err == ""


def test_a_stranger_that_gives_no_sign_of_life_is_waited_for_and_then_passed_over(bucket: epath.Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (json.dumps(lock._Lease(bucket).me | {"machine": "far away"}), "no trainer's", "[]"):
        (bucket / "lock").write_text(content)
        began = time.monotonic()
        with lock.locked(bucket) as check:
            assert time.monotonic() - began >= lock.STALE
            check()
        assert "lock is there: waiting up to 0 s to see whether its trainer lives." in " ".join(capsys.readouterr().err.split())


def test_a_stranger_that_lives_is_respected(bucket: epath.Path) -> None:
    with beating(bucket):
        with pytest.raises(UserError, match="process 7 of far has been training in"), lock.locked(bucket):
            pass
    assert (bucket / "lock").exists()


def test_who_lost_the_lock_learns_of_it_and_leaves_the_others_alone(bucket: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 1000.0)
    with pytest.raises(UserError, match="another trainer has taken over"), lock.locked(bucket) as check:
        other = holder(bucket)
        check()
    assert json.loads((bucket / "lock").read_text()) == other
    (bucket / "lock").unlink()
    with pytest.raises(UserError, match="another trainer has taken over"), lock.locked(bucket) as check:
        (bucket / "lock").unlink()
        check()


def test_of_two_that_come_at_once_one_gets_the_lock(bucket: epath.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find none, and the store lets one of them create it."""
    read = lock._Lease._read
    seen: list[None] = []

    def blind(self: lock._Lease) -> bytes | None:
        there = read(self)
        if len(seen) < 1:
            seen.append(None)
            holder(bucket)  # the other one comes between the look and the making
        return there

    monkeypatch.setattr(lock._Lease, "_read", blind)
    with pytest.raises(UserError, match="has been training in"), lock.locked(bucket):
        pass
