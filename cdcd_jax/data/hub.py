"""Data sets of TensorFlow Datasets (TFDS) and of Hugging Face: their splits, and the texts of a range of examples.

TFDS is read without TensorFlow, from ArrayRecord files; the package `datasets` is needed for Hugging Face alone. They are imported when used.
"""

import contextlib
import functools
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging
from etils import epath
from google.protobuf.message import DecodeError

from cdcd_jax.config import UserError, did_you_mean
from cdcd_jax.data import files

BATCH, BATCH_BYTES = 1024, 1 << 22  # examples read at a time: at most so many, of about so many bytes


def tfds_splits(name: str, key: str) -> dict[str, int]:
    """The number of examples in each split of a TFDS data set, such as "c4/en"; it is downloaded and generated if it is not on this machine.

    Raises UserError when there is none of that name, it cannot be had, or its examples have no text at `key`.
    """
    with _quiet():
        builder = _tfds(name)
        _check_key(f"tfds:{name}", key, list(getattr(builder.info.features, "keys", list)()))
        if not builder.is_prepared():
            _generate(name, builder)
        try:
            return {split: len(builder.as_data_source(split)) for split in builder.info.splits}
        except NotImplementedError as error:
            raise UserError(
                f"data.source 'tfds:{name}' is at {str(builder.data_dir)!r} in the format {builder.info.file_format.value}, which cannot be read in "
                "any order: `tfds convert_format --root_data_dir=FOLDER --out_file_format=array_record` makes ArrayRecord files of it."
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"data.source 'tfds:{name}' at {str(builder.data_dir)!r} cannot be read ({_line(error)}).") from error


def tfds_version(name: str) -> str:
    """The full name of a data set with its version, such as "c4/en/3.1.0"."""
    return _tfds(name).info.full_name


def read_tfds(name: str, split: str, first: int, last: int, key: str) -> Iterator[list[str]]:
    """The texts at `key` of the examples [first, last) of a split, many at a time. Raises UserError for what is no text, naming the example."""
    with _quiet():
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_pb2

        builder, method = _tfds(name), tfds.decode.DeserializeMethod
        # An ArrayRecord file's examples are read raw: of all of their features one is wanted, and TFDS takes long for short ones.
        raw = builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
        source = builder.as_data_source(split, deserialize_method=method.RAW_BYTES if raw else method.DESERIALIZE_AND_DECODE)
        about = builder.info.splits[split]
        step = min(max(BATCH_BYTES // max(about.num_bytes // max(about.num_examples, 1), 1), 1), BATCH)
    for start in range(first, last, step):
        try:
            with _quiet():
                examples = source.__getitems__(list(range(start, min(start + step, last))))
            values = [_feature(tf_example_pb2.Example.FromString(e), key) if isinstance(e, bytes) else e[key] for e in examples]
        except (OSError, ValueError, RuntimeError, IndexError, DecodeError) as error:
            raise UserError(f"data.source 'tfds:{name}': examples from {start:,} of {split} cannot be read ({_line(error)}).") from error
        yield _texts(values, f"data.source 'tfds:{name}': example", f"of {split}", start, key)


def _feature(example: Any, key: str) -> Any:
    """The value of a feature that is one; otherwise what there is. None if there is nothing."""
    feature = example.features.feature[key]
    kind = feature.WhichOneof("kind")
    values = getattr(feature, kind).value if kind else []
    return values[0] if len(values) == 1 else list(values) or None


def hf_splits(name: str, key: str) -> dict[str, list[tuple[str, int]]]:
    """The Arrow files of each split of a Hugging Face data set, and how many examples each holds.

    name: a folder on this machine that `save_to_disk` has written, or a name on the Hub, OWNER/NAME or OWNER/NAME/CONFIG, which is downloaded.
    Raises UserError when the package is missing, there is no such data set, or its examples have no text at `key`.
    """
    loaded = _hf(name)
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    found = {}
    for split, data in splits.items():
        _check_key(f"hf:{name}", key, data.column_names)
        arrows = [file["filename"] for file in data.cache_files]
        found[split] = [(arrow, len(_arrow(arrow))) for arrow in arrows]
        if sum(number for _, number in found[split]) != len(data):
            raise UserError(f"data.source 'hf:{name}': split {split!r} is not what its files hold; write it anew with save_to_disk.")
    return found


def read_hf(arrow: str, first: int, last: int, key: str) -> Iterator[list[str]]:
    """The texts at `key` of the examples [first, last) of an Arrow file, many at a time; "" for null. Raises UserError for what is no text."""
    column = _arrow(arrow).data.column(key)
    for start in range(first, last, BATCH):
        try:
            values = column.slice(start, min(BATCH, last - start)).to_pylist()
        except (OSError, ValueError) as error:
            raise UserError(f"data.source file {arrow!r}: examples from {start:,} cannot be read ({_line(error)}).") from error
        yield _texts(values, f"data.source file {arrow!r}: example", "", start, key)


def _texts(values: list[Any], before: str, after: str, first: int, key: str) -> list[str]:
    texts = []
    for number, value in enumerate(values, first):
        if isinstance(value, bytes):
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{before} {number:,} {after}".rstrip() + f" is not UTF-8 (its byte {error.start}).") from error
        if value is not None and not isinstance(value, str):
            what = f"no text but {type(value).__name__}"
            raise UserError(f"{before} {number:,} {after}".rstrip() + f" has at {key!r}, which data.text_key names, {what}.")
        texts.append(value or "")
    return texts


def _check_key(source: str, key: str, keys: list[str]) -> None:
    if key not in keys:
        raise UserError(f"data.source {source!r} has no {key!r}, which data.text_key names{did_you_mean(key, keys)}.")


def _line(error: BaseException | str) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out the warnings of these packages about themselves and about what is not there yet: whatever is wrong is raised as well."""
    before = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        absl_logging.set_verbosity(before)


def _tfds(name: str) -> Any:
    """The builder of a data set, on disk or not yet."""
    return _builder(name, os.environ.get("TFDS_DATA_DIR"))


@functools.lru_cache(maxsize=8)
def _builder(name: str, folder: str | None) -> Any:
    with _quiet():
        import tensorflow_datasets as tfds

        if not re.fullmatch(r"\w+(/[\w.-]+)?(:[\d.*]+)?", name):
            raise UserError(f"data.source 'tfds:{name}' is no name of a data set: write tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION.")
        try:
            return tfds.builder(name, data_dir=folder)
        except tfds.core.DatasetNotFoundError as error:
            known = tfds.list_builders(with_community_datasets=False)
            raise UserError(f"data.source 'tfds:{name}': TFDS has no data set {re.split('[/:]', name)[0]!r}{_nearest(name, known)}.") from error
        except (ValueError, AssertionError) as error:
            base = re.split("[/:]", name)[0]
            configs = [f"{base}/{config}" for config in tfds.builder_cls(base).builder_configs]
            near = did_you_mean(name, configs) if configs else " (it has no configs)"
            raise UserError(f"data.source 'tfds:{name}': the data set {base!r} has no such config or version{near}.") from error
        except (OSError, ImportError) as error:
            raise UserError(f"data.source 'tfds:{name}' cannot be used ({_line(error)}).") from error


def _nearest(name: str, known: list[str]) -> str:
    near = did_you_mean(re.split("[/:]", name)[0], known)
    return near if "did you mean" in near else "; `tfds.list_builders()` lists its data sets"


def _generate(name: str, builder: Any) -> None:
    """Downloads a data set and writes it as ArrayRecord files."""
    import tensorflow_datasets as tfds

    where = f"data.source 'tfds:{name}' is not on this machine (there is no {str(builder.data_dir)!r}; TFDS_DATA_DIR names another place)"
    if isinstance(builder, tfds.core.BeamBasedBuilder):
        raise UserError(
            f"{where}, and is generated by a pipeline of Apache Beam: run `tfds build {name} --file_format=array_record` "
            f"with --beam_pipeline_options for your runner first{_by_hand(builder)}."
        )
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the retries that it tells of end in an error that is raised
    try:
        if not urllib.request.getproxies():
            for host in {urllib.parse.urlsplit(url).hostname for url in builder.url_infos}:
                socket.getaddrinfo(host, None)  # without a network TFDS would try for minutes
        builder.download_and_prepare(file_format="array_record")
    except _failures() as error:
        way = ": give the command on a machine that reaches the network" if files.transient(error) else ""
        raise UserError(f"{where}, and cannot be fetched ({_line(error)}){way}{_by_hand(builder)}.") from error


def _by_hand(builder: Any) -> str:
    """What the user must download, and whereto, if anything: instructions are a data set's, and may name those of its configs that they are for."""
    manual, instructions = epath.Path(builder.data_dir_root) / "downloads" / "manual", builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    if not instructions or manual.exists() and any(manual.iterdir()):
        return ""
    named = {config for config in builder.builder_configs if f"`{builder.name}/{config}`" in instructions}
    if named and builder.builder_config.name not in named:
        return ""
    return f"; what must be downloaded by hand belongs into {str(manual)!r}: {_line(instructions).rstrip('.')}"


def _failures() -> tuple[type[Exception], ...]:
    """What the download of a TFDS data set may raise."""
    from tensorflow_datasets.core.download import download_manager, extractor, util

    own = (util.DownloadError, download_manager.NonMatchingChecksumError, extractor.ExtractError, extractor.UnsafeArchiveError)
    return (OSError, ValueError, AssertionError, ImportError, RuntimeError, *own)


def _hf(name: str) -> Any:
    """A Dataset, or a dict of them."""
    datasets = _package()
    place = files.in_bucket(name) or name.startswith(("/", "./", "../", "~"))
    if files.in_bucket(name):
        raise UserError(f"data.source 'hf:{name}' lies in a bucket; a saved data set must be on this machine's disk.")
    folder = epath.Path(name).expanduser()
    if place or folder.exists():
        if not folder.is_dir():
            raise UserError(f"data.source 'hf:{name}' is no folder; name one that save_to_disk has written, or a data set of the Hub.")
        try:
            return datasets.load_from_disk(str(folder))
        except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"data.source 'hf:{name}' is no whole data set that save_to_disk has written ({_line(error)}).") from error
    parts = name.split("/")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+){0,2}", name):
        raise UserError(f"data.source 'hf:{name}' is no name of a data set: write hf:OWNER/NAME, hf:OWNER/NAME/CONFIG or hf:FOLDER.")
    try:
        return datasets.load_dataset("/".join(parts[:2]), *parts[2:])
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data.source 'hf:{name}' cannot be had ({_line(error).rstrip('.')}); name a saved folder, or a data set of the Hub as "
            "hf:OWNER/NAME or hf:OWNER/NAME/CONFIG, on a machine that reaches the Hub."
        ) from error


@functools.lru_cache(maxsize=8)
def _arrow(path: str) -> Any:
    return _package().Dataset.from_file(path)


def _package() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import datasets
    except ImportError as error:
        raise UserError("a data.source that begins with hf: needs the package datasets: pip install datasets.") from error
    for logger in ("datasets", "huggingface_hub"):  # the retries that they tell of end in an error that is raised
        logging.getLogger(logger).setLevel(logging.ERROR)
    return datasets
