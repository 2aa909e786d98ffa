"""The door that prepares data: what it prints, how it ends, and that it goes on."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests import corpora, forked
from tests.forked import ROOT

FLAGS = ["--config=configs/demo27.py", "--config.data.tokenizer=char", "--config.data.sequence_length=16", "--config.data.alphabet=text"]


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_text_is_prepared_and_how_to_train_on_it_is_said(tmp_path):
    source = corpora.write(tmp_path / "my lines.jsonl", corpora.json_lines(corpora.documents(200) + [""]))
    flags = [*FLAGS, f"--config.data.source={source}", f"--output={tmp_path / 'out'}"]
    first = forked.door("prepare", *flags, "--workers=1", "--config.train.num_steps=3")
    assert first.code == 0, first.stderr
    assert re.search(r"train *│ *1\d\d *│ *1 *│", first.stdout) and "valid" in first.stdout
    command = f"  python -m cdcd_jax.train --config=configs/demo27.py --workdir=runs/NAME {' '.join(FLAGS[1:])} --config.train.num_steps=3 "
    assert first.stdout.endswith(f"{command}--config.data.source={tmp_path / 'out'}\n")
    assert {"manifest.json", "token_counts.json", "tokenizer/tokenizer.json", "train-00000-of-00001.array_record"} <= set(content(tmp_path / "out"))
    again = forked.door("prepare", *flags)
    assert (again.code, again.stdout.count("\n")) == (0, 1)
    assert re.match(r".*/out is complete: [\d,]+ records, every one of them as it was written.\n", again.stdout)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--output=out"], "the flag --config is required."),
        (["--config=configs/demo.py"], "the flag --output is required."),
        (["--config=configs/demo.py", "--output=out", "--worker=2"], "Unknown command line flag 'worker'. Did you mean: workers ?"),
        (["--config=configs/demo.py", "--output=out", "--workers=-1"], "flag --workers=-1: -1 is not a non-negative integer."),
        (["--config=configs/demo.py", "--output=out", "--config.data.packing=packed"], "has the value 'packed' (did you mean \"pack\"?)."),
        (["--config=configs/demo.py", "--output=out", "--config.data.source=kvj"], "is neither an embedded text (did you mean \"kjv\"?) nor a file."),
        (["--config=configs/demo.py", "--output=configs", "--workers=1"], "configs is not empty and holds no prepared data"),
        (["--config=configs/demo.py", "--output=README.md"], "README.md is a file; name a folder as --output."),
        (["--config=configs/demo.py", "--output=ftp://host/folder"], "is no place for files"),
        (["--config=configs/demo.py", "--output=out", "--beam=--runer=DirectRunner"], "Apache Beam has no flag '--runer=DirectRunner'"),
    ],
)
def test_mistakes_are_a_sentence(flags, said):
    ended = forked.door("prepare", *flags)
    assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1) and said in ended.stderr and ended.stderr.startswith("error: ")
    assert not (ROOT / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_it_goes_on(tmp_path, door_environment, number):
    """Ctrl-C reaches all processes of a terminal, and says one word; a kill reaches one, and its workers end as well."""
    source = corpora.write(tmp_path / "prose.txt", corpora.prose(20_000) * 100)
    flags = [*FLAGS, f"--config.data.source={source}", "--workers=2", f"--output={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "cdcd_jax.prepare", *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=door_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    tokens = tmp_path / "out" / "unfinished" / "tokens"
    while not (tokens.exists() and any(name.endswith(".json") for name in os.listdir(tokens))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    lines = [line for line in said.splitlines() if not re.match(r"(parts|shards) \w+ \d+/\d+ ", line)]
    assert lines == (["interrupted."] if number == signal.SIGINT else [])
    assert not (tmp_path / "out" / "manifest.json").exists()
    ended = forked.door("prepare", *flags)
    assert ended.code == 0, ended.stderr
    assert sorted(os.listdir(tmp_path / "out" / "tokenizer")) == ["tokenizer.json"] and not (tmp_path / "out" / "unfinished").exists()
