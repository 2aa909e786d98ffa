"""python -m benchmarks.read_back --config=configs/demo.py --output=DIR: prepares a config's source, and compares what was written.

Of joined documents the decoded rows of a split must be its text, up to the tokens that no row is left for; of documents that are whole in their rows,
every one must be there, as often as it is in the source. Prints a line of JSON. Text and tokens are in memory: for a gigabyte at most.
"""

import collections
import json
from collections.abc import Iterator

import numpy as np
from absl import flags
from etils import epath
from ml_collections import config_flags

from cdcd_jax import doors
from cdcd_jax.config import DataConfig, UserError, from_dict
from cdcd_jax.data import files, packing, preparation, records, sources, tokenizers, workers


def rows(folder: epath.Path, manifest: records.Manifest, split: str) -> dict[str, np.ndarray]:
    """All rows of a split."""
    found = [record for shard in manifest.shards if shard.split == split for some in records.read_shard(folder / shard.name) for record in some]
    return records.from_bytes(found, manifest)


def documents(config: DataConfig) -> Iterator[tuple[str, str]]:
    """(split, document) for all documents of a source, in order. Where rows hold whole documents, what of one lies in a part is one by itself."""
    open_: dict[str, list[str]] = {}
    for part in sources.list_parts(config).parts:
        for split, text, begins in sources.read(part, config):
            if begins and split in open_:
                yield split, "".join(open_[split])
            open_[split] = [text] if begins else [*open_.get(split, []), text]
        if config.packing != "wrap":
            yield from ((split, "".join(texts)) for split, texts in open_.items())
            open_ = {}
    yield from ((split, "".join(texts)) for split, texts in open_.items())


def compare(config: DataConfig, folder: epath.Path) -> dict[str, int]:
    """The characters of each split that came back. Raises UserError, naming the split, where anything is missing or changed."""
    manifest = records.read_manifest(folder)
    tokenizer = tokenizers.load(folder / records.TOKENIZER)
    wanted: dict[str, list[str]] = {split: [] for split in manifest.splits}
    for split, document in documents(config):
        wanted[split].append(document)
    check = _check_joined if manifest.packing == "wrap" else _check_whole
    for split, texts in wanted.items():
        if not check(config, texts, rows(folder, manifest, split), tokenizer, manifest.splits[split]):
            raise UserError(f"the {split} split of {folder} is not what {config.source!r} holds.")
    return {split: about.num_characters for split, about in manifest.splits.items()}


def _check_joined(
    config: DataConfig, texts: list[str], found: dict[str, np.ndarray], tokenizer: tokenizers.Tokenizer, about: records.SplitCounts
) -> bool:
    text = sources.joiner(config).join(texts)
    back = tokenizer.decode(found["tokens"].ravel())
    back = back if text.startswith(back) else back.rstrip("\ufffd")  # the last token may end within a character
    rest = tokenizer.encode(text[len(back) :])
    return text.startswith(back) and len(text) == about.num_characters and len(rest) < config.sequence_length + 4


def _check_whole(
    config: DataConfig, texts: list[str], found: dict[str, np.ndarray], tokenizer: tokenizers.Tokenizer, about: records.SplitCounts
) -> bool:
    segments = zip(found["tokens"], found["segments"], strict=True)
    there = collections.Counter(row[of == n].tobytes() for row, of in segments for n in range(1, of.max() + 1))
    ids, lengths = tokenizer.encode_many(texts)
    stretches = packing.stretches(lengths, config.sequence_length)
    wanted = collections.Counter(stretch.tobytes() for stretch in np.split(ids, np.cumsum(stretches)[:-1]))
    return there == wanted and sum(map(len, texts)) == about.num_characters


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", None, "The config; any key: --config.data.source=TEXT.", lock_config=True)
    OUTPUT = flags.DEFINE_string("output", None, "The folder to prepare it in.")
    WORKERS = flags.DEFINE_integer("workers", 0, "Processes that work; 0: one for each core.", lower_bound=0)
    flags.mark_flags_as_required(["config", "output"])

    def main() -> int:
        config, folder = from_dict(CONFIG.value).data, files.locate(OUTPUT.value)
        with workers.pool(WORKERS.value or workers.cores()) as run:
            manifest, _ = preparation.prepare(config, folder, run)
        line = {"name": "read_back", "source": config.source, "packing": config.packing, "tokenizer": config.tokenizer}
        print(json.dumps(line | {"characters": compare(config, folder), "records": manifest.num_records}), flush=True)
        return 0

    doors.run(main)
