"""The environment in which tests compile, and run doors."""

import os

# LLVM's optimisation is half of all compile time, and what is compiled here runs for seconds. tests/test_readme.py goes without this.
XLA_FLAGS = "--xla_backend_optimization_level=0"


def of_a_door() -> dict[str, str]:
    """The caller's without any setting of JAX or XLA, so that a door has one CPU device and no compilation cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": XLA_FLAGS}
