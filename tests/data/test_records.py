"""Records, shards and the manifest: what is written comes back, and what is damaged is told in a sentence."""

import dataclasses
import json
import resource

import numpy as np
import pytest
from etils import epath

from cdcd_jax.config import UserError
from cdcd_jax.data import records


def manifest(**changes) -> records.Manifest:
    about = dict(
        format=records.FORMAT, source="kjv", num_records=7, record_length=5, num_characters=100, tokenizer_fingerprint="a", data_fingerprint="b",
        plan={"text": "c"}, dtype="uint16", packing="wrap", config={"alphabet": "text"}, inputs=[{"name": "kjv", "bytes": 100, "sha256": "d"}],
        splits={"train": records.SplitCounts(7, 36, 100, 1, 1, 0)}, shards=[records.Shard("train-00000-of-00001.array_record", "train", 7, 1, "e")],
    )  # fmt: skip
    return records.Manifest(**(about | changes))


@pytest.mark.parametrize("dtype, packing, size", [("uint16", "wrap", 10), ("uint32", "wrap", 20), ("uint16", "pack", 20), ("uint32", "pad", 30)])
def test_rows_come_back(tmp_path, dtype, packing, size):
    tokens = np.random.default_rng(0).integers(0, 1 << (16 if dtype == "uint16" else 20), (7, 5))
    segments = None if packing == "wrap" else np.arange(35).reshape(7, 5)
    found = records.to_bytes(tokens, segments, dtype)
    assert {len(record) for record in found} == {size} == {records.record_bytes(5, dtype, packing)}
    assert found[0][:2] == int(tokens[0, 0] & 0xFFFF).to_bytes(2, "little")
    path = epath.Path(tmp_path / "shard")
    records.write_shard(path, found)
    again = [record for some in records.read_shard(path, size=3) for record in some]
    batch = records.from_bytes(again, manifest(dtype=dtype, packing=packing))
    assert np.array_equal(batch["tokens"], tokens) and batch["tokens"].dtype == np.int32
    assert set(batch) == {"tokens"} if segments is None else np.array_equal(batch["segments"], segments)


def test_ids_take_two_bytes_as_long_as_they_fit():
    assert [records.dtype_for(size) for size in (2, 1 << 16, (1 << 16) + 1)] == ["uint16", "uint16", "uint32"]


def test_a_damaged_shard_is_noticed(tmp_path):
    path = epath.Path(tmp_path / "shard")
    records.write_shard(path, [bytes([i % 256]) * 100 for i in range(3000)])
    size, sha256 = records.digest(path)
    shard = records.Shard("shard", "train", 3000, size, sha256)
    assert records.fault(str(tmp_path), shard) == ""
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[data.index(bytes([7]) * 100)] ^= 1  # in a record: ArrayRecord keeps hashes of those, not of every byte around them
    for content, said in ((data[: size // 2], f"has {size // 2:,} bytes instead of {size:,}"), (flipped, "has another content than was written")):
        path.write_bytes(content)
        assert records.fault(str(tmp_path), shard) == said
    with pytest.raises(UserError, match="shard cannot be read"):
        list(records.read_shard(path))
    path.unlink()
    assert records.fault(str(tmp_path), shard) == "cannot be read (No such file or directory)"


def test_what_cannot_be_written_is_an_os_error(tmp_path):
    for path in (tmp_path / "none" / "shard", tmp_path):
        with pytest.raises(OSError):
            records.write_shard(epath.Path(path), [b"record"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # as a disk that is full
    try:
        with pytest.raises(OSError, match="File too large"):
            records.write_shard(epath.Path(tmp_path / "shard"), [bytes(1000)] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_manifest_comes_back(tmp_path):
    records.write_manifest(epath.Path(tmp_path), manifest())
    assert records.read_manifest(epath.Path(tmp_path)) == manifest()
    about = json.loads((tmp_path / "manifest.json").read_text())
    assert about["shards"][0] == {"name": "train-00000-of-00001.array_record", "split": "train", "num_records": 7, "bytes": 1, "sha256": "e"}


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda about: about.pop("dtype"), "is damaged"),
        (lambda about: about.update(more=1), "is damaged"),
        (lambda about: about.update(splits=[]), "is damaged"),
        (lambda about: about["shards"][0].pop("sha256"), "is damaged"),
        (lambda about: about.update(format=1), "has the format 1, and this version reads 2: prepare the text anew."),
    ],
)
def test_a_manifest_of_another_shape_is_noticed(tmp_path, change, said):
    """As another version may write it."""
    about = json.loads(json.dumps(dataclasses.asdict(manifest())))
    change(about)
    (tmp_path / "manifest.json").write_text(json.dumps(records.sealed(about)))
    with pytest.raises(UserError, match=said) as error:
        records.read_manifest(epath.Path(tmp_path))
    assert str(tmp_path / "manifest.json") in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(dtype="uint32"),
        lambda about: about.update(record_length=6),
        lambda about: about.update(num_records=8),
        lambda about: about.update(source="another"),
        lambda about: about["config"].update(alphabet="27"),
        lambda about: about["plan"].clear(),
        lambda about: about["inputs"][0].update(bytes=101),
        lambda about: about["splits"]["train"].update(num_characters=101),
        lambda about: about["splits"].update(valid=about["splits"].pop("train")),
        lambda about: about["shards"].pop(),
        lambda about: about["shards"][0].update(split="valid"),
        lambda about: about.update(more=1),
        lambda about: about.pop("packing"),
        lambda about: about.pop("sha256"),
        lambda about: about.update(sha256="0" * 64),
    ],
)
def test_a_manifest_that_was_changed_is_noticed(tmp_path, change):
    """In any field; that it is written in another way is no change."""
    path = epath.Path(tmp_path / "manifest.json")
    records.write_manifest(path.parent, manifest())
    about = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(about.items()))))
    assert records.read_manifest(path.parent) == manifest()
    change(about)
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match=f"^{path} was changed after it was written: prepare the text anew.$"):
        records.read_manifest(path.parent)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff"])
def test_what_is_no_manifest_is_noticed(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="manifest.json is damaged"):
        records.read_manifest(epath.Path(tmp_path))


@pytest.mark.parametrize("content", ["", "{}", "[1, 2", '["a"]', "[1.5]", "[1, -1]", "[]", "[[1]]"])
def test_counts_that_are_none_are_noticed(tmp_path, content):
    (tmp_path / "token_counts.json").write_text(content)
    with pytest.raises(UserError, match="token_counts.json is damaged"):
        records.read_token_counts(epath.Path(tmp_path))
