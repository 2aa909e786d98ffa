"""The local launcher: with a stub in the place of Python its rules, and once with real processes, one of which is killed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import tiny
from tests.forked import ROOT
from tests.hosts import Job

LAUNCHER = ROOT / "launch" / "local_multihost.sh"
# Ends with the codes that the file named after its number lists, one a life; the port is real Python's to find.
STUB = """#!/bin/bash
if [[ $1 == -c ]]; then exec {python} "$@"; fi
echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $*"
file={folder}/$JAX_PROCESS_ID
code=$(head -1 $file); sed -i 1d $file
[[ $code == kill ]] && kill -9 $$
[[ $code == hang ]] && exec sleep 60
exit $code
"""


def launch(folder: pathlib.Path, lives: list[list[object]], *options: str, grace: int = 20) -> subprocess.CompletedProcess[str]:
    """Runs the launcher on stubs; lives[i] are the codes with which process i ends in its lives."""
    stub = folder / "python"
    stub.write_text(STUB.format(python=sys.executable, folder=folder))
    stub.chmod(0o755)
    for index, codes in enumerate(lives):
        (folder / str(index)).write_text("".join(f"{code}\n" for code in codes))
    environment = os.environ | {"PYTHON": str(stub), "GRACE": str(grace)}
    command = [str(LAUNCHER), *options, str(len(lives)), "--a=b c", "--d"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_all_end_well(tmp_path: pathlib.Path) -> None:
    ended = launch(tmp_path, [[0], [0]])
    assert ended.returncode == 0
    for index in range(2):
        assert f"[{index}] {index} of 2: -m cdcd_jax.train --a=b c --d\n" in ended.stdout


@pytest.mark.parametrize(
    ("lives", "options", "code", "starts"),
    [
        ([[75, 0], [75, 0]], [], 0, 2),
        ([["kill", 0], [75, 0]], [], 0, 2),
        ([[75] * 9, [0] * 9], [], 75, 4),
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


def test_one_that_does_not_end_with_the_others_is_killed(tmp_path: pathlib.Path) -> None:
    began = time.monotonic()
    ended = launch(tmp_path, [["hang", 0], [75, 0]], grace=1)
    assert ended.returncode == 0 and time.monotonic() - began < 30
    assert "[0] did not end within 1 s of the others: killed." in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "where N is how many processes to run, not ''"),
        (["two", "--a"], "not 'two'"),
        (["--max-restart=2", "2"], "unknown option --max-restart=2"),
        (["--max-restarts=x", "2"], "--max-restarts=x must be a whole number"),
    ],
)
def test_mistakes(arguments: list[str], said: str) -> None:
    ended = subprocess.run([str(LAUNCHER), *arguments], capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2 and said in ended.stderr and ended.stderr.count("\n") == 1


def test_a_killed_process_does_not_end_the_run(tmp_path: pathlib.Path, door_environment: dict[str, str]) -> None:
    (tmp_path / "corpus.txt").write_text(tiny.corpus(400))
    changes = {"train.num_steps": 40, "checkpoint.every_steps": 10, "hosts.stall_seconds": 20.0}
    job = Job(tmp_path, "launched", changes)
    cache = {name.upper(): str(value) for name, value in job.settings.items()}
    command = [str(LAUNCHER), "--max-restarts=2", "2", *job.flags]
    environment = door_environment | cache | {"PYTHON": sys.executable}
    with (tmp_path / "log").open("w") as log:
        launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 200
            while job.reached() < 25:
                assert launcher.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.005)
            found = subprocess.run(["pgrep", "-f", "--", f"-m cdcd_jax.train.*{job.workdir}"], capture_output=True, text=True, check=True)
            os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)  # the last one started
            code = launcher.wait(200)
        finally:
            launcher.kill()
    text = (tmp_path / "log").read_text()
    assert code == 0 and "starting all 2 again (1 of at most 2 times)" in text, text
    unbroken = Job(tmp_path, "unbroken", changes)
    assert unbroken.live(2).codes == [0, 0]
    np.testing.assert_array_equal([line["loss"] for line in job.lines()], [line["loss"] for line in unbroken.lines()])
    assert job.lines()[-1]["wall_seconds"]["lost"] > 0
