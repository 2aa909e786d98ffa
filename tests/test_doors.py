"""What all doors share: parsing, exit codes, and one sentence for a mistake."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cdcd_jax import doors
from cdcd_jax.config import TryAgain, UserError
from tests import forked
from tests.forked import ROOT

DEMO = "--config=configs/demo.py"


def test_fail_says_one_line_and_exits_with_two(capsys):
    with pytest.raises(SystemExit) as end:
        doors.fail(UserError("a mistake\n  in two\tlines."), doors.MISTAKE)
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "error: a mistake in two lines.\n")


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], int]:
    """Runs a main as doors.run does, in this process, and returns the exit code."""
    monkeypatch.setattr(doors, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(doors.app, "run", lambda inner, flags_parser: inner([]))

    def run(main: Callable[[], int]) -> int:
        with pytest.raises(SystemExit) as end:
            doors.run(main)
        return end.value.code

    return run


def test_the_code_of_main_is_the_code_of_the_door(run_main):
    assert [run_main(lambda code=code: code) for code in (0, 75, 130)] == [0, 75, 130]


def test_a_users_mistake_is_one_line_and_code_two(run_main, capsys):
    def main() -> int:
        raise UserError("data.source 'x' is empty.")

    assert run_main(main) == 2
    assert capsys.readouterr().err == "error: data.source 'x' is empty.\n"


def test_what_may_be_gone_in_a_minute_is_one_line_and_code_75(run_main, capsys):
    def main() -> int:
        raise TryAgain("gs://b cannot be read (503).")

    assert run_main(main) == 75
    assert capsys.readouterr().err == "error: gs://b cannot be read (503); leaving with 75, to be started again.\n"


def test_ctrl_c_before_the_loop_is_no_traceback(run_main, capsys):
    def main() -> int:
        raise KeyboardInterrupt

    assert run_main(main) == 130
    assert capsys.readouterr().err == "interrupted.\n"


def test_a_bug_is_not_hidden(run_main):
    with pytest.raises(ZeroDivisionError):
        doors.run(lambda: 1 // 0)


@pytest.mark.parametrize("name", ["train", "sample", "evaluate", "prepare", "plan", "doctor", "report"])
def test_help_is_short_and_names_every_flag(name):
    ended = forked.door(name, "--help")
    flags = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (forked.ROOT / "cdcd_jax" / f"{name}.py").read_text())
    assert len(flags) >= 2
    assert [flag for flag in flags if f"--{flag}:" not in ended.stdout] == []
    assert len(ended.stdout.splitlines()) < 60 and (ended.code, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    "name, args, said",
    [
        ("train", [DEMO], "the flag --workdir is required."),
        ("train", ["--workdir=w"], "the flag --config is required."),
        ("sample", [], "the flag --workdir is required."),
        ("evaluate", [], "the flag --workdir is required."),
        ("train", [DEMO, "--workdri=w"], "Unknown command line flag 'workdri'. Did you mean: workdir ?"),
        ("sample", ["--workdir=w", "--num_sample=3"], "Unknown command line flag 'num_sample'. Did you mean: num_samples ?"),
        ("train", [DEMO, "--workdir=w", "more"], "unexpected argument 'more': every option is a --flag=value."),
        ("sample", ["--workdir=w", "--num_samples=few"], "flag --num_samples=few: invalid literal for int() with base 10: 'few'."),
        ("train", [DEMO, "--workdir"], "Missing value for flag --workdir."),
    ],
)
def test_flags_that_are_wrong(name, args, said):
    ended = forked.door(name, *args)
    assert (ended.code, ended.stdout, ended.stderr) == (2, "", f"error: {said}\n")


def test_the_forked_door_is_the_real_one(run_door):
    """The other tests of doors rely on it."""
    args = [DEMO, "--workdir=w", "--config.train.num_stps=3"]
    real = run_door("train", *args)
    assert (real.returncode, real.stdout, real.stderr) == tuple(forked.door("train", *args))


def test_every_thread_reads_a_forked_doors_code(tmp_path):
    """The code lies in a pipe and can be read once: see forked.READING."""
    process = forked.begin("evaluate", [f"--workdir={tmp_path}"], [os.devnull, os.devnull])
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: process.wait(100), range(8))) == [2] * 8


@pytest.mark.parametrize("seconds", [1.0, 2.5])
def test_ctrl_c_before_there_is_anything_to_save_ends_a_door_at_once(seconds, door_environment, tmp_path):
    """Wherever it is: in an import, a compilation, the tokenizer's training."""
    command = [sys.executable, "-m", "cdcd_jax.train", "--config=configs/demo.py", f"--workdir={tmp_path / 'run'}", "--config.data.vocab_size=4000"]
    process = subprocess.Popen(command, cwd=ROOT, env=door_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said == "interrupted.\n", said
    assert time.monotonic() - began < 5
