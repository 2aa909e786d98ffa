"""What all doors share: flags, and one sentence for a user's mistake."""

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

from cdcd_jax.config import UserError
from cdcd_jax.parallel.hosts import keep_freed_memory

USER_MISTAKE = 2

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow, which writes the summaries, greets every process otherwise


def run(main: Callable[[], int]) -> None:
    """Parses the flags, runs main and exits with its code; a user's mistake is one sentence on stderr and the exit code 2."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
            if rest[1:]:
                raise UserError(f"unexpected argument {rest[1]!r}: every option is a --flag=value.")
        # What absl and ml_collections raise for an unknown flag or config key, a value of a wrong type, a config file that does not load.
        except (flags.Error, UserError, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
            fail(error)
        return rest

    def inner(_: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)  # orbax tells of every file that it renames
        keep_freed_memory()
        try:
            code = main()
        except UserError as error:
            fail(error)
        sys.exit(code)

    app.run(inner, flags_parser=parse)


def fail(error: Exception) -> None:
    """Ends the process with one sentence."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(USER_MISTAKE)
