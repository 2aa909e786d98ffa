"""The door that prepares data: what it prints, how it ends, and that it goes on."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from cdcd_jax.data.tokenizers import CharTokenizer
from tests import corpora, forked
from tests.forked import ROOT

FLAGS = ["--config=configs/demo27.py", "--config.data.tokenizer=char", "--config.data.sequence_length=16", "--config.data.alphabet=text"]
# The same, a key with a space and one of training besides, in every form in which a flag may be given.
FORMS = ["--config", "configs/demo27.py", "--config.data.tokenizer", "char", "-config.data.sequence_length=16", "-config.data.alphabet", "text",
         "--config.data.text_key=the text", "--noconfig.train.self_conditioning", "--config.data.valid_fraction", ".2"]  # fmt: skip


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_text_is_prepared_and_how_to_train_on_it_is_said(tmp_path):
    source = corpora.write(tmp_path / "my lines.jsonl", corpora.json_lines(corpora.documents(200) + [""], "the text"))
    output = tmp_path / "my output"
    first = forked.door("prepare", *FORMS, "--config.data.source", str(source), f"--output={output}", "--workers=1")
    assert first.code == 0, first.stderr
    shown = {line[:20].strip(): line[20:].split() for line in first.stdout.splitlines()}
    manifest = json.loads((output / "manifest.json").read_text())["splits"]
    assert shown[""] == ["train", "valid"] == list(manifest) and shown["left out, empty"] == ["1", "0"]
    for name, key in (("documents", "num_documents"), ("tokens", "num_tokens"), ("dropped at the end", "tokens_dropped"), ("records", "num_records")):
        assert shown[name] == [f"{about[key]:,}" for about in manifest.values()]
    assert {"manifest.json", "token_counts.json", "tokenizer/tokenizer.json", "train-00000-of-00001.array_record"} <= set(content(output))
    assert re.match(r"[\d,]+ tokens in [\d.]+ s, [\d,]+ a second; train", first.stdout.splitlines()[-2])
    command = shlex.split(first.stdout.splitlines()[-1])
    assert command[:5] == ["python", "-m", "cdcd_jax.train", "--config=configs/demo27.py", "--workdir=runs/NAME"]
    assert sorted(command[5:]) == sorted(
        [*FLAGS[1:], "--config.data.text_key=the text", "--config.train.self_conditioning=False", "--config.data.valid_fraction=0.2",
         f"--config.data.source={output}"]
    )  # fmt: skip
    # These flags say the same as those given.
    again = forked.door("prepare", command[3], *command[5:], f"--config.data.source={source}", f"--output={output}")
    assert (again.code, again.stdout.count("\n")) == (0, 1), again.stderr
    assert re.match(r".*/my output is complete: [\d,]+ records, every one of them as it was written.\n", again.stdout)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--output=out"], "the flag --config is required."),
        (["--config=configs/demo.py"], "the flag --output is required."),
        (["--config=configs/demo.py", "--output=out", "--worker=2"], "Unknown command line flag 'worker'. Did you mean: workers ?"),
        (["--config=configs/demo.py", "--output=out", "--workers=-1"], "flag --workers=-1: -1 is not a non-negative integer."),
        (["--config=configs/demo.py", "--output=out", "--config.data.packing=packed"], "has the value 'packed' (did you mean \"pack\"?)."),
        (["--config=configs/demo.py", "--output=out", "--config.data.source=kvj"], "(did you mean \"kjv\"?) nor a file or folder; name"),
        (["--config=configs/text8.py", "--output=out"], "made by prepare, or an embedded text (kjv): --config.data.source=PLACE."),
        (["--config=configs/novels27.py", "--output=out"], "with {split} for the split: --config.data.source='PATH/{split}.txt'."),
        (["--config=configs/demo.py", "--output=out", "--config.data.source=a.{splt}.txt"], "write '{split}', which '{splt}' is not."),
        (["--config=configs/demo.py", "--output=out", "--config.data.valid_fraction=0"], "give a share, such as --config.data.valid_fraction=0.05."),
        (["--config=configs/demo.py", "--output=out", "--config.data.test_fraction=0.95"], "leave nothing of 'kjv' to train on: give smaller shares"),
        (["--config=configs/demo.py", "--output=configs", "--workers=1"], "configs is not empty and holds no prepared data"),
        (["--config=configs/demo.py", "--output=README.md"], "README.md is a file; name a folder as --output."),
        (["--config=configs/demo.py", "--output=ftp://host/folder"], "is no place for files"),
        (["--config=configs/demo.py", "--output=out", "--beam=--runer=DirectRunner"], "Apache Beam has no flag '--runer=DirectRunner'"),
        (["--config=configs/demo.py", "--output=out", "--workers=2", "--beam=--runner=DirectRunner"], "runner's: give one of them alone."),
    ],
)
def test_mistakes_are_a_sentence(flags, said):
    ended = forked.door("prepare", *flags)
    assert (ended.code, ended.stdout, ended.stderr.count("\n")) == (2, "", 1) and said in ended.stderr and ended.stderr.startswith("error: ")
    assert not (ROOT / "out").exists()


def test_a_file_of_lines_is_one_document_and_a_tokenizer_is_found_in_a_folder(tmp_path):
    """Both are said in a line: that padded rows of it are not of its lines; and how to train, for which the tokenizer's place is of no use."""
    CharTokenizer("abcdefghijklmnopqrstuvwxyz \n").save(tmp_path / "other" / "tokenizer")
    source = corpora.write(tmp_path / "lines.txt", "a line of text\nand another\n" * 60)
    flags = [f"--config.data.tokenizer_from={tmp_path / 'other'}", "--config.data.packing=pad", f"--config.data.source={source}"]
    ended = forked.door("prepare", *FLAGS, *flags, f"--output={tmp_path / 'out'}", "--workers=1")
    assert ended.code == 0 and "tokenizer_from" not in ended.stdout
    warned = [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1 and "data.packing = 'pad' keeps documents apart, and in train and valid there is only one: a file of text" in warned[0]


def written(folder: pathlib.Path, notes: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Of the files that a note says are finished: the number on the disk and the time, which are others when a file is written a second time."""
    told = [path.name.removesuffix(".json") for path in notes.glob("*.json")] if notes.exists() else []
    found = [path for path in folder.iterdir() if path.name in told or path.stem in told] if told else []
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_interrupted_and_killed_it_goes_on(tmp_path, door_environment):
    """Ctrl-C reaches all processes of a terminal, and says one line; a kill reaches one, and its workers end as well. Nothing is done twice."""
    source = corpora.write(tmp_path / "prose.txt", corpora.prose(20_000) * 100)
    out, unfinished = tmp_path / "out", tmp_path / "out" / "unfinished"
    flags = [*FLAGS, f"--config.data.source={source}", "--workers=2", f"--output={out}"]
    command = [sys.executable, "-m", "cdcd_jax.prepare", *flags]

    def end(folder: pathlib.Path, notes: pathlib.Path, number: signal.Signals) -> dict[str, tuple[int, int]]:
        """Prepares until something is finished there, and gives the signal."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, env=door_environment, process_group=0, **pipes)
        while not (notes.exists() and any(notes.glob("*.json"))):
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
        _, said = process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGINT else -9)
        lines = [line for line in said.splitlines() if not re.match(r"(parts|shards) \w+ \d+/\d+ ", line)]
        assert lines == (["interrupted; the same command goes on from there."] if number == signal.SIGINT else [])
        assert not (out / "manifest.json").exists()
        return written(folder, notes)

    tokens = end(unfinished / "tokens", unfinished / "tokens", signal.SIGINT)
    shards = end(out, unfinished / "shards", signal.SIGKILL)
    assert tokens and tokens.items() <= written(unfinished / "tokens", unfinished / "tokens").items()
    ended = forked.door("prepare", *flags)
    assert ended.code == 0, ended.stderr
    assert re.match(r"[\d,]+ tokens, some of them finished before; train", ended.stdout.splitlines()[-2])  # the last start's speed is not theirs
    assert shards and all((path.stat().st_ino, path.stat().st_mtime_ns) == shards[path.name] for path in out.iterdir() if path.name in shards)
    assert shards.keys() < set(os.listdir(out)) and sorted(os.listdir(out / "tokenizer")) == ["tokenizer.json"] and not unfinished.exists()
