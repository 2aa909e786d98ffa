"""The local launcher's rules, with a stub in the place of Python; with real processes it runs in test_hosts.py."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.forked import ROOT

LAUNCHER = ROOT / "launch" / "local_multihost.sh"
FLAGS = ["--config=configs/demo.py", "--workdir=runs/b c"]
# Ends with the codes that the file named after its number lists, one a life; the port is real Python's to find.
STUB = """#!/bin/bash
if [[ $1 == -c ]]; then exec {python} "$@"; fi
echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS: $*"
[[ $PYTHONUNBUFFERED == 1 ]] || echo "its words are held back"
file={folder}/$JAX_PROCESS_ID
code=$(head -1 $file); sed -i 1d $file
[[ $code == kill ]] && kill -9 $$
[[ $code == hang ]] && exec sleep 60
[[ $code == wait ]] && exec {python} {folder}/wait
exit $code
"""


@contextmanager
def started(*words: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The launcher at work; at the end neither it nor any process of its session is left, whatever a test found."""
    with subprocess.Popen([str(LAUNCHER), *words], cwd=ROOT, stdin=subprocess.DEVNULL, text=True, start_new_session=True, **options) as launcher:
        try:
            yield launcher
        finally:
            subprocess.run(["pkill", "-KILL", "--session", str(launcher.pid)], check=False)


@contextmanager
def begin(folder: pathlib.Path, lives: list[list[object]], *options: str, grace: int = 20, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """The launcher on stubs; lives[i] are the codes with which process i ends in its lives."""
    stub = folder / "python"
    stub.write_text(STUB.format(python=sys.executable, folder=folder))
    stub.chmod(0o755)
    for index, codes in enumerate(lives):
        (folder / str(index)).write_text("".join(f"{code}\n" for code in codes))
    environment = os.environ | {"PYTHON": str(stub), "GRACE": str(grace), "CHECKER": ""}
    with started(*options, str(len(lives)), *FLAGS, env=environment, **streams) as launcher:
        yield launcher


def launch(folder: pathlib.Path, lives: list[list[object]], *options: str, grace: int = 20) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    with begin(folder, lives, *options, grace=grace, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as launcher:
        said, errors = launcher.communicate(timeout=60)
    return subprocess.CompletedProcess(launcher.args, launcher.returncode, said, errors)


def test_all_end_well(tmp_path: pathlib.Path) -> None:
    ended = launch(tmp_path, [[0], [0]])
    assert ended.returncode == 0
    for index in range(2):
        assert re.search(rf"\[{index}\] {index} of 2 at localhost:\d+: -m cdcd_jax.train {' '.join(FLAGS)}\n", ended.stdout), ended.stdout
    ports = re.findall(r"localhost:(\d+)", ended.stdout)
    assert ports[0] == ports[1]


def test_dry_run_prints_what_is_started_and_starts_nothing(tmp_path: pathlib.Path) -> None:
    nothing = os.environ | {"PYTHON": "/nowhere"}  # also before the project is installed
    shown = subprocess.run([str(LAUNCHER), "2", "--dry-run", *FLAGS], env=nothing, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and shown.stdout.count("/nowhere -m cdcd_jax.train --config") == 2
    ended = launch(tmp_path, [[0, 0], [0, 0]], "--dry-run")
    assert ended.returncode == 0 and not ended.stderr and (tmp_path / "0").read_text() == "0\n0\n"
    commands = [line for line in ended.stdout.splitlines() if not line.startswith("#")]
    by_hand = [subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout for line in commands]
    started_by_it = re.sub(r"localhost:\d+", "localhost:PORT", launch(tmp_path, [[0], [0]]).stdout)
    assert sorted(f"[{index}] {said}" for index, said in enumerate(by_hand)) == sorted(started_by_it.splitlines(keepends=True))


@pytest.mark.parametrize(
    ("lives", "options", "code", "starts"),
    [
        ([[75, 0], [75, 0]], [], 0, 2),
        ([["kill", 0], [75, 0]], [], 0, 2),
        ([[75] * 9, [0] * 9], [], 75, 4),
        ([["kill"] * 9, [75] * 9], ["--max-restarts=1"], 75, 2),
        ([[75] * 9, [75] * 9], ["--max-restarts=1"], 75, 2),
        ([[75] * 9, [75] * 9], ["--max-restarts=0"], 75, 1),
        ([[2], [75]], [], 2, 1),
        ([[75], [1]], [], 1, 1),
        ([[130], [130]], [], 130, 1),
        ([[0], [7]], [], 7, 1),
    ],
)
def test_its_rules(tmp_path: pathlib.Path, lives: list[list[object]], options: list[str], code: int, starts: int) -> None:
    ended = launch(tmp_path, lives, *options)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout.count("0 of 2") == starts == 1 + ended.stderr.count("again (")
    if starts > 2:  # each attempt takes a port that is free: not always the same one
        assert len(set(re.findall(r"localhost:(\d+)", ended.stdout))) > 1
    gave_up = f"gave up after {starts - 1} restarts (--max-restarts={starts - 1}), with 75; the same command goes on.\n"
    assert ended.stderr.endswith(gave_up) == (code == 75) and "line " not in ended.stderr, ended.stderr


def test_it_says_by_which_signal_a_process_ended(tmp_path: pathlib.Path) -> None:
    ended = launch(tmp_path, [["kill"], [75]], "--max-restarts=0")
    assert "processes ended with 137 (SIGKILL), 75\n" in ended.stderr, ended.stderr


def test_help_is_what_the_file_begins_with() -> None:
    ended = subprocess.run([str(LAUNCHER), "--help"], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "launch/local_multihost.sh [--max-restarts=K] [--dry-run] N --config=C --workdir=W ..." in ended.stdout
    assert "#" not in ended.stdout and "set -" not in ended.stdout


# Says which signals it got, and ends with a last word a while after the first.
WAIT = """
import signal, sys, time
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(number))
print("waiting", flush=True)
while not got:
    time.sleep(0.02)
time.sleep(0.5)
print("got", [number.name for number in map(signal.Signals, got)], flush=True)
sys.exit(130 if signal.SIGINT in got else 75)
"""


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_to_its_whole_group_reaches_each_process_once_and_the_last_words_come(
    tmp_path: pathlib.Path, number: signal.Signals, code: int
) -> None:
    """As a terminal sends Ctrl-C, to all that it started."""
    (tmp_path / "wait").write_text(WAIT)
    with (tmp_path / "log").open("w") as log, begin(tmp_path, [["wait", 0], ["wait", 0]], stdout=log, stderr=log) as launcher:
        end = time.monotonic() + 30
        while (tmp_path / "log").read_text().count("waiting") < 2:
            assert launcher.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.02)
        os.killpg(launcher.pid, number)
        assert launcher.wait(30) == code
    said = (tmp_path / "log").read_text()
    assert all(f"[{index}] got ['{number.name}']\n" in said for index in range(2)) and "again (" not in said, said


def test_one_that_does_not_end_with_the_others_is_killed(tmp_path: pathlib.Path) -> None:
    began = time.monotonic()
    ended = launch(tmp_path, [["hang", 0], [75, 0]], grace=1)
    assert ended.returncode == 0 and time.monotonic() - began < 30
    assert "[0] did not end within 1 s of the others: killed." in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the number of processes must be a whole number from 1 to 9999, not ''"),
        (["two", "--a"], "not 'two'"),
        (["0"], "not '0'"),
        (["--max-restart=2", "2"], "unknown option --max-restart=2"),
        (["-n", "2"], "unknown option -n"),
        (["--max-restarts=x", "2"], "--max-restarts=x must be a whole number"),
        (["2", "--max-restarts=x"], "--max-restarts=x must be a whole number"),
        (["2", "--max-restarts=08"], "--max-restarts=08 must be a whole number from 0 to 99999, without leading zeros.\n"),  # it would never end
        (["2", "--max-restarts=100000", "--dry-run"], "--max-restarts=100000 must be a whole number from 0 to 99999"),
        (["--dry-run", "2"], "the trainer needs --config and --workdir"),
        (["2", "--dry-run", "--config=configs/dmo.py"], "the config file configs/dmo.py does not exist in "),
        (["--dry-run", "2", *FLAGS, "--config.train.batch_size=0"], "config key 'train.batch_size' must be above 0, not 0."),
    ],
)
def test_mistakes(arguments: list[str], said: str) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    ended = subprocess.run([str(LAUNCHER), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2 and said in ended.stderr and ended.stderr.count("\n") == 1
