"""The doctor: a line for each thing that a run needs, the command that mends it, and an exit code that says whether all is well."""

import dataclasses
import pathlib
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from cdcd_jax.config import Config
from cdcd_jax.training import checkup
from tests import tiny
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
    (tmp_path / "file").write_text("")
    done = run_door(
        "doctor", "--config=configs/demo.py", f"--workdir={tmp_path / 'file' / 'run'}", "--config.mesh.fsdp=3", "--config.data.source=none/*.txt"
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    wrong = {line.split()[1].rstrip(":"): lines[number + 1] for number, line in enumerate(lines) if line.startswith("MEND")}
    assert {"mesh", "workdir", "data"} <= wrong.keys()
    assert "--config.mesh.fsdp=-1" in wrong["mesh"] and "chown" in wrong["workdir"] and "--config.data.source=" in wrong["data"]


def test_a_config_that_cannot_be_is_a_mistake(run_door: Door) -> None:
    done = run_door("doctor", "--config=configs/none.py")
    assert done.returncode == 2 and done.stderr.startswith("error: the config file 'configs/none.py' does not exist")


def job(monkeypatch: pytest.MonkeyPatch, address: str, number: int, index: int) -> None:
    for name, value in zip(("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"), (address, number, index), strict=True):
        monkeypatch.setenv(f"JAX_{name}", str(value))


def test_the_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkup.coordinator().said == "one process"
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"localhost:{taken.getsockname()[1]}"
        job(monkeypatch, address, 2, 1)
        assert checkup.coordinator() == checkup.Finding("coordinator", True, f"{address} answers")
        job(monkeypatch, address, 2, 0)
        found = checkup.coordinator()
        assert not found.good and "cannot be used here" in found.said and "ss -ltnp" in found.mend
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


def test_the_disk_must_hold_the_checkpoints(tmp_path: pathlib.Path) -> None:
    assert checkup.disk(str(tmp_path / "run"), read("demo")).good
    found = checkup.disk(str(tmp_path / "run"), _wide(read("scale_7b")))
    assert not found.good and "checkpoint.keep_last=1" in found.mend


def _wide(config: Config) -> Config:
    """So large that no disk here holds it."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, mlp_width=2**30))


@pytest.mark.parametrize(
    "source, good, said",
    [
        ("kjv", True, "comes with the package"),
        ("FOLDER", True, "is there"),
        ("FOLDER/*.txt", True, "is there"),
        ("FOLDER/*.md", False, "nothing is at"),
        ("FOLDER/none.txt", False, "nothing is at"),
        ("tfds:lm1b", True, "tensorflow_datasets"),
        ("ftp://host/file", False, "is no place for files"),
    ],
)
def test_the_text(tmp_path: pathlib.Path, source: str, good: bool, said: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    changes: dict[str, Any] = {"data.source": source.replace("FOLDER", str(tmp_path))}
    found = checkup.text(tiny.config(changes))
    assert found.good == good and said in found.said and bool(found.mend) != good


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
