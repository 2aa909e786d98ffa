"""A prepared folder: what it is read as, and one sentence for every way in which it is not what it should be."""

import dataclasses
import json
import os
import resource
import shutil
import time

import numpy as np
import pytest
from etils import epath

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import pipeline, prepared, records, tokenizers
from tests.data import folders

LENGTH, NUMBERS = 8, {"train": 50, "valid": 12, "test": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole folder of each packing, which no test changes."""
    home = epath.Path(tmp_path_factory.mktemp("prepared"))
    return {packing: folders.make(home / packing, LENGTH, packing, NUMBERS) for packing in ("wrap", "pack", "pad")}


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the folder of running text, to damage."""
    shutil.copytree(made["wrap"], tmp_path / "folder")
    return epath.Path(tmp_path / "folder")


def config(folder, packing="wrap", **changes):
    return dataclasses.replace(folders.config(folder, LENGTH, packing), **changes)


def all_rows(rows):
    return rows.read(np.arange(len(rows)))


@pytest.mark.parametrize("packing", ["wrap", "pack", "pad"])
@pytest.mark.parametrize("share", [None, (0, 1), (1, 3)])
def test_it_is_read_as_it_was_written(made, packing, share):
    corpus = pipeline.load_corpus(config(made[packing], packing), share=share)
    assert list(corpus.splits) == list(NUMBERS) and corpus.train is corpus.splits["train"].rows
    assert corpus.tokenizer.fingerprint == folders.TOKENIZER.fingerprint
    assert corpus.fingerprint == records.read_manifest(made[packing]).data_fingerprint
    for seed, (split, number) in enumerate(NUMBERS.items()):
        written, read = folders.rows(LENGTH, packing, number, seed), all_rows(corpus.splits[split].rows)
        assert read.keys() == written.keys() and all(values.dtype == np.int32 for values in read.values())
        for name, values in written.items():
            assert np.array_equal(read[name], values)
            chosen = np.array([number - 1, 0, number // 2, 0])  # in any order, from several shards, one of them twice
            assert np.array_equal(corpus.splits[split].rows.read(chosen)[name], values[chosen])
    written = folders.rows(LENGTH, packing, NUMBERS["train"])
    tokens = written["tokens"][written["segments"] > 0] if "segments" in written else written["tokens"]
    assert corpus.token_counts.tolist() == np.bincount(tokens.ravel(), minlength=27).tolist()


def test_pads_are_a_matter_of_training_alone(made):
    corpus = pipeline.load_corpus(config(made["pack"], "pack", pad_insertion=0.25))
    assert corpus.tokenizer.vocab_size == 28 and corpus.pads.id == 27
    assert all_rows(corpus.train)["tokens"].max() < 27
    batch = next(pipeline.batches(corpus.train, 50, 0, 0, 1, corpus.pads))
    assert ((batch["tokens"] == 27) & (batch["segments"] > 0)).any() and not ((batch["tokens"] == 27) & (batch["segments"] == 0)).any()


def test_each_process_hashes_its_share_and_no_shard_is_hashed_twice(made, monkeypatch):
    hashed = []
    fault = records.fault
    monkeypatch.setattr(records, "fault", lambda folder, shard: (hashed.append(shard.name), fault(folder, shard))[1])
    names = sorted(shard.name for shard in records.read_manifest(made["wrap"]).shards)
    for part in range(3):
        corpus = pipeline.load_corpus(config(made["wrap"]), share=(part, 3))
        all_rows(corpus.train)
    assert sorted(hashed) == names
    hashed.clear()
    all_rows(pipeline.load_corpus(config(made["wrap"])).splits["valid"].rows)
    assert hashed == [name for name in names if name.startswith("valid")]  # without a share, what is read and nothing else


def spoil(name, change, seal=False):
    def spoiled(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(records.sealed(content) if seal else content))

    return spoiled


def flip(folder):
    path = folder / "train-00001-of-00003.array_record"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def exchange(folder):
    """Two shards of one size."""
    one, other = (folder / f"train-0000{i}-of-00003.array_record" for i in (0, 1))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def without(split):
    """The manifest as if there were no such split."""

    def change(manifest):
        del manifest["splits"][split]
        manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] != split]
        manifest["num_records"] = sum(shard["num_records"] for shard in manifest["shards"])

    return spoil("manifest.json", change, seal=True)


def unfinished(folder):
    (folder / "manifest.json").unlink()
    (folder / "unfinished").mkdir()


SHARD = "train-00002-of-00003.array_record"
# what is done to the folder: what its one sentence says
FAULTS = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "is a directory; name a file or a glob of files, such as "),
    "unfinished": (unfinished, "is not finished: give its python -m cdcd_jax.prepare command again"),
    "manifest cut short": (lambda f: (f / "manifest.json").write_text('{"format": 1, '), "manifest.json is damaged"),
    "manifest of no text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json is damaged"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "manifest lacks a key": (spoil("manifest.json", lambda m: m.pop("splits"), seal=True), "manifest.json is damaged"),
    "manifest lacks a shard": (spoil("manifest.json", lambda m: m["shards"].pop()), "manifest.json was changed after it was written: prepare"),
    "manifest of another version": (spoil("manifest.json", lambda m: m.update(format=1)), "has the format 1, and this version reads 2"),
    "no training part": (without("train"), "the training part of .* has 0 records, fewer than 1"),
    "nothing held out": (without("valid"), "the held-out part of .* has 0 records, fewer than 2"),
    "shard missing": (lambda f: (f / SHARD).unlink(), f"the shard .*{SHARD} is missing: put the right one back, or prepare"),
    "shard truncated": (lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-100]), rf"shard .*{SHARD} has [\d,]+ bytes instead of [\d,]+"),
    "shard empty": (lambda f: (f / SHARD).write_bytes(b""), f"the shard .*{SHARD} has 0 bytes instead of"),
    "shard changed": (flip, "the shard .*train-00001-of-00003.array_record has another content than was written"),
    "shards exchanged": (exchange, "the shard .*train-0000[01]-of-00003.array_record has another content than was written"),
    "tokenizer missing": (lambda f: (f / "tokenizer/tokenizer.json").unlink(), "there is no tokenizer in"),
    "tokenizer damaged": (lambda f: (f / "tokenizer/tokenizer.json").write_text("{"), "the tokenizer in .* is damaged"),
    "another tokenizer": (lambda f: tokenizers.CharTokenizer("0123456789").save(f / "tokenizer"), "is not the tokenizer that .* was prepared with"),
    "counts missing": (lambda f: (f / "token_counts.json").unlink(), "token_counts.json cannot be read"),
    "counts damaged": (lambda f: (f / "token_counts.json").write_text("[1, 2"), "token_counts.json is damaged"),
    "counts of another tokenizer": (lambda f: (f / "token_counts.json").write_text("[1, 2]"), "counts 2 tokens, and the tokenizer has 27"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_folder_is_one_sentence(folder, fault):
    spoil, sentence = FAULTS[fault]
    spoil(folder)
    with pytest.raises(UserError, match=sentence) as error:
        pipeline.load_corpus(config(folder), share=(0, 1))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sequence_length": 16}, "was prepared with data.sequence_length = 8, and this config has 16: give --config.data.sequence_length=8, or"),
        ({"packing": "pack"}, "was prepared with data.packing = 'wrap', and this config has 'pack': give --config.data.packing=wrap"),
        ({"alphabet": "27"}, "was prepared with data.alphabet = 'text', and this config has '27'"),
        ({"split": "hash"}, "was prepared with data.split = 'auto', and this config has 'hash': give --config.data.split=auto, or"),
        ({"valid_fraction": 0.5}, "was prepared with data.valid_fraction = 0.05, and this config has 0.5"),
        ({"text_key": "body"}, "was prepared with data.text_key = 'text', and this config has 'body'"),
        ({"tokenizer": "byte"}, "was prepared with data.tokenizer = 'char', and this config has 'byte'"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(made, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        pipeline.load_corpus(config(made["wrap"], **changes))


def test_a_tokenizer_that_does_not_fit_is_one_sentence(made, tmp_path):
    folders.TOKENIZER.save(tmp_path / "same")
    tokenizers.CharTokenizer("abc").save(tmp_path / "other")
    pipeline.load_corpus(config(made["wrap"], tokenizer_from=str(tmp_path / "same")))
    with pytest.raises(UserError, match="was prepared with another tokenizer than that in .*other': leave data.tokenizer_from out"):
        pipeline.load_corpus(config(made["wrap"], tokenizer_from=str(tmp_path / "other")))
    with pytest.raises(UserError, match="was prepared with another tokenizer than this run has"):
        pipeline.load_corpus(config(made["wrap"]), tokenizers.load(tmp_path / "other"))


def test_a_vocabulary_of_another_size_is_one_sentence(tmp_path):
    text = "the cat sat on the mat and the dog sat on the cat\n" * 40
    tokenizer = tokenizers.train(DataConfig(vocab_size=15), text, text)
    manifest = json.loads((folders.make(epath.Path(tmp_path), LENGTH, "wrap", NUMBERS) / "manifest.json").read_text())
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "manifest.json").write_text(json.dumps(records.sealed(manifest | {"tokenizer_fingerprint": tokenizer.fingerprint})))
    (tmp_path / "token_counts.json").write_text(json.dumps([1] * 15))
    fits = config(tmp_path, tokenizer="sentencepiece", vocab_size=15)
    pipeline.load_corpus(fits)
    with pytest.raises(UserError, match="was prepared with data.vocab_size = 15, and this config has 32000: give --config.data.vocab_size=15"):
        pipeline.load_corpus(dataclasses.replace(fits, vocab_size=32_000))


def test_a_shard_that_changes_while_it_is_read_is_one_sentence(folder):
    rows = pipeline.load_corpus(config(folder), share=(0, 1)).train
    last = folders.rows(LENGTH, "wrap", NUMBERS["train"])["tokens"][-1].astype("<u2").tobytes()
    content = (folder / SHARD).read_bytes()
    assert last in content
    (folder / SHARD).write_bytes(content.replace(last, last[::-1]))
    batches = pipeline.batches(rows, 50, 0, 0, 1)
    for read in (lambda: all_rows(rows), lambda: next(batches)):  # also where it is read ahead, in a thread
        with pytest.raises(UserError, match=f"the shard .*{SHARD} cannot be read any more"):
            read()
    batches.close()


def test_a_shard_that_is_gone_when_it_is_first_read_is_one_sentence(folder):
    rows = pipeline.load_corpus(config(folder), share=(0, 1)).train
    (folder / SHARD).unlink()
    with pytest.raises(UserError, match=f"the shard .*{SHARD} cannot be opened any more: it is gone or changed"):
        all_rows(rows)


def test_more_shards_are_open_than_the_system_allows_at_first(tmp_path):
    folder = folders.make(epath.Path(tmp_path), LENGTH, "wrap", {"train": 60, "valid": 2}, per_shard=2)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 15, before[1]))
    try:
        corpus = pipeline.load_corpus(config(folder), share=(0, 1))
        assert np.array_equal(all_rows(corpus.train)["tokens"], folders.rows(LENGTH, "wrap", 60)["tokens"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("source", ["kjv", "tfds:lm1b", "hf:wikitext", "missing/*.txt"])
def test_what_is_no_folder(source, tmp_path, monkeypatch):
    """Even where a folder of that name is there."""
    monkeypatch.chdir(tmp_path)
    if source == "kjv":
        (tmp_path / "kjv").mkdir()
    assert not prepared.is_folder(source)


def test_what_killed_copies_left_is_removed_when_the_next_shard_is_copied(folder, tmp_path, monkeypatch):
    """Not at once: it may be the copy of a process that is at it. Whole shards stay."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache, shards = tmp_path / "cache" / "cdcd_jax" / "shards", records.read_manifest(folder).shards
    first, fault = prepared._cached(folder / shards[0].name, shards[0])
    old, under_way = cache / ".a.partial-1", cache / ".b.partial-2"
    for path, hours in ((old, 25), (under_way, 23), (cache / first.name, 1000)):
        path.touch()
        os.utime(path, (time.time() - 3600 * hours,) * 2)
    second, other_fault = prepared._cached(folder / shards[1].name, shards[1])
    assert fault == other_fault == "" and set(os.listdir(cache)) == {first.name, second.name, under_way.name}
