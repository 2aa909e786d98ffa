"""What all doors share: flags, and one sentence for a user's mistake."""

import functools
import os
import re
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable
from logging import getLogger
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from cdcd_jax import interrupts
from cdcd_jax.config import DONE, MISTAKE, Config, TryAgain, UserError, defaults, did_you_mean, sentence
from cdcd_jax.data import files
from cdcd_jax.parallel.backend import keep_freed_memory, leave_out_absent_tpu

# What Python code that a user wrote, a config file, may raise.
MISTAKES_IN_A_FILE = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError, SyntaxError, TypeError,
    ValueError, UserError,
)  # fmt: skip


def run(main: Callable[[], int]) -> None:
    """Parses the flags, runs main and exits with its code; a user's mistake is one sentence on stderr and the exit code 2.

    So is what may be gone in a minute, with 75.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            check_config(argv)
            try:
                rest = flags.FLAGS(argv)
            except SystemExit as asked:  # absl has said what --help asks for, and calls that an error
                sys.exit(DONE if asked.code == 1 else asked.code)
            if rest[1:]:
                raise UserError(f"unexpected argument {rest[1]!r}: every option is a --flag=value.")
        # What absl and ml_collections raise for an unknown flag, a required one that is missing, or a value of a wrong type.
        except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            fail(_plain(error), MISTAKE)
        return rest

    def inner(_: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # orbax tells of every file that it renames
        warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)  # of a save that failed, which is told
        for logger in (logging.get_absl_logger(), getLogger("asyncio")):
            logger.addFilter(_is_news)
        sys.unraisablehook = _unraisable
        leave_out_absent_tpu()
        keep_freed_memory()
        try:
            code = main()
        except (UserError, TryAgain) as error:
            fail(error, error.code)
        except files.failures() as error:
            if not files.transient(error):
                raise
            fail(TryAgain(f"a file cannot be reached ({files.reason(error)})"), TryAgain.code)
        except KeyboardInterrupt:
            print(interrupts.said.decode(), end="", file=sys.stderr)
            code = interrupts.INTERRUPTED
        sys.exit(code)

    app.run(inner, flags_parser=parse)


def _unraisable(what: Any) -> None:
    """Reads of a damaged checkpoint that nobody waits for any more fail once again, aloud, after the error was told; everything else is said."""
    if not (isinstance(what.exc_value, RuntimeError) and "Event loop is closed" in str(what.exc_value)):
        sys.__unraisablehook__(what)


def _is_news(record: Any) -> bool:
    """Of a checkpoint that cannot be written every failed file is logged with a traceback; the trainer says in a sentence that it failed, and why."""
    where = record.exc_info[2] if record.exc_info else None
    abandoned = record.name == "asyncio" and "exception was never retrieved" in record.getMessage()
    return not abandoned and not any("orbax" in frame.filename for frame in traceback.extract_tb(where))


def given_config() -> tuple[str, dict[str, Any]]:
    """The file that --config names, and the keys that flags changed, "section.key" to the value, in whatever form the flags were given."""
    flag = flags.FLAGS["config"]
    return config_flags.get_config_filename(flag), dict(config_flags.get_override_values(flag))


def check_config(argv: list[str]) -> None:
    """Says what is wrong with a config file or with the names of config keys; ml_collections tells of them at length, with tracebacks or too late."""
    known = [f"{section}.{name}" for section, values in defaults().items() if isinstance(values, ConfigDict) for name in values] + ["objective"]
    for index, argument in enumerate(argv):
        if key := re.match(r"--?config\.([^=]*)", argument):
            if key[1] not in known:
                raise UserError(f"unknown config key {key[1]!r}{did_you_mean(key[1], known)}.")
        elif file := re.match(r"--?config(?:=(.*))?$", argument):
            value = file[1] if file[1] is not None else "".join(argv[index + 1 : index + 2])
            path, colon, choice = value.partition(":")
            if not os.path.isfile(path):
                raise UserError(f"the config file {path!r} does not exist; name one such as configs/demo.py.")
            try:
                found = runpy.run_path(path)
                if "get_config" in found:
                    found["get_config"](*([choice] if colon else []))
            except MISTAKES_IN_A_FILE as error:
                lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
                line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
                where = f" in line {line}" if line else ""
                raise UserError(f"the config file {path!r} fails{where}: {type(error).__name__}: {error}.") from error
            if "get_config" not in found:
                raise UserError(f"the config file {path!r} does not define get_config(), which returns the config.")


def _plain(error: Exception) -> Exception:
    """The same mistake in our words, where absl's are not plain."""
    if missing := re.match(r"flag --(\w+)=None: Flag --\w+ must have a value", str(error)):
        return UserError(f"the flag --{missing[1]} is required.")
    if wrong := re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error)):
        value = functools.reduce(getattr, wrong[1].split("."), Config())
        return UserError(f"config key {wrong[1]!r} takes a value of type {type(value).__name__}, not {wrong[2]!r}.")
    return error


def fail(error: Exception, code: int) -> None:
    """Ends the process with one sentence."""
    print(f"error: {sentence(error)}", file=sys.stderr)
    sys.exit(code)
