"""Data sets of TFDS and Hugging Face: built here, mocked by TFDS itself, or refused in one sentence."""

import dataclasses
import hashlib
import itertools
import pathlib
import pickle
import runpy
import subprocess
import sys

import pytest
from etils import epath

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import hub, places, preparation, sources
from tests import corpora
from tests.forked import ROOT

TRAIN, VALID = corpora.documents(700, 1), corpora.documents(90, 2)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*label\\(\\) is deprecated"),  # what TFDS uses of protobuf when a data set is built
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of TFDS with a data set that has all splits, one that has some, and one in a format that cannot be read in any order."""
    folder = tmp_path_factory.mktemp("tfds")
    corpora.build_tfds(folder, {"train": [*TRAIN, "", " \n"], "validation": VALID, "test": ["a test", "is this"]})
    corpora.build_tfds(folder, {"train": TRAIN, "test": VALID}, "two_splits")
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))


def config(source, **changes) -> DataConfig:
    return DataConfig(source=source, **changes)


def documents(config: DataConfig, run=map) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part in sources.list_parts(config, run).parts:
        for split, piece, begins in sources.read(part, config):
            assert begins  # they are short
            found.setdefault(split, []).append(piece)
    return found


def refused(source, **changes) -> str:
    with pytest.raises(UserError) as error:
        sources.list_parts(config(source, **changes))
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and len(message) < 900
    return message


def test_tfds_splits_of_its_own(folder):
    found = documents(config("tfds:tiny_talk", valid_fraction=0.5, test_fraction=0.5))
    assert {split: sorted(texts) for split, texts in found.items()} == {
        "train": sorted(TRAIN), "valid": sorted(VALID), "test": ["a test", "is this"]
    }  # fmt: skip
    listing = sources.list_parts(config("tfds:tiny_talk"))
    assert listing.empty_documents == {"train": 2, "valid": 0, "test": 0}
    assert [(entry["name"], entry["bytes"]) for entry in listing.inputs] == [
        ("tfds:tiny_talk/1.0.0 train", sum(len(text.encode()) for text in TRAIN)),
        ("tfds:tiny_talk/1.0.0 validation", sum(len(text.encode()) for text in VALID)),
        ("tfds:tiny_talk/1.0.0 test", 13),
    ]


def test_tfds_in_ranges_is_the_data_set(folder, monkeypatch):
    whole = documents(config("tfds:tiny_talk"))
    monkeypatch.setattr(places, "EXAMPLES", (7, 11))
    monkeypatch.setattr(hub, "BATCH", 5)
    assert len(sources.list_parts(config("tfds:tiny_talk")).parts) > 60
    assert documents(config("tfds:tiny_talk"), lambda task, items: map(pickle.loads(pickle.dumps(task)), items)) == whole


def test_lm1bs_held_out_split_is_its_test():
    """LM1B has train and test alone: which of them is for validation is said, else validation is taken from train by hash."""
    found = documents(config("tfds:two_splits", valid_split="test"))
    assert {split: sorted(texts) for split, texts in found.items()} == {"train": sorted(TRAIN), "valid": sorted(VALID)}
    found = documents(config("tfds:two_splits", valid_fraction=0.2))
    below = [text for text in TRAIN if int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 16**16 < 0.2]
    assert 90 < len(below) < 190 and sorted(found["valid"]) == sorted(below)
    assert sorted(found["train"]) == sorted(set(TRAIN) - set(below)) and sorted(found["test"]) == sorted(VALID)
    with_own = documents(config("tfds:tiny_talk", valid_split="test"))
    assert sorted(with_own["valid"]) == ["a test", "is this"] and "test" not in with_own


LM1B = {form: get_config(form).data.to_dict() for get_config in [runpy.run_path(str(ROOT / "configs" / "lm1b.py"))["get_config"]]
        for form in ("wrapped", "unwrapped")}  # fmt: skip


def test_lm1bs_splits_are_all_of_its_sentences(monkeypatch):
    """As configs/lm1b.py takes them, of the numbers that are published: none is left out or taken twice."""
    monkeypatch.setattr(hub, "tfds_splits", lambda name, key: {"train": 30_301_028, "test": 306_688})
    groups = places.find(DataConfig(**LM1B["wrapped"]))
    assert set(groups) == {"train", "valid"}
    for ours, theirs, number in (("train", "train", 30_301_028), ("valid", "test", 306_688)):
        found = [span for group in groups[ours] for span in group]
        assert {(span.place, span.split) for span in found} == {("lm1b", theirs)}
        assert [span.first for span in found] == [0, *(span.last for span in found[:-1])] and found[-1].last == number


@pytest.mark.parametrize("form", LM1B)
def test_lm1bs_form_in_small(folder, tmp_path, form):
    """A data set with its two splits, prepared with its config: so many documents in each, one in a row where it is unwrapped."""
    small = {"source": "tfds:two_splits", "tokenizer": "char", "sequence_length": 16}
    manifest, _ = preparation.prepare(DataConfig(**(LM1B[form] | small)), epath.Path(tmp_path / "out"))
    assert {split: about.num_documents for split, about in manifest.splits.items()} == {"train": len(TRAIN), "valid": len(VALID)}
    rows = {split: -(-len(text) // 16) for split, text in (("train", "\n".join(TRAIN)), ("valid", "\n".join(VALID)))}
    if form == "wrapped":
        assert all(rows[split] - 1 <= about.num_records <= rows[split] for split, about in manifest.splits.items())
    else:
        assert [about.num_records for about in manifest.splits.values()] == [sum(-(-len(text) // 16) for text in texts) for texts in (TRAIN, VALID)]


def test_tfds_data_that_is_built_anew_is_other_data(tmp_path, monkeypatch):
    """The same name, version and number of examples: what is planned is of the content."""
    plans = []
    for name in ("a", "b"):
        corpora.build_tfds(tmp_path / name, {"train": ["one", f"two {name}"]})
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / name))
        chosen = config("tfds:tiny_talk", valid_fraction=0.0)
        plans.append(preparation.make_plan(chosen, sources.list_parts(chosen).parts)["text"])
    assert plans[0] != plans[1]


def test_tfds_is_read_without_tensorflow(folder):
    code = """if True:
        import sys
        from cdcd_jax.config import DataConfig
        from cdcd_jax.data import sources
        assert "tensorflow_datasets" not in sys.modules and "datasets" not in sys.modules
        assert len(sources.load_texts(DataConfig(source="tfds:tiny_talk"))["train"]) > 10_000
        assert "tensorflow" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=pathlib.Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "key"), [("lm1b", "text"), ("c4/en", "text"), ("wmt14_translate/de-en", "de")])
def test_tfds_own_mock_data(tmp_path, monkeypatch, name, key):
    """Data sets that nobody can fetch in a test: TFDS makes examples up from what it knows of them."""
    import tensorflow_datasets as tfds

    # TFDS 4.9.10 gives its mock a method without `self`, so that only single examples could be read from it.
    monkeypatch.setattr("tensorflow_datasets.testing.mocking._getitems", lambda keys, generator: [generator[key] for key in keys])
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with hub._quiet():
        builder = tfds.builder(name, data_dir=tmp_path, file_format="array_record")
        builder.info.set_splits(tfds.core.SplitDict([_split(tfds, builder, split) for split in ("train", "validation")]))
        pathlib.Path(builder.data_dir).mkdir(parents=True)
        builder.info.write_to_directory(builder.data_dir)
    with tfds.testing.mock_data(num_examples=20, policy=tfds.testing.MockPolicy.USE_FILES, data_dir=tmp_path):
        found = documents(config(f"tfds:{name}", text_key=key))
        wanted = [example[key] for example in tfds.data_source(name, split="train", data_dir=tmp_path)]
        inputs = sources.list_parts(config(f"tfds:{name}", text_key=key)).inputs
    assert found == {"train": wanted, "valid": wanted} and len(wanted) == 20 and "".join(wanted)
    assert inputs[0]["name"] == f"tfds:{name}/{builder.version} train"


def _split(tfds, builder, name):
    template = tfds.core.ShardedFileTemplate(data_dir=builder.data_dir, dataset_name=builder.name, split=name, filetype_suffix="array_record")
    return tfds.core.SplitInfo(name=name, shard_lengths=[20], num_bytes=0, filename_template=template)


def test_what_tfds_cannot_give(tmp_path, monkeypatch):
    assert "TFDS has no data set 'lm1bb' (did you mean \"lm1b\"?)." in refused("tfds:lm1bb")
    assert "`tfds.list_builders()` lists its data sets." in refused("tfds:zqxwvu")
    assert "no such config or version (did you mean \"c4/en\"?)." in refused("tfds:c4/enn")
    assert "no such config or version (it has no configs)." in refused("tfds:lm1b:9.9.9")
    assert "write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION." in refused("tfds:")
    assert "has no 'text', which data.text_key names (known: de, en)." in refused("tfds:wmt14_translate/de-en")
    message = refused("tfds:c4/webtextlike")
    assert "is generated by a pipeline of Apache Beam: run `tfds build c4/webtextlike --file_format=array_record`" in message
    assert "downloads/manual': You are using a C4 config" in message and "download OpenWebText.zip from https://mega.nz/" in message
    assert refused("tfds:c4/en").endswith("with --beam_pipeline_options for your runner first.")  # of which nothing is downloaded by hand
    assert "has no 'txt', which data.text_key names (did you mean \"text\"?)." in refused("tfds:tiny_talk", text_key="txt")
    assert "example 0 of train has at 'number', which data.text_key names, no text but int." in refused("tfds:tiny_talk", text_key="number")
    assert "data.valid_split = 'tst' is no split of 'tfds:tiny_talk' that can be held out (did you mean \"test\"?)." in refused(
        "tfds:tiny_talk", valid_split="tst"
    )
    corpora.build_tfds(tmp_path, {"test": ["a"]})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert "has no split 'train', only 'test'." in refused("tfds:tiny_talk")
    corpora.build_tfds(tmp_path / "damaged", {"train": ["a"]})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "damaged"))
    file = next(tmp_path.rglob("*-train.array_record-*"))
    file.write_bytes(file.read_bytes()[:-100])
    assert "examples from 0 of train cannot be read (" in refused("tfds:tiny_talk")
    file.unlink()
    assert "examples from 0 of train cannot be read (" in refused("tfds:tiny_talk")


def test_tfds_that_cannot_be_fetched(tmp_path, monkeypatch):
    """A data set that is downloaded from an address where nobody listens, and one that is downloaded by hand."""
    import tensorflow_datasets as tfds

    class FarAway(tfds.core.GeneratorBasedBuilder):
        VERSION = "1.0.0"
        url_infos = {"http://nowhere.invalid/a.zip": None}

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

        def _split_generators(self, downloads):
            raise AssertionError("it was begun")

        def _generate_examples(self):
            yield 0, {"text": ""}

    class ByHand(FarAway):
        MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask the authors\nfor a.zip."
        url_infos = {}

        def _split_generators(self, downloads):
            return {"train": [downloads.manual_dir]}

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("urllib.request.getproxies", dict)
    message = refused("tfds:far_away")
    assert message.startswith("data.source 'tfds:far_away' is not on this machine (there is no") and "and cannot be fetched (" in message
    assert "it was begun" not in message and message.endswith("): give the command on a machine that reaches the network.")
    assert f"what must be downloaded by hand belongs into '{tmp_path}/downloads/manual': Ask the authors for a.zip." in refused("tfds:by_hand")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Data sets that `save_to_disk` has written: one with splits, one without, in several files."""
    import datasets

    folder = tmp_path_factory.mktemp("hf")
    datasets.disable_progress_bars()
    train = datasets.Dataset.from_dict({"text": [*TRAIN, None, " "], "number": list(range(len(TRAIN) + 2))})
    train.save_to_disk(folder / "plain", num_shards=3)
    datasets.DatasetDict({"train": train, "val": datasets.Dataset.from_dict({"text": VALID})}).save_to_disk(folder / "splits")
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": VALID})}).save_to_disk(folder / "test")
    return folder


def test_hf_from_a_saved_folder(saved, monkeypatch):
    assert documents(config(f"hf:{saved / 'splits'}")) == {"train": TRAIN, "valid": VALID}
    listing = sources.list_parts(config(f"hf:{saved / 'splits'}"))
    assert listing.empty_documents == {"train": 2, "valid": 0}
    assert [entry["bytes"] for entry in listing.inputs] == [pathlib.Path(entry["name"]).stat().st_size for entry in listing.inputs]
    found = documents(config(f"hf:{saved / 'plain'}", valid_fraction=0.2))
    assert sorted(itertools.chain.from_iterable(found.values())) == sorted(TRAIN) and 90 < len(found["valid"]) < 190
    monkeypatch.chdir(saved)
    monkeypatch.setattr(places, "EXAMPLES", (7, 11))
    monkeypatch.setattr(hub, "BATCH", 5)
    chosen = config("hf:plain", valid_fraction=0.2)
    assert documents(chosen) == found and len(sources.list_parts(chosen).parts) > 60
    in_order = documents(dataclasses.replace(chosen, split="tail"))
    assert in_order["train"] + in_order["valid"] == TRAIN


def test_what_hugging_face_cannot_give(saved, monkeypatch):
    assert "is no folder; name one that save_to_disk has written" in refused("hf:/nowhere/at/all")
    assert "is no whole data set that save_to_disk has written (" in refused(f"hf:{saved}")
    assert "write hf:OWNER/NAME, hf:OWNER/NAME/CONFIG or hf:FOLDER." in refused("hf:a/b/c/d")
    assert "must be on this machine's disk." in refused("hf:gs://bucket/folder")
    assert "has no 'txt', which data.text_key names (did you mean \"text\"?)." in refused(f"hf:{saved / 'plain'}", text_key="txt")
    assert "example 0 has at 'number', which data.text_key names, no text but int." in refused(f"hf:{saved / 'plain'}", text_key="number")
    assert "has no split 'train', only 'test'." in refused(f"hf:{saved / 'test'}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert refused("hf:a/b") == "a data.source that begins with hf: needs the package datasets: pip install datasets."


def test_a_name_that_the_hub_does_not_have(monkeypatch):
    """Without a network it is the same to us: the package is asked, and its reason said."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "data.source 'hf:nobody/nothing' cannot be had (" in refused("hf:nobody/nothing")
