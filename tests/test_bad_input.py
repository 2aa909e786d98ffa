"""A user's mistakes at the real doors: one line that says what is wrong, an exit code that is not 0, and nothing overwritten."""

import dataclasses
import gzip
import itertools
import pathlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tests import forked, tiny


@dataclasses.dataclass
class Place:
    """A folder with a corpus, a finished run of it, and what goes wrong with them."""

    folder: pathlib.Path
    count: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    @property
    def corpus(self) -> pathlib.Path:
        return self.folder / "corpus.txt"

    @property
    def run(self) -> pathlib.Path:
        return self.folder / "run"

    def file(self, name: str, content: bytes | str) -> pathlib.Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def copy(self, name: str) -> pathlib.Path:
        """A copy of the run, to damage."""
        return pathlib.Path(shutil.copytree(self.run, self.folder / name))

    def train(self, workdir: pathlib.Path | str, source: pathlib.Path | str | None = None, **changes: Any) -> tuple[str, list[str]]:
        """The door and the flags of a tiny run; a double underscore stands for the dot of a key."""
        return "train", tiny.flags(source or self.corpus, workdir, {key.replace("__", "."): value for key, value in changes.items()})

    def fresh(self, source: pathlib.Path | str | None = None, **changes: Any) -> tuple[str, list[str]]:
        """The same into a workdir that is not there, and must not be there afterwards unless it is a run's."""
        return self.train(self.folder / "fresh" / str(next(self.count)), source, **changes)

    def sample(self, *flags: str, workdir: pathlib.Path | None = None) -> tuple[str, list[str]]:
        return "sample", [f"--workdir={workdir or self.run}", *flags]

    def evaluate(self, *flags: str, workdir: pathlib.Path | None = None) -> tuple[str, list[str]]:
        return "evaluate", [f"--workdir={workdir or self.run}", *flags]

    def config(self, name: str, body: str) -> tuple[str, list[str]]:
        path = self.file(f"{name}.py", body)
        return "train", [f"--config={path}", f"--workdir={self.folder / 'fresh' / name}"]

    def without_checkpoint(self, name: str) -> pathlib.Path:
        workdir = self.copy(name)
        shutil.rmtree(workdir / "checkpoints")
        return workdir

    def damaged(self, name: str) -> pathlib.Path:
        workdir = self.copy(name)
        tiny.largest(workdir / "checkpoints" / "20").write_bytes(b"")
        return workdir

    def without_arrays(self) -> pathlib.Path:
        workdir = self.copy("without_arrays")
        for path in (workdir / "checkpoints" / "20" / "state").iterdir():
            if path.is_dir():
                shutil.rmtree(path)
        return workdir

    def with_file(self, name: str, path: str, content: str) -> pathlib.Path:
        workdir = self.copy(name)
        (workdir / path).write_text(content)
        return workdir

    def other_tokenizer(self) -> pathlib.Path:
        workdir = self.copy("other_tokenizer")
        path = workdir / "tokenizer" / "tokenizer.json"
        path.write_text(path.read_text().replace('"alphabet": " ', '"alphabet": "Z '))
        return workdir

    def occupied(self) -> pathlib.Path:
        (self.folder / "occupied").mkdir()
        self.file("occupied/letter.txt", "to my heirs")
        return self.folder / "occupied"

    def other_text(self, old: bool = False, saved: bool = True) -> tuple[str, list[str]]:
        """The run's own command, after its text was edited; in a workdir without fingerprints, or without checkpoints."""
        edited = self.file("edited.txt", tiny.corpus().replace("black", "brown"))
        text = (self.run / "config.json").read_text().replace(str(self.corpus), str(edited))
        workdir = self.with_file(f"edited {old} {saved}", "config.json", text)
        if old:
            (workdir / "fingerprints.json").unlink()
        if not saved:
            shutil.rmtree(workdir / "checkpoints")
            (workdir / "saved_step").unlink()
        return self.train(workdir, edited, train__num_steps=30)

    @staticmethod
    def flat(call: tuple[str, list[str]]) -> list[str]:
        return [call[0], *call[1]]


# name: (the call, what the one line must contain)
Case = tuple[Callable[[Place], tuple[str, list[str]]], str]
CASES: dict[str, Case] = {
    # The corpus
    "empty corpus": (lambda p: p.fresh(p.file("empty.txt", "")), "empty.txt' is empty; it must hold UTF-8 text."),
    "white corpus": (lambda p: p.fresh(p.file("white.txt", " \n \n")), "white.txt' is empty"),
    "missing corpus": (lambda p: p.fresh(p.folder / "none.txt"), "none.txt' does not exist; name a path or glob of UTF-8 text files"),
    "unknown corpus": (lambda p: p.fresh("kvj"), "data.source 'kvj' is neither an embedded text (did you mean \"kjv\"?) nor a file or folder;"),
    "corpus is a folder": (lambda p: p.fresh(p.run), "is a directory; name a file or a glob of files"),
    "binary corpus": (lambda p: p.fresh(p.file("binary.txt", b"text\0text")), "binary.txt' is binary (a NUL at byte 4)"),
    "latin-1 corpus": (lambda p: p.fresh(p.file("latin.txt", "né".encode("latin-1"))), "latin.txt' is not UTF-8 (byte 1 is 0xe9)"),
    "truncated corpus": (lambda p: p.fresh(p.file("cut.txt.gz", gzip.compress(b"the cat is black")[:-9])), "cut.txt.gz' is truncated: its gzip"),
    "corpus of other lines": (lambda p: p.fresh(p.file("a.jsonl", '{"body": "a"}\n')), "a.jsonl' has in line 1 no key 'text', which data.text_key"),
    "unknown data set": (lambda p: p.fresh("tfds:lm1bb"), "TFDS has no data set 'lm1bb' (did you mean \"lm1b\"?)."),
    "data set by hand": (lambda p: p.fresh("tfds:c4/webtextlike"), "downloads/manual': You are using a C4 config that requires some files to be"),
    "no saved data set": (lambda p: p.fresh("hf:/nowhere"), "data.source 'hf:/nowhere' is no folder; name one that save_to_disk has written"),
    "short corpus": (lambda p: p.fresh(p.file("short.txt", "a few words")), "9 bytes, fewer than one sequence of data.sequence_length = 16 tokens"),
    "one sequence held out": (lambda p: p.fresh(p.file("one.txt", "the cat is black " * 8)), "fewer than two sequences of data.sequence_length = 16"),
    "nothing held out": (lambda p: p.fresh(data__valid_fraction=0.0), "the held-out part of"),
    # Flags and config
    "unknown key": (lambda p: p.fresh(train__num_stps=3), "unknown config key 'train.num_stps' (did you mean \"train.num_steps\"?)."),
    "unknown section": (lambda p: p.fresh(trian__num_steps=3), "unknown config key 'trian.num_steps' (did you mean \"train.num_steps\"?)."),
    "section as key": (lambda p: ("train", ["--config=configs/demo.py", "--workdir=w", "--config.train=3"]), "unknown config key 'train'"),
    "wrong type": (lambda p: p.fresh(train__num_steps="abc"), "config key 'train.num_steps' takes a value of type int, not 'abc'."),
    "broken number": (lambda p: p.fresh(train__num_steps=1.5), "config key 'train.num_steps' takes a value of type int, not '1.5'."),
    "wrong truth": (lambda p: p.fresh(train__self_conditioning="maybe"), "'train.self_conditioning' takes a value of type bool, not 'maybe'."),
    "impossible value": (lambda p: p.fresh(train__batch_size=0), "config key 'train.batch_size' must be above 0, not 0."),
    "unknown choice": (lambda p: p.fresh(optim__name="muno"), "config key 'optim.name' has the value 'muno' (did you mean \"muon\"?)."),
    "seed": (lambda p: p.fresh(train__seed=-1), "train.seed must lie in [0, 2^32), not -1."),
    "mesh": (lambda p: p.fresh(mesh__fsdp=3), "does not fit the 1 device: mesh.fsdp x mesh.tensor must divide 1, so it may be 1, not 3."),
    "unknown flag": (lambda p: ("train", ["--config=configs/demo.py", "--workdri=w"]), "'workdri'. Did you mean: workdir ?"),
    "no workdir": (lambda p: ("train", ["--config=configs/demo.py"]), "the flag --workdir is required."),
    "no config": (lambda p: ("train", ["--workdir=w"]), "the flag --config is required."),
    "config before its file": (
        lambda p: ("train", ["--config.train.seed=1", "--config=configs/demo.py", "--workdir=w"]), "before a value for --config was specified"
    ),
    "missing config": (lambda p: ("train", ["--config=configs/dmo.py", "--workdir=w"]), "the config file 'configs/dmo.py' does not exist"),
    "config is no Python": (lambda p: p.config("syntax", "def get_config(:\n"), "syntax.py' fails in line 1: SyntaxError: invalid syntax"),
    "config fails": (lambda p: p.config("fails", "import sys\n\nx = undefined\n"), "fails.py' fails in line 3: NameError: name 'undefined'"),
    "config fails late": (lambda p: p.config("late", "def get_config():\n    return {}['a']\n"), "late.py' fails in line 2: KeyError: 'a'"),
    "config without function": (lambda p: p.config("other", "def get_confg():\n    pass\n"), "other.py' does not define get_config()"),
    "config returns nonsense": (lambda p: p.config("three", "def get_config():\n    return 3\n"), "must hold keys and values, not 3."),
    "config with unknown key": (
        lambda p: p.config("typo", "from cdcd_jax.config import defaults as d\ndef get_config():\n    c = d()\n    c.optim.rate = 1\n    return c\n"),
        "unknown config key 'optim.rate'",
    ),
    # The workdir
    "another config": (lambda p: p.train(p.run, train__batch_size=16), "holds a run with train.batch_size = 8, and this config has 16; name another"),
    "another text": (lambda p: p.other_text(), "edited.txt' does not hold the data that this run was trained on (compared by content"),
    "another text, of an older version": (lambda p: p.other_text(old=True), "was trained with other data than "),
    "another text before anything is saved": (lambda p: p.other_text(saved=False), "edited.txt' does not hold the data that this run was trained on"),
    "another tokenizer": (lambda p: p.train(p.other_tokenizer(), train__num_steps=30), "is not the one that was saved"),
    "no tokenizer": (lambda p: p.train(p.with_file("no_tokenizer", "tokenizer/tokenizer.json", "{"), train__num_steps=30), "is damaged"),
    "damaged config.json": (lambda p: p.train(p.with_file("no_config", "config.json", "{")), "config.json cannot be read"),
    "config.json of another version": (
        lambda p: p.train(p.with_file("old_config", "config.json", '{"train": {"speed": 3}}')), "unknown config key 'train.speed'"
    ),
    "a folder that is no run": (lambda p: p.train(p.occupied()), "occupied is not empty and holds no run (no config.json); name a new folder"),
    "workdir under a file": (lambda p: p.train(p.corpus / "run"), "corpus.txt/run cannot be written (Not a directory)."),
    "workdir is a file": (lambda p: p.train(p.corpus), "corpus.txt cannot be written (Not a directory)."),
    "workdir that nobody may make": (lambda p: p.train("/proc/run"), "the workdir /proc/run cannot be written ("),
    "fewer steps than are saved": (
        lambda p: p.train(p.run, train__num_steps=10), "has a checkpoint of step 20, beyond train.num_steps = 10: give at least 20."
    ),
    "lost checkpoints": (lambda p: p.train(p.without_checkpoint("lost")), "lost has saved step 20 but holds no checkpoint: put its"),
    "unreadable checkpoint": (
        lambda p: p.train(p.damaged("damaged_train"), train__num_steps=30), "damaged_train/checkpoints/20 is damaged (state/"
    ),
    "a step that is not there": (
        lambda p: ("train", [*p.train(p.run, train__num_steps=30)[1], "--go_back_to=15"]), "there are those of steps 10 and 20."
    ),
    "a step of no run": (lambda p: ("train", [*p.fresh()[1], "--go_back_to=15"]), "there is none."),
    "no step": (lambda p: ("train", [*p.train(p.run)[1], "--go_back_to=-5"]), "flag --go_back_to=-5"),
    # The loss
    "no number": (lambda p: p.fresh(optim__learning_rate=1e30), "is not finite at step 2, and nothing is saved yet: train in another workdir"),
    # Sampling
    "sample: no such run": (lambda p: p.sample(workdir=p.folder / "nowhere"), "nowhere is not a run's workdir: it has no config.json."),
    "sample: not a run": (lambda p: p.sample(workdir=p.folder), "is not a run's workdir: it has no config.json."),
    "sample: no checkpoint": (lambda p: p.sample(workdir=p.without_checkpoint("bare_sample")), "there is no checkpoint in"),
    "sample: unreadable checkpoint": (lambda p: p.sample(workdir=p.damaged("damaged_sample")), "damaged_sample/checkpoints/20 is damaged (state/"),
    "sample: checkpoint without arrays": (lambda p: p.sample(workdir=p.without_arrays()), "without_arrays/checkpoints/20 is damaged (state/"),
    "sample: damaged tokenizer": (lambda p: p.sample(workdir=p.with_file("t", "tokenizer/tokenizer.json", "[]")), "is damaged"),
    "sample: unknown solver": (lambda p: p.sample("--solver=eulr"), "unknown solver 'eulr' (did you mean \"euler\"?)."),
    "sample: no samples": (lambda p: p.sample("--num_samples=0"), "num_samples must be at least 1, not 0."),
    "sample: no steps": (lambda p: p.sample("--num_steps=0"), "num_steps must be at least 1, not 0."),
    "sample: no number of steps": (lambda p: p.sample("--num_steps=many"), "flag --num_steps=many"),
    "sample: temperature": (lambda p: p.sample("--score_temperature=0"), "score_temperature must be above 0 and finite, not 0.0."),
    "sample: guidance": (lambda p: p.sample("--guidance=-1"), "guidance must be 0 or more (1 is none) and finite, not -1.0."),
    "sample: long prompt": (lambda p: p.sample("--prompt=the cat is black"), "the prompt fills all 16 tokens of a sequence"),
    "sample: longer prompt": (lambda p: p.sample("--prompt=the cat is black."), "the prompt takes 17 tokens, and this model's sequences have 16"),
    "sample: unknown letters": (lambda p: p.sample("--prompt=THE cat"), "the char tokenizer lacks the characters 'E' 'H' 'T'"),
    "sample: unknown letters in a template": (lambda p: p.sample("--template=a [4]!"), "the char tokenizer lacks the characters '!'"),
    "sample: a prompt and a template": (lambda p: p.sample("--prompt=a", "--template=a [2]"), "give a prompt or a template, not both"),
    "sample: long template": (lambda p: p.sample("--template=a [20] cat"), "the blanks of the template take 20 tokens, and this model's"),
    "sample: template of many words": (lambda p: p.sample("--template=the cat is [4] or black"), "the template takes 24 tokens, and this model's"),
    "sample: endless blank": (lambda p: p.sample("--template=a [999999999]"), "take 999999999 tokens, and this model's sequences have 16"),
    "sample: blank beyond all numbers": (lambda p: p.sample(f"--template=a [{'9' * 5000}]"), "of the template is no whole number of tokens"),
    "sample: no blank": (lambda p: p.sample("--template=a cat"), "leaves nothing to generate: it has no blank such as [8]."),
    "sample: empty template": (lambda p: p.sample("--template="), "leaves nothing to generate"),
    "sample: empty blank": (lambda p: p.sample("--template=a [] cat"), "the blank '[]' of the template is no whole number of tokens"),
    "sample: blank of nothing": (lambda p: p.sample("--template=a [0] cat"), "the blank '[0]' of the template is no whole number of tokens"),
    "sample: blank of words": (lambda p: p.sample("--template=a [two] cat"), "the blank '[two]' of the template is no whole number of tokens"),
    "sample: half a bracket": (lambda p: p.sample("--template=a [2 cat"), "has a bracket without its end; write [[ for a bracket."),
    "sample: output": (lambda p: p.sample("--num_samples=1", f"--output={p.corpus}/x.jsonl"), "x.jsonl cannot be written ("),
    "sample: output's name": (lambda p: p.sample("--output=x.json"), "'x.json' is no name for the file that will be written: take another"),
    "sample: no name": (lambda p: p.sample("--trajectory="), "'' is no place for files"),
    # Scoring
    "evaluate: unknown metric": (lambda p: p.evaluate("--metrics=nll,entrpy"), "unknown metric 'entrpy' (did you mean \"entropy\"?)."),
    "evaluate: no metric": (lambda p: p.evaluate("--metrics="), "--metrics names no metric (known: entropy, nll)."),
    "evaluate: seed": (lambda p: p.evaluate("--seed=-1"), "flag --seed=-1: "),
    "evaluate: unknown split": (lambda p: p.evaluate("--split=tset"), "unknown split 'tset' (did you mean \"test\"?)."),
    "evaluate: no test split": (lambda p: p.evaluate("--split=test"), "has no split 'test', only train and valid."),
    "evaluate: one sequence": (lambda p: p.evaluate("--num_sequences=1"), "there are too few sequences to score, 1: two of 16 tokens are needed."),
    "evaluate: no draws": (lambda p: p.evaluate("--draws=0"), "draws must be at least 1, not 0."),
    "evaluate: no samples": (lambda p: p.evaluate("--metrics=entropy", "--num_samples=0"), "num_samples must be at least 1, not 0."),
    "evaluate: not a run": (lambda p: p.evaluate(workdir=p.folder), "is not a run's workdir: it has no config.json."),
    "evaluate: no checkpoint": (lambda p: p.evaluate(workdir=p.without_checkpoint("bare_evaluate")), "there is no checkpoint in"),
    "evaluate: unreadable checkpoint": (lambda p: p.evaluate(workdir=p.damaged("damaged_evaluate")), "with --go_back_to=10 goes on from step 10"),
    "evaluate: the text is gone": (
        lambda p: p.evaluate(workdir=p.with_file("moved", "config.json", (p.run / "config.json").read_text().replace("corpus.txt", "gone.txt"))),
        "gone.txt' does not exist",
    ),
    "evaluate: unwritable": (
        lambda p: p.evaluate("--metrics=entropy", "--num_samples=1", workdir=p.with_file("flat", "eval", "")), "cannot be written ("
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("bad"))
    place.file("corpus.txt", tiny.corpus())
    (place.folder / "fresh").mkdir()
    ended = forked.door(*place.flat(place.train(place.run)))
    assert ended.code == 0, ended.stderr
    return place


@pytest.fixture(scope="module")
def ended(place: Place, request: pytest.FixtureRequest) -> dict[str, "Future[tuple[forked.Ended, bool]]"]:
    """Each case that is asked for, run in the background, two at a time: how it ended, and whether all files stayed as they were."""
    here = [item for item in request.session.items if getattr(item, "originalname", "") == test_one_line_and_nothing_overwritten.__name__]
    asked = [item.callspec.params["name"] for item in here]

    def run(name: str) -> tuple[forked.Ended, bool]:
        call = place.flat(CASES[name][0](place))
        workdir = next((pathlib.Path(flag.partition("=")[2]) for flag in call if flag.startswith("--workdir=")), place.run)
        inside = workdir if workdir != place.folder and workdir.is_dir() else place.run
        before = tiny.snapshot(inside)
        result = forked.door(*call)
        after = tiny.snapshot(inside)
        return result, all(after.get(path) == state for path, state in before.items())

    return {name: forked.POOL.submit(run, name) for name in asked}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_overwritten(name: str, ended: dict[str, "Future[tuple[forked.Ended, bool]]"]) -> None:
    result, unchanged = ended[name].result()
    *before, last = result.stderr.splitlines() or [""]
    assert result.code == 2, f"it ended with {result.code}: {result.stderr}"
    assert last.startswith("error: ") and CASES[name][1] in last, result.stderr
    assert all(line.startswith(("training ", "sampling ", "compiling ")) for line in before), result.stderr  # progress, where it took that long
    assert last.endswith((".", "'")) or "Did you mean" in last
    assert unchanged


def test_no_run_was_begun(place: Place, ended: dict[str, Any]) -> None:
    """What fails before the first step leaves no run behind that would be in the way of the corrected command."""
    for future in ended.values():
        future.result()
    begun = [path.parent for path in (place.folder / "fresh").glob("*/config.json")]
    numbers = [name for name in ended if name == "no number"]
    assert len(begun) == len(numbers), begun
