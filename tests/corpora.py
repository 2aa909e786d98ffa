"""Corpora for tests: plain references of what the package does to a text, files of every kind, and small data sets of TFDS and Hugging Face."""

import gzip
import json
import pathlib
import random
import re

import numpy as np
import zstandard

from cdcd_jax.config import DataConfig
from cdcd_jax.data import sources

WORDS = "the of and to in he she it was 1984 Ædle café\tnaïve — “so” x\u00a0y Ωmega 日本語 don't end. (see p. 3)".split(" ")


def to_27(text: str) -> str:
    """text8's format, character by character."""
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    spelled = "".join(f" {digits[int(c)]} " if c in "0123456789" else c.lower() if c.isascii() else " " for c in text)
    return re.sub("[^a-z]+", " ", spelled).strip(" ")


def load_text(source: str, alphabet: str) -> str:
    """The whole text of a source, as the package reads it, of which nothing is held out."""
    return sources.load_texts(DataConfig(source=source, alphabet=alphabet, valid_fraction=0.0))["train"]


def split(text: str, valid_fraction: float) -> tuple[str, str]:
    """(train, valid): the end of a text held out, cut at the next white space."""
    cut = round(len(text) * (1 - valid_fraction))
    if 0 < cut < len(text):
        space = re.search(r"\s", text[cut:])
        cut += space.start() if space else 0
    return text[:cut], text[cut:]


def prose(number: int, seed: int = 0) -> str:
    """That many words, with spaces and line breaks of all sorts between them."""
    generator = random.Random(seed)
    return "".join(generator.choice(WORDS) + generator.choice([" ", " ", " ", "  ", "\n", "\r\n", "\n\n", ". "]) for _ in range(number))


def documents(number: int, seed: int = 0) -> list[str]:
    """Different short texts."""
    generator = random.Random(seed)
    return [f"{i}: {prose(generator.randrange(1, 30), seed * 1000 + i).strip()}" for i in range(number)]


def write(path: pathlib.Path, content: str | bytes) -> pathlib.Path:
    """Writes a file, compressed if its name says so: in two streams, as appending to a file makes them."""
    data = content if isinstance(content, bytes) else content.encode()
    halves = data[: len(data) // 3], data[len(data) // 3 :]
    if path.suffix == ".gz":
        data = b"".join(gzip.compress(half, mtime=0) for half in halves)
    elif path.suffix == ".zst":
        data = b"".join(zstandard.compress(half) for half in halves)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def json_lines(texts: list[str], key: str = "text") -> str:
    """One JSON object a line, of other keys as well; every other one has only ASCII."""
    return "".join(json.dumps({"id": i, key: text, "meta": {"n": [i]}}, ensure_ascii=i % 2 == 0) + "\n" for i, text in enumerate(texts))


def build_tfds(folder: pathlib.Path, splits: dict[str, list[str]], name: str = "tiny_talk", file_format: str = "array_record") -> None:
    """Generates a data set of TFDS from texts, as `tfds build` does; read it with TFDS_DATA_DIR=folder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    def info(self: tfds.core.GeneratorBasedBuilder) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "number": tfds.features.Scalar(np.dtype("int64"))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def split_generators(self: tfds.core.GeneratorBasedBuilder, _: object) -> dict[str, object]:
        return {split: self._generate_examples(texts) for split, texts in splits.items()}

    def generate_examples(self: tfds.core.GeneratorBasedBuilder, texts: list[str]) -> object:
        yield from ((i, {"text": text, "number": i}) for i, text in enumerate(texts))

    methods = {"VERSION": "1.0.0", "_info": info, "_split_generators": split_generators, "_generate_examples": generate_examples}
    with registered.skip_registration():  # it is then known by its files alone, as by another process
        made = type("".join(word.title() for word in name.split("_")), (tfds.core.GeneratorBasedBuilder,), methods)
    made(data_dir=folder, file_format=file_format).download_and_prepare()
