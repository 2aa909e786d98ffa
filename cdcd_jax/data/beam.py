"""A map by Apache Beam, for corpora that outgrow one machine: DirectRunner here, or the user's Dataflow, Flink or Spark.

The functions and their items are the same as those of the worker processes, and so is what they write, into a folder that all machines reach.
"""

import argparse
import atexit
import contextlib
import functools
import pickle
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from etils import epath

from cdcd_jax.config import TryAgain, UserError, did_you_mean, sentence
from cdcd_jax.data import files, records
from cdcd_jax.data.workers import Map

try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise UserError("--beam needs the package apache-beam: pip install apache-beam.") from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"Apache Beam does not take these flags: {message}.")


def mapping(flags: list[str], folder: epath.Path) -> Map:
    """`map` as a pipeline with Beam's own flags. Its results, which must be small, come back in a file of the folder's unfinished/.

    Raises UserError for flags that Beam does not know or cannot read, which it would leave out or end the process for.
    """
    _check(flags)
    options = PipelineOptions(flags)
    try:
        with _own_temporary_folder():
            apache_beam.Pipeline(options=options)  # whether there is such a runner, and whether it has all that it needs
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"Apache Beam cannot begin with these flags: {sentence(error)}") from error
    return functools.partial(_map, options, folder / records.UNFINISHED)


@functools.cache
def _temporary_folder() -> str:
    """A folder that is taken away when the process ends, after all that Beam does then: what was registered first is called last."""
    folder = tempfile.mkdtemp(prefix="cdcd_jax-beam-")
    atexit.register(epath.Path(folder).rmtree, missing_ok=True)
    return folder


@contextlib.contextmanager
def _own_temporary_folder() -> Iterator[None]:
    """Beam leaves folders among the system's temporary ones, one for each pipeline; inside the block they are made in one of ours."""
    before, tempfile.tempdir = tempfile.tempdir, _temporary_folder()
    try:
        yield
    finally:
        tempfile.tempdir = before


def _check(flags: list[str]) -> None:
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_value_provider_argument = parser.add_argument  # type: ignore[attr-defined] # what a few of Beam's options call
    for options in {str(options): options for options in PipelineOptions.__subclasses__()}.values():
        options._add_argparse_args(parser)  # type: ignore[arg-type]
    _, unknown = parser.parse_known_args(flags)
    if unknown:
        hint = did_you_mean(unknown[0].partition("=")[0], [name for action in parser._actions for name in action.option_strings])
        raise UserError(f"Apache Beam has no flag {unknown[0]!r}{hint if 'did you mean' in hint else '; its flags are --name=value'}.")


def _map(options: PipelineOptions, folder: epath.Path, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    numbered = list(enumerate(items))
    if not numbered:
        return []
    # A name of its own: in a bucket no lock keeps a second preparation away.
    path = folder / f"{records.RESULTS}{secrets.token_hex(4)}"
    with _own_temporary_folder(), apache_beam.Pipeline(options=options) as pipeline:
        (
            pipeline
            | apache_beam.Create(numbered)
            | apache_beam.Reshuffle()  # else one worker would do what one worker listed
            | apache_beam.Map(functools.partial(_numbered, function))
            | apache_beam.combiners.ToList()
            | apache_beam.Map(functools.partial(_write, str(path)))
        )
    found = sorted(pickle.loads(path.read_bytes()), key=lambda result: result[0])
    path.unlink()
    if not files.in_bucket(folder) and not any(folder.iterdir()):
        folder.rmdir()
    for _, told, _ in found:
        if told is not None:
            raise told
    return [result for _, _, result in found]


def _numbered(function: Callable[[Any], Any], numbered: tuple[int, Any]) -> tuple[int, UserError | TryAgain | None, Any]:
    """What is told to the user is a result: as an error it would be tried again, and come back wrapped in words of Beam's."""
    number, item = numbered
    try:
        return number, None, function(item)
    except (UserError, TryAgain) as error:
        return number, error, None


def _write(path: str, found: list[tuple[int, UserError | TryAgain | None, Any]]) -> None:
    files.write_whole(epath.Path(path), pickle.dumps(found))
