"""Prepared folders of random tokens, written as the format says."""

import dataclasses
import hashlib
import json

import numpy as np
from etils import epath

from cdcd_jax.config import DataConfig
from cdcd_jax.data import prepared, records, tokenizers

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
TOKENIZER = tokenizers.CharTokenizer(ALPHABET)


def rows(length: int, packing: str, number: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows: of running text, of several documents and perhaps padding, or of one document and padding."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, len(ALPHABET), (number, length)).astype(np.int32)
    if packing == "wrap":
        return {"tokens": tokens}
    begins = generator.random((number, length)) < (0.25 if packing == "pack" else 0.0)
    begins[:, 0] = True
    used = np.where(np.arange(number) % 2, length, generator.integers(1, length + 1, number))  # every other row is full
    segments = np.where(np.arange(length) < used[:, None], begins.cumsum(axis=1), 0).astype(np.int32)
    return {"tokens": np.where(segments > 0, tokens, 0), "segments": segments}


def make(folder: epath.Path, length: int, packing: str, numbers: dict[str, int], per_shard: int = 20) -> epath.Path:
    """A prepared folder with so many rows in each split."""
    (folder / records.TOKENIZER).mkdir(parents=True, exist_ok=True)
    TOKENIZER.save(folder / records.TOKENIZER)
    shards, splits, counts = [], {}, np.zeros(len(ALPHABET), int)
    for seed, (split, number) in enumerate(numbers.items()):
        batch = rows(length, packing, number, seed)
        found = records.to_bytes(batch["tokens"], batch.get("segments"), "uint16")
        kept = batch["tokens"][batch["segments"] > 0] if "segments" in batch else batch["tokens"]
        splits[split] = {"num_records": number, "num_tokens": kept.size, "num_characters": kept.size, "num_documents": 1, "tokens_dropped": 0,
                         "empty_documents": 0}  # fmt: skip
        counts += np.bincount(kept.reshape(-1), minlength=len(ALPHABET)) if split == "train" else 0
        total = -(-number // per_shard)
        for k in range(total):
            name = f"{split}-{k:05d}-of-{total:05d}.array_record"
            part = found[k * per_shard : (k + 1) * per_shard]
            records.write_shard(folder / name, part)
            size, digest = records.digest(folder / name)
            shards.append({"name": name, "split": split, "num_records": len(part), "bytes": size, "sha256": digest})
    (folder / records.TOKEN_COUNTS).write_text(json.dumps(counts.tolist()))
    manifest = {
        "format": records.FORMAT, "source": "random", "num_records": sum(numbers.values()), "record_length": length,
        "num_characters": sum(split["num_characters"] for split in splits.values()), "tokenizer_fingerprint": TOKENIZER.fingerprint,
        "data_fingerprint": hashlib.sha256(json.dumps(shards).encode()).hexdigest(), "plan": {}, "dtype": "uint16", "packing": packing,
        "config": dataclasses.asdict(DataConfig()), "inputs": [], "splits": splits, "shards": shards,
    }  # fmt: skip
    (folder / records.MANIFEST).write_text(json.dumps(records.sealed(manifest)))
    return folder


def config(folder: epath.Path, length: int, packing: str) -> DataConfig:
    """The config that fits a folder of `make`."""
    return DataConfig(source=str(folder), tokenizer="char", sequence_length=length, packing=packing)


def open_rows(folder: epath.Path, packing: str, split: str = "train", length: int = 8) -> prepared.Records:
    """The records of one split."""
    return prepared.open_folder(config(folder, length, packing)).rows(split)
