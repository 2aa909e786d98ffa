"""The coordination service's key-value store without the service: what other processes say is written by the test."""

import json

import jax


class Store:
    """The key-value store of the coordination service, as three processes see it."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.reachable = True
        self.sign(0, time=1.0)
        self.sign(1, time=1.0)  # and of process 2 nothing was heard yet

    def sign(self, index: int, time: float, phase: str = "step", lasted: float = 2.0) -> None:
        """A sign of life of a process."""
        self.values[f"cdcd/seen/{index}"] = json.dumps({"host": f"h{index}", "phase": phase, "lasted": lasted, "step": 7, "time": time})

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self.key_value_dir_get("")
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        if not self.reachable:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: the service is gone")
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]
