"""The door, as a user runs it."""

import json
import pathlib
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

Door = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def results(run_door: Door, shared_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Each of the calls below once, side by side."""
    empty = tmp_path_factory.mktemp("empty")
    calls = {
        "whole": [f"--workdir={shared_run}", f"--picture={empty.parent / 'picture.png'}"],
        "typo": [f"--wrokdir={shared_run}"],
        "empty": [f"--workdir={empty}"],
    }
    with ThreadPoolExecutor(len(calls)) as pool:
        return dict(zip(calls, pool.map(lambda flags: run_door("report", *flags), calls.values()), strict=True))


def test_it_writes_the_page_and_says_what_was_reached(results: dict[str, subprocess.CompletedProcess[str]], shared_run: pathlib.Path) -> None:
    done = results["whole"]
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in ("2.096 ± 0.018", "81.2%", "1,000 of 1,000", f"{shared_run}/report.html", f"{shared_run}/report.json"):
        assert words in done.stdout
    assert "absent" not in done.stdout
    assert (shared_run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert json.loads((shared_run / "report.json").read_text())["nll"]["bits_per_char"] == 2.0964


@pytest.mark.parametrize(("call", "said"), [("typo", "Did you mean: workdir"), ("empty", "has no metrics yet: train first")])
def test_a_mistake_is_one_sentence(results: dict[str, subprocess.CompletedProcess[str]], call: str, said: str) -> None:
    done = results[call]
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
