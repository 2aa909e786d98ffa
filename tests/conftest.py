"""What every test stands on: eight CPU devices, strict broadcasting, shape annotations that are checked, and doors run as a user runs them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jaxtyping
import pytest
from absl import flags

from tests import environment
from tests.platforms import Platform, open_platform

os.environ["XLA_FLAGS"] = environment.XLA_FLAGS  # read at the first use of a device
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)  # impossible after the first use of a device, so it stands here
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", False)  # what another machine compiled may not run on this one
# Under nohup, or in the background of a script, these are ignored, and would be by all that the tests start: a script cannot trap them then.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl's flags, which pytest never parses
jaxtyping.install_import_hook("cdcd_jax", "beartype.beartype")  # works on what is imported after it: import cdcd_jax nowhere above

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def door_environment() -> dict[str, str]:
    """The environment of a door."""
    return environment.of_a_door()


@pytest.fixture(scope="session")
def run_door(door_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_door(name, *args)` runs `python -m cdcd_jax.NAME ARGS` from the root of the project and returns its code, stdout and stderr.

    It asserts nothing: a test of bad input looks at the code itself. A door that is still running after `timeout` seconds raises TimeoutExpired.
    """

    def run(name: str, *args: object, timeout: float = 280.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"cdcd_jax.{name}", *map(str, args)]
        return subprocess.run(
            command, cwd=ROOT, env=door_environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    """Stand-ins of gcloud, xpk, kubectl, docker and Slurm; whatever was started with them ends with the test."""
    with open_platform(tmp_path / "platform") as opened:
        yield opened
