"""Three processes without the other two."""

import sys
import threading

import pytest

from cdcd_jax.parallel import hosts
from tests.store import Store


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Makes this process the second of three; a test may make it another."""
    made = Store()
    for name, value in {"client": made, "process_id": 1, "num_processes": 3}.items():
        monkeypatch.setattr(hosts.distributed.global_state, name, value)
    monkeypatch.setattr(hosts, "_joined", True)
    monkeypatch.setattr(hosts, "_leaving", threading.Lock())
    monkeypatch.setattr(hosts, "INTERVAL", 0.05)
    monkeypatch.setattr(hosts.os, "_exit", sys.exit)
    return made
