"""Preparing data: what is written is the source, whoever does the work, and the same again."""

import dataclasses
import itertools
import json
import os
import pathlib

import numpy as np
import pytest
from etils import epath

from benchmarks import read_back
from cdcd_jax.config import DataConfig
from cdcd_jax.data import layout, places, preparation, records, sources, stages, streams, tokenizers, unigram, workers
from tests import corpora

CHARS = DataConfig(tokenizer="char", sequence_length=16, valid_fraction=0.2, test_fraction=0.1)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Parts, batches and shards so small that a short text has many."""
    monkeypatch.setattr(places, "BYTES", (2000, 1 << 24))
    monkeypatch.setattr(streams, "BATCH", 300)
    monkeypatch.setattr(layout, "LEAST_SHARD", 1500)


@pytest.fixture
def prose(tmp_path):
    return str(corpora.write(tmp_path / "prose.txt", corpora.prose(1500)))


@pytest.fixture
def lines(tmp_path):
    return str(corpora.write(tmp_path / "lines.jsonl", corpora.json_lines(corpora.documents(120) + ["", " \n"])))


def content(folder) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def prepare(config: DataConfig, folder, run=map) -> records.Manifest:
    return preparation.prepare(config, epath.Path(folder), run)[0]


@pytest.mark.parametrize("packing", ["wrap", "pack", "pad"])
@pytest.mark.parametrize("name", ["prose", "lines"])
@pytest.mark.parametrize("tokenizer", ["byte", "char", "sentencepiece"])
def test_what_is_written_is_the_source(request, tmp_path, packing, name, tokenizer):
    source = request.getfixturevalue(name)
    config = dataclasses.replace(CHARS, source=source, packing=packing, tokenizer=tokenizer, vocab_size=70)
    manifest = prepare(config, tmp_path / "out")
    characters = read_back.compare(config, epath.Path(tmp_path / "out"))
    text = sources.load_texts(dataclasses.replace(config, packing="wrap"))
    assert set(characters) == {"train", "valid", "test"} == set(text)
    assert len(manifest.shards) > 5 and {shard.num_records for shard in manifest.shards} > {manifest.shards[0].num_records}
    for split, about in manifest.splits.items():
        if packing == "wrap":
            assert about.num_tokens == len(tokenizers.load(tmp_path / "out" / "tokenizer").encode(text[split]))
            assert about.tokens_dropped == about.num_tokens % 16 == about.num_tokens - 16 * about.num_records
            assert about.num_characters == len(text[split])
        else:
            assert about.num_characters == len(text[split]) - (about.num_documents - 1) and about.tokens_dropped == 0
    assert sum(about.num_documents for about in manifest.splits.values()) == (120 if name == "lines" else 3)
    assert sum(about.empty_documents for about in manifest.splits.values()) == (2 if name == "lines" else 0)


@pytest.mark.parametrize("packing", ["wrap", "pad"])
def test_files_of_text_are_prepared_as_they_are_divided(tmp_path, packing):
    """Small ones, and large ones in several parts, of which each is in one split; two names of one file in the same."""
    for i in range(12):
        corpora.write(tmp_path / f"{i:02}.txt", corpora.prose(900 if i % 9 % 4 == 0 else 60, i % 9))
    config = dataclasses.replace(CHARS, source=str(tmp_path / "*.txt"), packing=packing, split="hash")
    manifest = prepare(config, tmp_path / "out")
    characters = read_back.compare(config, epath.Path(tmp_path / "out"))
    assert set(characters) == {"train", "valid", "test"} and sum(about.num_documents for about in manifest.splits.values()) == 12
    texts = [(tmp_path / f"{i:02}.txt").read_bytes().decode() for i in range(12)]
    of_split = sources.load_texts(config)
    assert all([text in whole for whole in of_split.values()].count(True) == 1 for text in texts)
    assert all(of_split[split].count(text) == texts.count(text) for text in set(texts) for split in of_split if text in of_split[split])


@pytest.mark.parametrize("packing", ["wrap", "pack"])
def test_rows_are_those_of_the_text_in_memory(lines, tmp_path, packing):
    """The very tokens, the tokenizer as it is trained in memory, and the counts of what training reads."""
    config = dataclasses.replace(CHARS, source=lines, tokenizer="sentencepiece", vocab_size=75, packing=packing)
    manifest = prepare(config, tmp_path / "out")
    text = sources.load_texts(config)
    tokenizer = tokenizers.train(config, text["train"], "".join(text.values()))
    assert tokenizer.fingerprint == manifest.tokenizer_fingerprint == tokenizers.load(tmp_path / "out" / "tokenizer").fingerprint
    found = read_back.rows(epath.Path(tmp_path / "out"), manifest, "train")
    counted = found["tokens"].ravel() if packing == "wrap" else found["tokens"][found["segments"] > 0]
    assert np.array_equal(records.read_token_counts(epath.Path(tmp_path / "out")), np.bincount(counted, minlength=75))
    if packing == "wrap":
        assert np.array_equal(counted, tokenizer.encode(text["train"])[: len(counted)])


def test_packed_rows_are_few_and_padded_ones_hold_a_document_each(monkeypatch, lines, tmp_path):
    monkeypatch.setattr(streams, "BATCH", 1 << 20)
    monkeypatch.setattr(places, "BYTES", (1 << 20, 1 << 24))
    found = {}
    for packing in ("pack", "pad"):
        config = dataclasses.replace(CHARS, source=lines, packing=packing, sequence_length=120)
        manifest = prepare(config, tmp_path / packing)
        found[packing] = read_back.rows(epath.Path(tmp_path / packing), manifest, "train")["segments"]
    assert found["pad"].max() == 1 and found["pack"].max() >= 3
    assert len(found["pack"]) < 0.9 * len(found["pad"]) and (found["pack"] > 0).mean() > 0.8


def test_the_same_whoever_does_the_work(lines, prose, tmp_path):
    """One process, two, or whatever a map may be; a second time; another name of the same text."""
    config = dataclasses.replace(CHARS, source=lines)
    prepare(config, tmp_path / "one")
    with workers.pool(2) as run:
        prepare(config, tmp_path / "two", run)
    prepare(config, tmp_path / "backwards", lambda function, items: [function(item) for item in list(items)[::-1]][::-1])
    assert content(tmp_path / "one") == content(tmp_path / "two") == content(tmp_path / "backwards")
    assert "unfinished" not in os.listdir(tmp_path / "one")
    copy = dataclasses.replace(config, source=str(corpora.write(tmp_path / "copy.jsonl", pathlib.Path(lines).read_bytes())))
    assert prepare(copy, tmp_path / "copy").data_fingerprint == prepare(config, tmp_path / "one").data_fingerprint
    others = [
        {"sequence_length": 17}, {"packing": "pad"}, {"alphabet": "27"}, {"valid_fraction": 0.3}, {"tokenizer": "byte"}, {"source": prose},
        {"tokenizer_from": str(tmp_path / "one" / "tokenizer")},
    ]  # fmt: skip
    prints = {prepare(dataclasses.replace(config, **change), tmp_path / f"other {i}").data_fingerprint for i, change in enumerate(others)}
    assert len(prints - {json.loads((tmp_path / "one" / "manifest.json").read_text())["data_fingerprint"]}) == len(others)


def test_a_second_time_is_known_to_be_whole(lines, tmp_path):
    config = dataclasses.replace(CHARS, source=lines)
    first = preparation.prepare(config, epath.Path(tmp_path / "out"))
    before = content(tmp_path / "out")
    assert first[1] is False and preparation.prepare(config, epath.Path(tmp_path / "out")) == (first[0], True)
    assert content(tmp_path / "out") == before


def test_a_tokenizer_that_is_given_is_used(lines, prose, tmp_path):
    config = dataclasses.replace(CHARS, source=lines, tokenizer="sentencepiece", vocab_size=75)
    first = prepare(config, tmp_path / "first")
    given = dataclasses.replace(CHARS, source=prose, tokenizer_from=str(tmp_path / "first" / "tokenizer"))
    second = prepare(given, tmp_path / "second")
    assert second.tokenizer_fingerprint == first.tokenizer_fingerprint
    assert (second.config["tokenizer"], second.config["vocab_size"]) == ("sentencepiece", 75)  # as it is, not as the config has it
    read_back.compare(given, epath.Path(tmp_path / "second"))


def test_the_first_document_of_a_split_is_joined_to_none(tmp_path):
    """Whichever part it is in, and with a tokenizer that never saw a line break as with one that did."""
    texts = [f"{i} {'abc ' * 40}".strip() for i in range(40)]
    for split in ("train", "valid", "test"):
        for i, text in enumerate(texts if split == "train" else texts[:2] if split == "valid" else texts[:1]):
            corpora.write(tmp_path / f"{split}-{i:02d}.txt", text)
    config = dataclasses.replace(CHARS, source=str(tmp_path / "{split}-*.txt"))
    manifest = prepare(config, tmp_path / "out")
    assert [manifest.splits[split].num_documents for split in ("train", "valid", "test")] == [40, 2, 1]
    read_back.compare(config, epath.Path(tmp_path / "out"))
    text = sources.load_texts(config)
    assert not any(part.startswith("\n") for part in text.values()) and manifest.splits["valid"].num_characters == len(text["valid"])


def test_a_document_may_be_long_and_may_be_one_token(tmp_path):
    texts = ["x", "long " * 3000, "y", "z" * 5000, "16 letters long.", "32 letters long." * 2, "q"] * 3
    source = str(corpora.write(tmp_path / "odd.jsonl", corpora.json_lines(texts)))
    for packing in ("wrap", "pack", "pad"):
        config = dataclasses.replace(CHARS, source=source, packing=packing, valid_fraction=0.4, test_fraction=0.0)
        prepare(config, tmp_path / packing)
        read_back.compare(config, epath.Path(tmp_path / packing))


def test_a_sample_is_drawn_from_all_of_a_long_text(monkeypatch, prose, tmp_path):
    """About as much as is asked for, from everywhere, of whole words, and the same each time; and a tokenizer is made of it."""
    config = dataclasses.replace(CHARS, source=prose, tokenizer="sentencepiece", vocab_size=70)
    monkeypatch.setattr(stages, "SAMPLED", 50)
    listing = sources.list_parts(config)
    text = sources.load_texts(config)["train"]
    numbered = list(enumerate(listing.parts))
    draws = [list(itertools.chain.from_iterable(stages.sample(config, fraction, n) for n in numbered)) for fraction in (0.3, 0.3, 0.6)]
    assert draws[0] == draws[1]
    for fraction, sentences in ((0.3, draws[0]), (0.6, draws[2])):
        assert 0.7 * fraction < len("".join(sentences)) / len(text) < 1.4 * fraction
        known = set(unigram.WORD.findall(text))
        assert known >= {word for sentence in sentences for word in unigram.WORD.findall(sentence)}
        at = [text.find(sentence) for sentence in sentences if len(sentence) > 30]
        assert min(at) < 0.2 * len(text) and max(at) > 0.8 * len(text) and min(at) >= 0
    monkeypatch.setattr(unigram, "TRAINING_CHARACTERS", len(text) // 2)
    first, second = (prepare(config, tmp_path / name) for name in ("first", "second"))
    assert first.tokenizer_fingerprint == second.tokenizer_fingerprint
    read_back.compare(config, epath.Path(tmp_path / "first"))


def test_short_documents_are_sampled_as_long_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "SAMPLED", 100)
    source = str(corpora.write(tmp_path / "short.jsonl", corpora.json_lines([f"document {i}" for i in range(3000)])))
    config = dataclasses.replace(CHARS, source=source)
    text = sources.load_texts(config)["train"]
    sentences = [sentence for n in enumerate(sources.list_parts(config).parts) for sentence in stages.sample(config, 0.25, n)]
    assert 0.15 < len("".join(sentences)) / len(text) < 0.35 and len(set(sentences)) > 300


def test_letters_are_joined_by_spaces(tmp_path):
    source = str(corpora.write(tmp_path / "lines.jsonl", corpora.json_lines([f"Document {i}, with 7 words: naïve." for i in range(300)])))
    config = dataclasses.replace(CHARS, source=source, alphabet="27")
    manifest = prepare(config, tmp_path / "out")
    read_back.compare(config, epath.Path(tmp_path / "out"))
    assert tokenizers.load(tmp_path / "out" / "tokenizer").vocab_size <= 27 and manifest.config["alphabet"] == "27"
