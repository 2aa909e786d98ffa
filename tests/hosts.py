"""Several real processes of the train door on this machine, as on several hosts: started together, disturbed, looked at."""

import json
import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import portpicker

from tests import forked, tiny

PATIENCE = 240.0  # seconds after which a test gives up


class Ended(NamedTuple):
    """How the processes of one life ended."""

    codes: list[int | None]
    logs: list[str]
    seconds: list[float]  # from the signal on, or from the start where there was none


class Job:
    """A run of the tiny config in one workdir, by any number of processes."""

    def __init__(self, folder: pathlib.Path, name: str, changes: dict[str, Any]):
        self.folder, self.workdir = folder, folder / name
        self.flags = tiny.flags(folder / "corpus.txt", self.workdir, changes)
        # Each program is compiled once for all of these processes, which changes no bit of it.
        self.settings = {"jax_compilation_cache_dir": str(folder / "cache"), "jax_persistent_cache_min_compile_time_secs": 0}

    def lines(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The whole lines of a file of the workdir."""
        path = self.workdir / name
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []

    def reached(self) -> int:
        """The last step logged."""
        lines = self.lines()
        return lines[-1]["step"] if lines else 0

    def evaluating(self, step: int) -> bool:
        """Whether the evaluation after this step is under way."""
        probes = self.lines("telemetry.jsonl")
        return self.reached() >= step and (not probes or probes[-1]["step"] < step)

    def compiling(self) -> bool:
        """Whether the first step is being compiled, or is under way."""
        return "compiling" in self.log(0) and not self.reached()

    def log(self, index: int) -> str:
        """What a process has written to stderr."""
        path = self.folder / f"{self.workdir.name}.{index}.log"
        return path.read_text() if path.exists() else ""

    def start(self, count: int, extra: dict[int, list[str]] | None = None, homes: bool = False) -> list[forked.Process]:
        """The processes, just started."""
        port = portpicker.pick_unused_port()
        begun = []
        for index in range(count):
            environment = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
            streams = [os.devnull, str(self.folder / f"{self.workdir.name}.{index}.log")]
            if homes:
                environment["HOME"] = str(self.folder / f"home{index}")
            flags = [*self.flags, *(extra or {}).get(index, [])]
            begun.append(forked.begin("train", flags, streams, self.settings, environment if count > 1 else {}))
        return begun

    def live(
        self,
        count: int,
        signals: dict[int, signal.Signals] | None = None,
        when: Callable[[], bool] = lambda: True,
        extra: dict[int, list[str]] | None = None,
        homes: bool = False,
    ) -> Ended:
        """One life of the processes, some of which get a signal when `when` says so; a stopped one is let go on when the others have left."""
        processes = self.start(count, extra, homes)
        began = time.monotonic()
        try:
            while signals and not when():
                assert all(process.poll() is None for process in processes), f"one ended before its signal: {[self.log(i) for i in range(count)]}"
                assert time.monotonic() < began + PATIENCE, "the moment never came"
                time.sleep(0.005)
            for index, number in (signals or {}).items():
                os.kill(processes[index].pid, number)
            sent = time.monotonic()
            stopped = [index for index, number in (signals or {}).items() if number == signal.SIGSTOP]
            seconds = [0.0] * count
            for index in sorted(range(count), key=lambda index: index in stopped):
                if index in stopped:
                    os.kill(processes[index].pid, signal.SIGCONT)
                processes[index].wait(max(0.0, began + PATIENCE - time.monotonic()))
                seconds[index] = time.monotonic() - sent
        finally:
            for process in processes:
                process.kill()
        return Ended([process.poll() for process in processes], [self.log(index) for index in range(count)], seconds)
