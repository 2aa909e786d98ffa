"""Every command of the README is run, on a smaller config: what stands there must work as it stands there."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SMALL = {
    "data.vocab_size": 512, "model.num_layers": 1, "model.scan_unroll": 1, "model.width": 16, "model.num_heads": 2, "model.mlp_width": 16,
    "model.embedding_dim": 8, "train.num_steps": 3, "train.batch_size": 4, "log.probe_sequences": 8, "sample.num_steps": 2,
}  # fmt: skip
OVERRIDES = [f"--config.{key}={value}" for key, value in SMALL.items()]


def commands(start: str) -> list[str]:
    """The README's lines that begin so, without what stands in brackets and what follows a #."""
    lines = [line.strip() for kind, block in BLOCKS if kind == "" for line in block.splitlines()]
    return [re.sub(r" *\[--.*?\]$|  +#.*$", "", line) for line in lines if line.startswith(start)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, door_environment: dict[str, str]) -> dict[str, str]:
    """A user's, but for a cache: each program is compiled once for all commands, which changes no bit of it."""
    plain = {name: value for name, value in door_environment.items() if name != "XLA_FLAGS"}
    return plain | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
    return done


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> tuple[pathlib.Path, str]:
    """The README's first command, in a workdir of its own and on a small model; its workdir and what it printed."""
    assert commands("make") == ["make demo", "make test"]
    workdir = tmp_path_factory.mktemp("readme") / "demo"
    words = ["make", "demo", f"WORKDIR={workdir}", f"TRAIN_FLAGS={' '.join(OVERRIDES)}"]
    return workdir, run(words, environment).stdout


def test_make_demo_leaves_what_the_readme_promises(demo: tuple[pathlib.Path, str]) -> None:
    workdir, said = demo
    for name in ("report.html", "metrics.jsonl", "eval/nll.json", "eval/samples.json", "samples/trajectory.json", "samples/template.jsonl"):
        assert (workdir / name).exists(), name
    assert "bits per character" in said and "All is done" in said


def test_a_second_make_demo_says_that_all_is_done_and_changes_nothing(demo: tuple[pathlib.Path, str], environment: dict[str, str]) -> None:
    workdir, _ = demo
    before = tiny.snapshot(workdir)
    done = run(["make", "demo", f"WORKDIR={workdir}", f"TRAIN_FLAGS={' '.join(OVERRIDES)}"], environment)
    assert "is complete" in done.stderr and "All is done" in done.stdout
    assert tiny.snapshot(workdir) == before


def test_every_command_runs(demo: tuple[pathlib.Path, str], environment: dict[str, str], tmp_path: pathlib.Path) -> None:
    workdir, _ = demo
    own = tmp_path / "my.txt"
    own.write_text((ROOT / "docs" / "DESIGN.md").read_text() * 8)
    doors = [line for line in commands("python -m") if "runs/demo" not in line or "cdcd_jax.train" not in line]
    assert len(doors) == 7, "sample twice, evaluate, report, a training on one's own text, plan, and doctor"
    for line in doors:
        line = line.replace("runs/demo", str(workdir)).replace("runs/mine", str(tmp_path / "mine")).replace("my.txt", str(own))
        words = [sys.executable, *shlex.split(line)[1:]]
        run(words + (OVERRIDES if "cdcd_jax.train" in line else []), environment)
    assert (tmp_path / "mine" / "checkpoints" / "3").is_dir()
    [line] = commands("launch/")
    run([*shlex.split(line.replace("runs/two", str(tmp_path / "two"))), *OVERRIDES], environment | {"PYTHON": sys.executable})
    assert (tmp_path / "two" / "checkpoints" / "3").is_dir()


def test_the_three_lines_of_python_run(demo: tuple[pathlib.Path, str], environment: dict[str, str]) -> None:
    workdir, _ = demo
    (snippet,) = [block for kind, block in BLOCKS if kind == "python"]
    assert len(snippet.strip().splitlines()) == 3
    said = run([sys.executable, "-c", snippet.replace("runs/demo", str(workdir))], environment).stdout
    assert said.startswith("In the beginning") and float(said.split()[-1]) > 0
