"""The doctor: a line for each thing that a run needs, the command that mends it, and an exit code that says whether all is well."""

import errno
import importlib.util
import os
import pathlib
import shlex
import socket
import subprocess
import threading
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data import files, preparation
from cdcd_jax.training import checkup
from cdcd_jax.training.planning import changed_config
from cdcd_jax.training.state import init_state
from tests import corpora, tiny
from tests.test_configs import read

Door = Callable[..., subprocess.CompletedProcess[str]]


def test_all_is_well(run_door: Door, tmp_path: pathlib.Path) -> None:
    done = run_door("doctor", "--config=configs/demo.py", f"--workdir={tmp_path / 'runs' / 'new'}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["versions:", "devices:", "mesh:", "coordinator:", "workdir:", "disk:", "data:"]
    assert all(line.startswith("ok ") for line in lines) and "jax 0." in lines[0]
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


def test_what_is_wrong_is_said_with_what_mends_it(run_door: Door, tmp_path: pathlib.Path) -> None:
    """The command that prepares has the flags that were given, in whatever form: two words, one dash, a value with a space, no=."""
    (tmp_path / "file").write_text("")
    begun = tmp_path / "begun"
    (begun / "unfinished").mkdir(parents=True)
    done = run_door(
        "doctor", "--config", "configs/demo.py", f"--workdir={tmp_path / 'file' / 'run'}", "-config.mesh.fsdp=3", "--config.data.text_key",
        "the text", "--noconfig.train.self_conditioning", "--config.data.source", begun,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    wrong = {line.split()[1].rstrip(":"): lines[number + 1] for number, line in enumerate(lines) if line.startswith("MEND")}
    assert {"mesh", "workdir", "data"} <= wrong.keys()
    assert wrong["mesh"].strip() == "--config.mesh.fsdp=-1" and wrong["workdir"].strip() == checkup.ELSEWHERE
    command = shlex.split(wrong["data"])
    assert command[:4] == ["python", "-m", "cdcd_jax.prepare", "--config=configs/demo.py"] and sorted(command[4:]) == sorted(
        ["--config.mesh.fsdp=3", "--config.data.text_key=the text", "--config.train.self_conditioning=False", "--config.data.source=TEXT",
         f"--output={begun}"]
    )  # fmt: skip


def test_a_config_that_cannot_be_is_a_mistake(run_door: Door) -> None:
    done = run_door("doctor", "--config=configs/none.py")
    assert done.returncode == 2 and done.stderr.startswith("error: the config file 'configs/none.py' does not exist")


def job(monkeypatch: pytest.MonkeyPatch, address: str, number: int, index: int) -> None:
    for name, value in zip(("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"), (address, number, index), strict=True):
        monkeypatch.setenv(f"JAX_{name}", str(value))


def test_the_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkup.coordinator().said == "one process"
    with socket.socket() as held, socket.socket() as taken:
        for one in (held, taken):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("", 0))  # without listening: the port is free for those who reuse addresses, and the system gives it to nobody else
        taken.bind(held.getsockname())
        taken.listen()
        address = f"localhost:{held.getsockname()[1]}"
        job(monkeypatch, address, 2, 1)
        assert checkup.coordinator() == checkup.Finding("coordinator", True, f"{address} answers")
        job(monkeypatch, address, 2, 0)
        found = checkup.coordinator()
        assert not found.good and "cannot be used here" in found.said and "ss -ltnp" in found.mend
        taken.close()
        assert checkup.coordinator().good
        job(monkeypatch, address, 2, 1)
        found = checkup.coordinator()
        assert not found.good and f"the coordinator at {address} did not answer" in found.said
    monkeypatch.delenv("JAX_PROCESS_ID")
    assert "is set, but not JAX_PROCESS_ID" in checkup.coordinator().said


def test_the_mesh_counts_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config({"mesh.fsdp": 16, "train.batch_size": 16})
    assert not checkup.mesh(config, 8).good
    job(monkeypatch, "localhost:1", 2, 1)
    assert checkup.mesh(config, 8) == checkup.Finding("mesh", True, "data 1 x fsdp 16 x tensor 1")


@pytest.mark.parametrize(
    "changes, mend",
    [
        ({"mesh.fsdp": 3}, "--config.mesh.fsdp=-1"),
        ({"train.batch_size": 20}, "--config.train.batch_size=16"),
        ({"train.batch_size": 20, "mesh.tensor": 3}, "--config.train.batch_size=16 --config.mesh.tensor=1"),
        ({"train.batch_size": 2, "train.accumulation_steps": 1}, "--config.train.batch_size=8"),
        ({"mesh.data": 4, "mesh.slices": 3}, "--config.mesh.data=-1 --config.mesh.slices=1"),
        ({"mesh.data": 2}, "--config.mesh.data=-1"),
        ({"mesh.data": 4, "mesh.slices": 3, "mesh.fsdp": 1, "mesh.tensor": 2}, "--config.mesh.slices=1"),
        ({"mesh.tensor": 16}, "--config.mesh.tensor=1"),
    ],
)
def test_the_flags_that_mend_a_mesh_do(changes: dict[str, Any], mend: str) -> None:
    config = tiny.config({"train.batch_size": 16} | changes)
    found = checkup.mesh(config, 8)
    assert not found.good and sorted(found.mend.split()) == sorted(mend.split())
    pairs = [flag.removeprefix("--config.").split("=") for flag in found.mend.split()]
    assert checkup.mesh(changed_config(config, {key: int(value) for key, value in pairs}), 8).good


def test_the_disk_must_hold_the_checkpoints(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones, those that are kept for ever, and the one that is being written: what makes it fit is advised, or another disk."""
    config = read("demo")
    assert checkup.disk(str(tmp_path / "run"), config).good
    state = jax.eval_shape(lambda: init_state(config, jnp.zeros(config.data.vocab_size)))
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    often = changed_config(config, {"checkpoint.keep_every_steps": 100, "checkpoint.keep_last": 3, "train.num_steps": 1000})
    for room, lying, mend in (
        (14, 0, ""),
        (13, 0, "--config.checkpoint.keep_last=1"),
        (5, 0, "--config.checkpoint.keep_last=1 --config.checkpoint.keep_every_steps=0"),
        (1, 0, f"{checkup.ELSEWHERE}; df -h shows the disks"),
        (10, 4, ""),  # of a run that goes on, those that it has are paid for
        (9, 4, "--config.checkpoint.keep_last=1"),
        (1, 13, ""),  # the oldest goes when the next is there
        (1, 14, ""),
        (0, 14, f"{checkup.ELSEWHERE}; df -h shows the disks"),
    ):
        workdir = tmp_path / f"{room} {lying}"
        for step in range(lying):
            (workdir / "checkpoints" / str(step)).mkdir(parents=True)
        monkeypatch.setattr(checkup.shutil, "disk_usage", lambda _, room=room: types.SimpleNamespace(free=room * one + 1))
        found = checkup.disk(str(workdir), often)
        assert (found.good, found.mend) == (not mend, mend), (room, lying)
        assert (f"{lying} of them lie there" in found.said) == bool(lying)


@pytest.mark.parametrize(
    "alphabet, tokenizer, size, supposed", [("27", "char", 27, False), ("text", "byte", 256, False), ("text", "char", 5000, True)]
)
def test_the_checkpoints_have_the_tokenizers_vocabulary(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, alphabet: str, tokenizer: str, size: int, supposed: bool
) -> None:
    """Not that of data.vocab_size, which is for SentencePiece alone; where only the text has it, this is said."""
    config = tiny.config({"data.alphabet": alphabet, "data.tokenizer": tokenizer, "data.vocab_size": 5000, "checkpoint.keep_every_steps": 0})
    state = jax.eval_shape(lambda: init_state(config, jnp.zeros(size)))
    need = (config.checkpoint.keep_last + 1) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    for free in (need, need + 1):
        monkeypatch.setattr(checkup.shutil, "disk_usage", lambda _, free=free: types.SimpleNamespace(free=free))
        found = checkup.disk(str(tmp_path / "run"), config)
        assert found.good == (free > need) and ("if the vocabulary has 5,000 tokens" in found.said) == supposed


PATH = "--config.data.source=PATH, a text file, a quoted glob, or a folder that python -m cdcd_jax.prepare makes (docs/DATA.md)"
PREPARE = (
    "python -m cdcd_jax.prepare --config=configs/paper_base.py --output=prepared/paper_base; "
    "then train with --config.data.source=prepared/paper_base"
)


@pytest.mark.parametrize(
    "source, good, said, mend",
    [
        ("kjv", True, "comes with the package", ""),
        ("FOLDER/a.txt", True, "is there", ""),
        ("FOLDER/*.txt", True, "is there", ""),
        ("FOLDER", False, "is a directory; name a file", PATH),
        ("FOLDER/*.md", False, "matches no file", PATH),
        ("FOLDER/none.txt", False, "does not exist", PATH),
        ("FOLDER/{split}.txt", False, "matches no file for train", PATH),
        ("ftp://host/file", False, "is no place for files", PATH),
        ("tfds:c4/en", False, "tfds:c4/en is not on this machine", f"tfds build c4/en --file_format=array_record && {PREPARE}"),
        ("tfds:lm1b", False, "tfds:lm1b is not on this machine", PREPARE),
        ("tfds:tiny_talk", True, "is there", ""),
        ("tfds:nothing_such", False, "TFDS has no data set", PATH),
        ("hf:owner/SomeTexts", True, "is there", ""),
        ("hf:owner/other", False, "hf:owner/other is not on this machine", PREPARE),
    ],
)
def test_the_text(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, source: str, good: bool, said: str, mend: str) -> None:
    """What a data set's package has not fetched yet is not here; nothing is fetched to find that out."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    if source.startswith("hf:"):
        monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", str(tmp_path))
        (tmp_path / "owner___some_texts").mkdir()
    if source == "tfds:tiny_talk":
        corpora.build_tfds(tmp_path, {"train": ["some text"], "validation": ["more"]})
    changes: dict[str, Any] = {"data.source": source.replace("FOLDER", str(tmp_path))}
    found = checkup.text(tiny.config(changes), ["--config=configs/paper_base.py"])
    assert (found.good, found.mend) == (good, mend) and said in found.said


def test_a_prepared_folder_must_be_whole_and_fit_the_config(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_text(tiny.corpus(60))
    config = tiny.config({"data.source": str(tmp_path / "a.txt")})
    preparation.prepare(config.data, epath.Path(tmp_path / "made"))
    there = changed_config(config, {"data.source": str(tmp_path / "made")})
    found = checkup.text(there)
    assert found.good and "is prepared, " in found.said and found.said.endswith(" records")
    found = checkup.text(changed_config(there, {"data.sequence_length": 2 * tiny.LENGTH}))
    assert not found.good and found.mend == f"--config.data.sequence_length={tiny.LENGTH}"
    (tmp_path / "begun" / "unfinished").mkdir(parents=True)
    found = checkup.text(changed_config(there, {"data.source": str(tmp_path / "begun")}), ["--config=a.py", "--config.data.source=x"])
    assert not found.good and found.mend == f"python -m cdcd_jax.prepare --config=a.py --config.data.source=TEXT --output={tmp_path / 'begun'}"


@pytest.mark.parametrize(
    "workdir, said, mend",
    [
        ("ftp://host/run", "is no place for files", checkup.ELSEWHERE),
        ("", "is no place for files", checkup.ELSEWHERE),
        ("gs://", "'gs://' names no bucket: write gs://bucket/folder.", checkup.ELSEWHERE),
        ("FOLDER/a file", "is no folder", checkup.ELSEWHERE),
        ("FOLDER/a file/run", "is no folder", checkup.ELSEWHERE),
        ("/sys/no such/run", "cannot be written (Permission denied)", f"{checkup.ELSEWHERE}; or ask its owner, whom ls -ld /sys shows"),
    ],
)
def test_a_workdir_that_cannot_be(tmp_path: pathlib.Path, workdir: str, said: str, mend: str) -> None:
    """It is a line, and the others still are lines."""
    if workdir.startswith("/sys") and not os.path.isdir("/sys/kernel"):
        pytest.skip("there is no /sys, in which nobody may write")
    (tmp_path / "a file").write_text("")
    workdir = workdir.replace("FOLDER", str(tmp_path))
    found = checkup.writable(workdir)
    assert not found.good and said in found.said and found.mend == mend
    assert "checkpoints take" in checkup.disk(workdir, tiny.config()).said or "://" in workdir


def test_a_text_that_cannot_be_opened_is_answered_with_another_text() -> None:
    assert checkup._opening("a.txt", "a.txt", OSError(errno.EIO, ""), checkup.TEXT) == checkup.TEXT


def test_what_cannot_be_looked_at_is_a_line_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place of another kind has no disk; who the processes are is not asked of a platform."""
    for workdir in ("az://b/x", "ftp://b/x", "gs://b/x"):
        assert checkup.disk(workdir, tiny.config()).good
    monkeypatch.setenv("CDCD_MULTIHOST", "1")
    assert checkup.coordinator().said.endswith("it was not asked")
    monkeypatch.setenv("CDCD_MULTIHOST", "yes")
    found = checkup.coordinator()
    assert not found.good and found.said.startswith("CDCD_MULTIHOST=yes must be 1") and found.mend.startswith("unset JAX_COORDINATOR_ADDRESS ")


@pytest.mark.parametrize(
    "asked, error, said, mend",
    [
        ("cuda", AssertionError(), "JAX here has no cuda", "unset JAX_PLATFORMS, which is cuda, for what is here"),
        ("tpu", RuntimeError("NOT_FOUND: No device found."), "NOT_FOUND: No device found.", "unset JAX_PLATFORMS, which is tpu, for what is here"),
        ("tpu", RuntimeError("ABORTED: The TPU is already in use by process with pid 7."), "with pid 7.", f"{checkup.HOLDERS}, and kill PID ends it"),
        ("", RuntimeError("UNAVAILABLE: no TPU"), "no TPU", "export JAX_PLATFORMS=cpu"),
    ],
)
def test_devices_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, asked: str, error: Exception, said: str, mend: str) -> None:
    """A process is to be ended only where one holds them. JAX asserts where a platform is not here."""

    def fails() -> list[jax.Device]:
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", asked)
    monkeypatch.setattr(checkup.jax, "local_devices", fails)
    found, there = checkup.devices()
    assert not found.good and there is None and said in found.said and found.mend.startswith(mend)
    assert ("kill" in found.mend) == ("in use" in found.said)


def test_a_bucket_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of the doctor's like any other, for workdir and text."""
    gone = threading.Event()
    monkeypatch.setattr(epath.Path("x").__class__, "stat", lambda self: gone.wait(30))
    monkeypatch.setattr(files, "SECONDS", 0.05)
    for found in (checkup.writable("s3://silent/run"), checkup.text(tiny.config({"data.source": "s3://silent/*.txt"}))):
        assert not found.good and found.said.startswith("the bucket s3://silent did not answer") and "75" not in found.said
        assert found.mend == "aws s3 ls s3://silent shows when it answers again"
    gone.set()


@pytest.mark.parametrize(
    "scheme, said, mend",
    [
        ("gs", "the bucket gs://b does not exist", "gcloud auth application-default login; gcloud storage buckets create gs://b"),
        ("s3", "the bucket s3://b does not exist", "aws configure; aws s3 mb s3://b"),
        ("s3", "the bucket s3://b cannot be used (Forbidden)", "aws configure, with a key that may list, read, write and delete there"),
    ],
)
def test_what_opens_a_bucket(scheme: str, said: str, mend: str) -> None:
    assert checkup._opening(f"{scheme}://b/run", "", UserError(said), checkup.ELSEWHERE) == mend


def test_a_missing_package_for_a_bucket_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "s3fs" else find(name))
    assert checkup.writable("s3://b/run").mend == "pip install s3fs"


@pytest.mark.parametrize("installed, good", [("0.0.42.1", True), ("0.0.42", True), ("0.0.41", False), (None, True)])
def test_the_release_of_libtpu(monkeypatch: pytest.MonkeyPatch, installed: str | None, good: bool) -> None:
    """The one that jax names in its own requirements."""
    there = {name: "1.0" for name in checkup.PACKAGES} | {"libtpu": installed}
    monkeypatch.setattr(checkup, "_version", there.get)
    monkeypatch.setattr(checkup.importlib.metadata, "requires", lambda _: ['libtpu==0.0.42.*; extra == "tpu"', "numpy>=2.0"])
    found = checkup.versions()
    assert found.good == good and ("pip install 'libtpu==0.0.42.*'" == found.mend) != good


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "_version", lambda name: None if name == "grain" else "1.0")
    found = checkup.versions()
    assert not found.good and "grain is not installed" in found.said and found.mend == "pip install -r requirements.lock"


def test_what_cannot_be_read_back_is_removed_as_well(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: pathlib.Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(type(epath.Path(tmp_path)), "read_text", fails)
    found = checkup.writable(str(tmp_path / "run"))
    assert not found.good and "cannot be written and read (Input/output error)" in found.said and list(tmp_path.iterdir()) == []
