"""docs/DATA.md: its table of keys is the config's, and what it says to run does what it says."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

from etils import epath

from cdcd_jax.config import DataConfig
from cdcd_jax.data import preparation
from tests import corpora

DATA = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "DATA.md").read_text()


def test_the_keys_and_defaults_are_those_of_the_config():
    table = DATA.partition("## Keys")[2].partition("## ")[0]
    documented = {key: default.strip().strip("`") for key, default in re.findall(r"^\| `(\w+)` \|([^|]*)\|", table, flags=re.MULTILINE)}
    assert documented == {field.name: str(field.default) for field in dataclasses.fields(DataConfig)}


def test_lines_become_documents(tmp_path):
    [command] = re.findall(r"^    (python .*json.dumps.*)$", DATA, flags=re.MULTILINE)
    corpora.write(tmp_path / "my.txt", 'a "line"\r\n\n  naïve — “so”\n')
    where = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C"}
    subprocess.run(command, shell=True, cwd=tmp_path, env=where, check=True)
    assert [json.loads(line)["text"] for line in (tmp_path / "my.jsonl").read_text().splitlines()] == ['a "line"', "  naïve — “so”"]


def test_looking_into_a_folder_shows_its_text(tmp_path, capsys):
    [example] = re.findall(r"```python\n(.*?)```", DATA, flags=re.DOTALL)
    texts = [f"document {i}" for i in range(40)]
    source = str(corpora.write(tmp_path / "lines.jsonl", corpora.json_lines(texts)))
    for packing, length in (("pad", 16), ("wrap", 8)):
        config = DataConfig(source=source, tokenizer="byte", sequence_length=length, packing=packing, valid_fraction=0.2)
        preparation.prepare(config, epath.Path(tmp_path / packing))
        exec(compile(example.replace("DIR", str(tmp_path / packing)), "DATA.md", "exec"), {})
        shown = [line[1:-1] for line in capsys.readouterr().out.splitlines()]
        assert len(shown) == 3 and (set(shown) <= set(texts) if packing == "pad" else "".join(shown).startswith("document"))
