"""Doors in forked copies of one process that has imported all that they need: as `python -m cdcd_jax.NAME ARGS`, less its seconds of imports.

Each door is a process of its own, with JAX, flags and exit code of its own. The copies share the seed of `hash`; what may depend on it is tested
with `run_door` of conftest.py instead.
"""

import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple
from unittest import mock

import jax

from tests.environment import of_a_door

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["cdcd_jax.doors", "cdcd_jax.run", "cdcd_jax.training.loop", "clu.metric_writers", "ml_collections.config_flags"])
POOL = ThreadPoolExecutor(2)  # for whoever runs several: two at a time
# An exit code can be read from its pipe once, and every start reads those of all that ended: of two threads at it one finds nothing, and says 255.
READING = threading.Lock()


class Ended(NamedTuple):
    """How a door ended."""

    code: int | None
    stdout: str
    stderr: str


class Process:
    """A forked door, with the methods of a Popen; for any number of threads."""

    def __init__(self, process: BaseProcess):
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with READING:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code once it ended, None if it has not within that many seconds."""
        wait([self._process.sentinel], timeout)
        return self.poll()

    def finish(self, timeout: float) -> int | None:
        """Waits for its end, and kills it when that has not come within so many seconds; the code then is None."""
        code = self.wait(timeout)
        if code is None:
            self.kill()
            self.wait()
        return code

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        with READING:
            self._process.kill()


def begin(
    name: str, args: list[str], streams: list[str], settings: dict[str, Any] | None = None, environment: dict[str, str] | None = None
) -> Process:
    """Starts a door from the root of the project, with stdout and stderr in two files, and some of JAX's settings and variables changed."""
    process = CONTEXT.Process(target=_door, args=(name, args, streams, settings or {}, environment or {}))
    with READING, mock.patch.dict(os.environ, of_a_door(), clear=True):  # the first call starts the process that is copied
        process.start()
        return Process(process)


def door(name: str, *args: object, timeout: float = 250.0) -> Ended:
    """Runs a door to its end; code is None where it had to be killed."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [os.path.join(folder, stream) for stream in ("stdout", "stderr")]
        code = begin(name, [str(a) for a in args], streams).finish(timeout)
        return Ended(code, *(pathlib.Path(stream).read_text() for stream in streams))


def _door(name: str, args: list[str], streams: list[str], settings: dict[str, Any], environment: dict[str, str]) -> None:
    os.chdir(ROOT)
    os.environ.update(environment)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    for setting, value in settings.items():
        jax.config.update(setting, value)
    sys.argv = [name, *args]
    runpy.run_module(f"cdcd_jax.{name}", run_name="__main__", alter_sys=True)
