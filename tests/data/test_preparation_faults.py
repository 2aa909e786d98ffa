"""Preparing data when something goes wrong: it goes on where it was, takes nothing for what it is not, and leaves alone what is not its own."""

import dataclasses
import json
import os
import pathlib
import random
import resource
import shutil
import sys
from collections.abc import Callable
from typing import Any

import pytest
from etils import epath

from benchmarks import read_back
from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import layout, places, preparation, records, spans, stages, streams, tokenizers
from tests import corpora, forked, tiny

CHARS = DataConfig(tokenizer="char", sequence_length=16, valid_fraction=0.2, test_fraction=0.1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Parts, batches and shards so small that a short text has several."""
    monkeypatch.setattr(places, "BYTES", (1500, 1 << 24))
    monkeypatch.setattr(layout, "LEAST_SHARD", 3000)


@pytest.fixture
def config(tmp_path) -> DataConfig:
    return dataclasses.replace(CHARS, source=str(corpora.write(tmp_path / "lines.jsonl", corpora.json_lines(corpora.documents(60)))))


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def prepare(config: DataConfig, folder: pathlib.Path, run: Any = map, said: list[str] | None = None) -> tuple[records.Manifest, bool]:
    return preparation.prepare(config, epath.Path(folder), run, say=(said if said is not None else []).append)


class Stopped(BaseException):
    """What no code expects."""


def stop_at(stage: Callable, number: int) -> Callable:
    """A map that is stopped before the item of that number of a stage."""

    def run(function, items):
        for i, item in enumerate(items):
            if getattr(function, "func", function) is stage and i == number:
                raise Stopped
            yield function(item)

    return run


def unfinished(config: DataConfig, folder: pathlib.Path, stage: Callable = stages.fill, number: int = 2) -> pathlib.Path:
    """What is there when a preparation stops, by default when two shards are written."""
    with pytest.raises(Stopped):
        prepare(config, folder, stop_at(stage, number))
    assert not (folder / "manifest.json").exists()
    return folder


def life(config: DataConfig, folder: str, operations: int) -> None:
    """Prepares, and dies as by SIGKILL before so many operations on files of the folder are done."""
    places.BYTES, layout.LEAST_SHARD = (1500, 1 << 24), 3000
    left = operations

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event.split(".")[0] in ("open", "os", "shutil") and arguments and str(arguments[0]).startswith(folder):
            left -= 1
            if left < 0:
                os._exit(9)

    sys.addaudithook(count)
    preparation.prepare(config, epath.Path(folder))


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_goes_on(config, tmp_path, seed):
    """Lives of random lengths, until one comes to the end: the folder is that of an undisturbed preparation, and was never whole before."""
    prepare(config, tmp_path / "undisturbed")
    generator, codes = random.Random(seed), []
    while 0 not in codes:
        assert len(codes) < 60
        operations = generator.choice([generator.randrange(1, 60), generator.randrange(30, 120)])
        process = forked.CONTEXT.Process(target=life, args=(config, str(tmp_path / "killed"), operations))
        process.start()
        process.join(120)
        codes.append(process.exitcode)
        if (tmp_path / "killed" / "manifest.json").exists():
            whole = {name: data for name, data in content(tmp_path / "killed").items() if not name.startswith("unfinished")}
            assert whole == content(tmp_path / "undisturbed")
    assert set(codes) == {0, 9} and len(codes) > 4
    assert content(tmp_path / "killed") == content(tmp_path / "undisturbed")


def test_what_is_finished_is_not_done_again(monkeypatch, config, tmp_path):
    prepare(config, tmp_path / "undisturbed")
    folder = unfinished(config, tmp_path / "out")
    written: list[str] = []
    write_shard = records.write_shard
    monkeypatch.setattr(streams, "Writer", None)
    monkeypatch.setattr(tokenizers, "from_sample", None)
    monkeypatch.setattr(records, "write_shard", lambda path, found: written.append(path.name) or write_shard(path, found))
    manifest, _ = prepare(config, folder)
    assert len(written) == len(manifest.shards) - 2
    assert content(folder) == content(tmp_path / "undisturbed")


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[pathlib.Path], Any]] = {
    "tokens cut short": lambda folder: flip_length(folder / "unfinished/tokens/000001.train"),
    "tokens changed": lambda folder: flip(folder / "unfinished/tokens/000001.train"),
    "tokens gone": lambda folder: (folder / "unfinished/tokens/000001.train").unlink(),
    "all tokens gone": lambda folder: shutil.rmtree(folder / "unfinished/tokens"),
    "note damaged": lambda folder: (folder / "unfinished/tokens/000001.json").write_text("{"),
    "note of another": lambda folder: (folder / "unfinished/tokens/000001.json").write_text('{"key": "x", "content": {}}'),
    "shard changed": lambda folder: flip(next(folder.glob("*.array_record"))),
    "shard cut short": lambda folder: flip_length(next(folder.glob("*.array_record"))),
    "shard gone": lambda folder: next(folder.glob("*.array_record")).unlink(),
    "note of a shard gone": lambda folder: next((folder / "unfinished/shards").glob("*.json")).unlink(),
    "tokenizer damaged": lambda folder: (folder / "unfinished/tokenizer/tokenizer.json").write_text("{"),
    "plan damaged": lambda folder: (folder / "unfinished/plan.json").write_text("{"),
    "names of shards gone": lambda folder: (folder / "unfinished/shards.json").unlink(),
}


def flip_length(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_done_again(config, tmp_path, name):
    prepare(config, tmp_path / "undisturbed")
    folder = unfinished(config, tmp_path / "out")
    DAMAGE[name](folder)
    prepare(config, folder)
    assert content(folder) == content(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"sequence_length": 8}, "data.sequence_length = 16 there and 8 here"),
        ({"packing": "pad", "valid_fraction": 0.3}, "data.valid_fraction = 0.2 there and 0.3 here, and data.packing = 'wrap' there and 'pad' here"),
        ({"source": "other"}, "the text is another"),
        ({"split": "hash"}, "data.split = 'auto' there and 'hash' here"),  # which is what auto means for this source: the text is the same
    ],
)
def test_another_plan_is_refused(config, tmp_path, change, said):
    """Once a part is finished, and all the more once all is; what is there is left as it is, and goes on. Before that it is begun anew."""
    if "source" in change:
        change = {"source": str(corpora.write(tmp_path / "other.jsonl", corpora.json_lines(corpora.documents(61))))}
    other = dataclasses.replace(config, **change)
    for number in (1, None):
        folder = tmp_path / "out"
        unfinished(config, folder, stages.tokenise, number) if number else prepare(config, folder)
        before = tiny.snapshot(folder)
        what, way = ("partly prepared", f", or remove {folder} to begin anew") if number else ("prepared", "")
        with pytest.raises(UserError) as error:
            prepare(other, folder)
        assert str(error.value) == f"{folder} is {what}, but otherwise ({said}); name another folder as --output{way}."
        assert tiny.snapshot(folder) == before
    early = unfinished(config, tmp_path / "early", stages.tokenise, 0)
    (early / "letter.txt").write_text("to my heirs")
    heard: list[str] = []
    prepare(other, early, said=heard)
    prepare(other, tmp_path / "undisturbed")
    assert heard == [f"{early} is begun anew: {said}."]
    assert content(early) == content(tmp_path / "undisturbed") | {"letter.txt": b"to my heirs"}


def test_shards_of_another_plan_are_taken_away(config, tmp_path):
    """Where all that was finished is gone but for them, which others of their names might be taken for."""
    other = dataclasses.replace(config, packing="pad")
    folder = unfinished(config, tmp_path / "out")
    shutil.rmtree(folder / "unfinished" / "tokens")
    prepare(other, folder)
    prepare(other, tmp_path / "undisturbed")
    assert content(folder) == content(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "name", ["letter.txt", "unfinished/draft.txt", "unfinished/tokens.txt", "tokenizer/tokenizer.json", "train-00000-of-00001.array_record"]
)
def test_a_folder_of_others_is_refused(config, tmp_path, name):
    corpora.write(tmp_path / "out" / name, "dear diary")
    before = tiny.snapshot(tmp_path / "out")
    with pytest.raises(UserError, match="is not empty and holds no prepared data"):
        prepare(config, tmp_path / "out")
    assert tiny.snapshot(tmp_path / "out") == before


def test_a_manifest_of_others_and_a_file_are_refused(config, tmp_path):
    corpora.write(tmp_path / "out" / "manifest.json", '{"name": "an extension"}')
    with pytest.raises(UserError, match="manifest.json is damaged"):
        prepare(config, tmp_path / "out")
    with pytest.raises(UserError, match="lines.jsonl is a file; name a folder as --output"):
        prepare(config, tmp_path / "lines.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        prepare(config, tmp_path / "lines.jsonl" / "out")


def test_files_of_others_in_unfinished_stay(config, tmp_path):
    folder = unfinished(config, tmp_path / "out")
    (folder / "unfinished" / "draft.txt").write_text("dear diary")
    prepare(config, folder)
    assert content(folder)["unfinished/draft.txt"] == b"dear diary" and os.listdir(folder / "unfinished") == ["draft.txt"]


def test_two_at_once_are_refused(config, tmp_path):
    """In every stage of the first, the listing included, which goes on undisturbed."""
    stages_seen = []

    def run(function, items):
        stages_seen.append(getattr(function, "func", function))
        with pytest.raises(UserError, match="another process prepares .*out at this moment"):
            prepare(config, tmp_path / "out")
        return map(function, items)

    prepare(config, tmp_path / "out", run)
    assert {spans.scan, spans.hash_file, stages.tokenise, stages.fill} <= set(stages_seen)
    prepare(config, tmp_path / "undisturbed")
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_what_cannot_be_listed_leaves_nothing(config, tmp_path):
    """Nor does what was killed there keep another from it."""
    for folder in (tmp_path / "new" / "out", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="does not exist"):
            prepare(dataclasses.replace(config, source=str(tmp_path / "none.txt")), folder)
        assert sorted(os.listdir(tmp_path)) == ["empty", "lines.jsonl"] and not os.listdir(tmp_path / "empty")
    corpora.write(tmp_path / "empty" / "unfinished" / "lock", "")
    corpora.write(tmp_path / "empty" / "unfinished" / "results-0123", "of machines")
    prepare(config, tmp_path / "empty")
    assert not (tmp_path / "empty" / "unfinished").exists()


@pytest.mark.parametrize(
    "source, output, refused",
    [
        ("**", "out", True),
        ("**/*.json", "books/deep/out", True),
        ("*/*", "books", True),
        ("books/{split}/**", "books/validation/out", True),
        ("**/lines.jsonl", "out", False),
        ("*/*.txt", "books", False),
        ("*", "out", False),
        ("**", "../beside", False),
        ("**", ".out", False),  # hidden names are not among them
    ],
)
def test_an_output_that_the_source_would_read_is_refused(config, tmp_path, monkeypatch, source, output, refused):
    """The first time as well as the second, before anything is written; relative names are those of the same place."""
    home = tmp_path / "home"
    for name in ("a/lines.jsonl", "a/b.txt", "books/train/0.jsonl", "books/valid/0.jsonl", "lines.jsonl"):
        corpora.write(home / name, corpora.json_lines(corpora.documents(40)))
    if output == "books":
        shutil.rmtree(home / "books")
    monkeypatch.chdir(home)
    config = dataclasses.replace(config, source=source if refused else f"{home}/{source}", tokenizer="byte", text_key="text")
    for _ in range(2):
        before = tiny.snapshot(tmp_path)
        if refused:
            with pytest.raises(UserError, match=r"would read what is written into .* as text: name another folder as --output\.$"):
                prepare(config, pathlib.Path(output))
            assert tiny.snapshot(tmp_path) == before
        else:
            prepare(config, pathlib.Path(output))


def test_a_text_that_changes_meanwhile_leads_to_nothing_that_looks_whole(config, tmp_path):
    """Between the listing and the reading; and between two starts, when what was done of the other text is not used."""
    text = pathlib.Path(config.source).read_text()

    def run(function, items):
        if getattr(function, "func", None) is stages.tokenise:  # of the last part alone: the first are finished then
            begin, the, end = text.rpartition("the")
            pathlib.Path(config.source).write_text(begin + the.title() + end)
        return map(function, items)

    with pytest.raises(UserError, match="lines.jsonl.* changed while it was read"):
        prepare(config, tmp_path / "out", run)
    assert not (tmp_path / "out" / "manifest.json").exists() and (tmp_path / "out" / "unfinished" / "tokens" / "000000.json").exists()
    with pytest.raises(UserError, match="is partly prepared, but otherwise .the text is another.; name another folder as --output, or remove"):
        prepare(config, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    prepare(config, tmp_path / "out")
    read_back.compare(config, epath.Path(tmp_path / "out"))


@pytest.mark.parametrize("limit", [4000, 50_000])
def test_a_full_disk_is_told_and_goes_on(monkeypatch, config, tmp_path, limit):
    """While tokens are written, or a shard."""
    monkeypatch.setattr(places, "BYTES", (1 << 20, 1 << 24))
    prepare(config, tmp_path / "undisturbed")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match=r"(tokens/\d+.train|\.array_record) cannot be written \(.*File too large\)") as error:
            prepare(config, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ("array_record" in str(error.value)) == (limit > 4000) and not list((tmp_path / "out").rglob("*.partial-*"))
    prepare(config, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_a_whole_folder_that_was_damaged_is_noticed(config, tmp_path):
    prepare(config, tmp_path / "out")
    shard = next((tmp_path / "out").glob("valid*"))
    for damage, said in ((flip, "has another content"), (flip_length, "bytes instead of"), (pathlib.Path.unlink, "cannot be read")):
        whole = shard.read_bytes()
        damage(shard)
        with pytest.raises(UserError, match=f"{shard.name} .*{said}"):
            prepare(config, tmp_path / "out")
        shard.write_bytes(whole)
    (tmp_path / "out" / "token_counts.json").write_text("{}")
    with pytest.raises(UserError, match="token_counts.json is damaged"):
        prepare(config, tmp_path / "out")
    tokenizers.ByteTokenizer().save(tmp_path / "out" / "tokenizer")
    with pytest.raises(UserError, match="is not the tokenizer that .* was prepared with"):
        prepare(config, tmp_path / "out")


def test_what_a_kill_left_beside_the_manifest_is_taken_away(config, tmp_path):
    prepare(config, tmp_path / "out")
    whole = content(tmp_path / "out")
    corpora.write(tmp_path / "out" / "unfinished" / "tokens" / "000001.train", "left")
    assert prepare(config, tmp_path / "out")[1] and content(tmp_path / "out") == whole


def test_too_little_text_is_refused(tmp_path):
    for text, change, said in (
        ("a few words", {}, "the train split of .* has . tokens, fewer than one row of data.sequence_length = 16"),
        ("some more words " * 8, {}, "the valid split of .* has 2. tokens, fewer than two rows"),
        ("some more words " * 8, {"valid_fraction": 0.0}, "data.valid_fraction = 0.0 holds nothing of .* out"),
        ("some more words " * 20, {"test_fraction": 0.01}, "the test split of .* has . tokens, fewer than two rows"),
    ):
        source = str(corpora.write(tmp_path / "short.txt", text))
        with pytest.raises(UserError, match=said):
            prepare(dataclasses.replace(CHARS, source=source, **change), tmp_path / "out")
        assert not (tmp_path / "out").exists()  # nor anything that is in the way of what is put right


def test_a_tokenizer_that_does_not_fit_is_told(config, tmp_path):
    tokenizers.CharTokenizer("abc \n").save(tmp_path / "letters")
    with pytest.raises(UserError, match=r"in .*lines.jsonl \(bytes .* the char tokenizer lacks the characters"):
        prepare(dataclasses.replace(config, tokenizer_from=str(tmp_path / "letters")), tmp_path / "out")
    tokenizers.CharTokenizer("documentwr 0123456789:").save(tmp_path / "one line")
    source = str(corpora.write(tmp_path / "words.jsonl", corpora.json_lines([f"document {i}: {'word ' * 30}" for i in range(60)])))
    given = dataclasses.replace(config, source=source, tokenizer_from=str(tmp_path / "one line"))
    with pytest.raises(UserError, match="lacks the (characters '.n'|line break or space that joins)"):
        prepare(given, tmp_path / "joined")
    prepare(dataclasses.replace(given, packing="pack"), tmp_path / "whole")
    with pytest.raises(UserError, match="there is no tokenizer in"):
        prepare(dataclasses.replace(config, tokenizer_from=str(tmp_path / "none")), tmp_path / "none")


def test_the_manifest_says_what_was_read(config, tmp_path):
    manifest, _ = prepare(config, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())
    size, sha256 = records.digest(epath.Path(config.source))
    assert about["inputs"] == [{"name": config.source, "bytes": size, "sha256": sha256}] == manifest.inputs
    assert {"source", "num_records", "record_length", "num_characters", "tokenizer_fingerprint", "shards", "splits"} <= set(about)
    assert all(records.fault(str(tmp_path / "out"), shard) == "" for shard in manifest.shards)
