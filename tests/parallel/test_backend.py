"""XLA's own watchdog on GPUs, and the allocator, which the benchmarks measure."""

import os

import pytest

from cdcd_jax.config import HostsConfig
from cdcd_jax.parallel import backend


def test_on_gpus_xla_watches_as_well_unless_the_user_said_how(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "cuda12"

    monkeypatch.setattr(backend, "entry_points", lambda group: [Entry()])
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    backend.watch_gpus(HostsConfig(compile_seconds=90.0))
    assert os.environ["XLA_FLAGS"] == "--xla_a=1 --xla_gpu_execution_terminate_timeout=90s"
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_execution_terminate_timeout=5s")
    backend.watch_gpus(HostsConfig())
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_execution_terminate_timeout=5s"
    monkeypatch.setattr(backend, "entry_points", lambda group: [])
    monkeypatch.setenv("XLA_FLAGS", "")
    backend.watch_gpus(HostsConfig())
    assert os.environ["XLA_FLAGS"] == ""
