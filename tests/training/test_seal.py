"""The seal of a checkpoint: any change of any file of it is noticed, and the file named."""

import base64
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable

import pytest
from etils import epath

from cdcd_jax.config import CheckpointConfig
from cdcd_jax.training import seal
from cdcd_jax.training.checkpoint import Checkpoints
from tests import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder with the checkpoints of steps 1 and 2. Read only."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(epath.Path(folder), CheckpointConfig())
    for step in (1, 2):
        checkpoints.save(step, tiny.small_state(step), {"global_next_index": 8 * step}, {"config": {"a": step}})
    checkpoints.close()
    return folder / "checkpoints"


@pytest.fixture
def step(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of step 2, to damage."""
    shutil.copytree(saved / "2", tmp_path / "2")
    return tmp_path / "2"


def faults(folder: pathlib.Path, step: int = 2) -> list[str]:
    return seal.faults(epath.Path(folder), step)


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_has_these_parts_and_no_fault(saved: pathlib.Path) -> None:
    """What the other tests go through: arrays and the metadata of each part, and the files beside them. Nothing is written above the parts."""
    names = {path.relative_to(saved / "2").as_posix() for path in files(saved / "2")}
    for part in ("state", "warp"):
        assert {f"{part}/_METADATA", f"{part}/_sharding", f"{part}/array_metadatas/process_0", f"{part}/manifest.ocdbt"} <= names
        assert any(name.startswith(f"{part}/d/") for name in names) and any(name.startswith(f"{part}/ocdbt.process_0/d/") for name in names)
    assert {name for name in names if "/" not in name} == {"data.json", "meta.json", "seal.json"}
    assert sorted(path.name for path in saved.iterdir()) == ["1", "2"]
    assert faults(saved / "2") == faults(saved / "1", 1) == []


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


OTHER = "has another content than was saved"
# name: (what becomes of a file's content, what is said)
CHANGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a flipped bit": (flipped, OTHER),
    "half of it": (lambda content: content[: len(content) // 2], "has {less} bytes instead of {size}"),
    "nothing": (lambda content: b"", "has 0 bytes instead of {size}"),
    "a byte more": (lambda content: content + b"\n", "has {more} bytes instead of {size}"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_file_is_named(what: str, step: pathlib.Path) -> None:
    change, said = CHANGES[what]
    for path in files(step):
        content, name = path.read_bytes(), path.relative_to(step).as_posix()
        path.write_bytes(change(content))
        size = len(content)
        fault = OTHER if name == "seal.json" else said.format(size=size, less=size // 2, more=size + 1)
        assert faults(step) == [f"{name} {fault}"]
        path.write_bytes(content)
    assert faults(step) == []


def test_a_missing_file_is_named(step: pathlib.Path) -> None:
    for path in files(step):
        content = path.read_bytes()
        path.unlink()
        assert faults(step) == [f"{path.relative_to(step).as_posix()} is missing"]
        path.write_bytes(content)
    assert faults(step) == []


def test_a_file_of_another_checkpoint_is_named(saved: pathlib.Path, step: pathlib.Path) -> None:
    """In the place of one that has the same name in both, and beside them."""
    common = [path for path in files(step) if (saved / "1" / path.relative_to(step)).exists()]
    differing = [path for path in common if path.read_bytes() != (saved / "1" / path.relative_to(step)).read_bytes()]
    assert {path.name for path in differing} >= {"data.json", "meta.json", "seal.json", "manifest.ocdbt"}
    for path in differing:
        content, name = path.read_bytes(), path.relative_to(step).as_posix()
        shutil.copy(saved / "1" / name, path)
        (fault,) = faults(step)
        assert fault == "seal.json is that of step 1" if name == "seal.json" else fault.startswith(f"{name} has ")
        path.write_bytes(content)
    for folder in sorted({path.parent for path in files(step)}):
        foreign = folder / "foreign"
        foreign.write_text("x")
        assert faults(step) == [f"{foreign.relative_to(step).as_posix()} is not part of the checkpoint"]
        foreign.unlink()
    assert faults(step) == []


def test_a_checkpoint_under_another_steps_name(saved: pathlib.Path, tmp_path: pathlib.Path) -> None:
    shutil.copytree(saved / "1", tmp_path / "3")
    assert faults(tmp_path / "3", 3) == ["seal.json is that of step 1"]


@pytest.mark.parametrize("name", ["seal.json", "data.json"])
def test_every_bit_counts(name: str, step: pathlib.Path) -> None:
    """Every bit of the data position; in the seal one in each of some hundred bytes."""
    content = (step / name).read_bytes()
    for at in range(0, len(content), 1 if name == "data.json" else 11):
        for bit in range(8) if name == "data.json" else [at % 8]:
            (step / name).write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            assert faults(step) == [f"{name} {OTHER}"], (at, bit)


def test_a_seal_that_is_another_json(step: pathlib.Path) -> None:
    """Or the same one, written otherwise."""
    whole = json.loads((step / "seal.json").read_text())
    text = (step / "seal.json").read_text()
    rewritten = [text.replace("\n", end) for end in (" ", "\r", "\r\n")]
    for other in (*rewritten, "", "[]", "{}", "3", "null", '{"digest": "x"}', json.dumps(whole), json.dumps(whole, indent=0) + "\n"):
        (step / "seal.json").write_bytes(other.encode())
        assert faults(step) == [f"seal.json {OTHER}"]


def test_all_faults_are_listed_by_name(step: pathlib.Path) -> None:
    (step / "data.json").unlink()
    (step / "extra").write_text("")
    (step / "meta.json").write_text("")
    size = json.loads((step / "seal.json").read_text())["files"]["meta.json"][0]
    assert faults(step) == ["data.json is missing", "extra is not part of the checkpoint", f"meta.json has 0 bytes instead of {size}"]


def test_a_bucket_tells_the_checksum(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Cloud Storage lists an object, and S3; what either lists otherwise is read. A checksum is believed as long as it is told."""
    md5 = hashlib.md5(b"here").digest()
    assert seal._stored_md5({"md5Hash": base64.b64encode(md5).decode(), "etag": "CJ"}) == md5.hex() == seal._stored_md5({"ETag": f'"{md5.hex()}"'})
    assert seal._stored_md5({"ETag": f'"{md5.hex()}-2"', "size": 3}) is seal._stored_md5({"crc32c": "AAAAAA=="}) is None
    folder = epath.Path(tmp_path)
    (folder / "a").write_text("here")
    (folder / "b").write_text("there")
    disk, told = seal.listing, {"a": md5.hex()}

    def bucket(of: epath.Path) -> dict[str, seal.File]:
        return {name: file._replace(md5=told.get(name)) for name, file in disk(of).items()}

    monkeypatch.setattr(seal, "listing", bucket)
    seal.write(folder, 3)
    sealed = json.loads((folder / "seal.json").read_text())["files"]
    assert sealed == {"a": [4, f"md5:{md5.hex()}"], "b": [5, "sha256:" + hashlib.sha256(b"there").hexdigest()]}
    (folder / "a").write_text("hire")
    assert seal.faults(folder, 3) == []  # it was not read
    told["a"] = hashlib.md5(b"hire").hexdigest()
    assert seal.faults(folder, 3) == [f"a {OTHER}"]
    # Copied to a disk, it is read.
    told.clear()
    assert seal.faults(folder, 3) == [f"a {OTHER}"]
    (folder / "a").write_text("here")
    assert seal.faults(folder, 3) == []
