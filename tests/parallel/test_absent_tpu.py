"""Where libtpu is installed to plan with, and no TPU is there, JAX uses the CPU and says nothing of TPUs."""

from collections.abc import Callable
from typing import Any

import pytest

from cdcd_jax.parallel import backend


class Settings:
    """What stands for jax.config."""

    def __init__(self, platforms: str | None):
        self.jax_platforms = platforms

    def update(self, name: str, value: str) -> None:
        setattr(self, name, value)


@pytest.mark.parametrize(
    "chosen, installed, chips, gpu, plugin, expected",
    [
        (None, True, 0, False, False, "cpu"),
        (None, True, 4, False, False, None),  # a TPU is there
        (None, False, 0, False, False, None),  # nothing looks for one
        (None, True, 0, True, False, None),  # JAX has something to say of that GPU
        (None, True, 0, False, True, None),
        ("tpu", True, 0, False, False, "tpu"),  # the user's word
    ],
)
def test_an_absent_tpu_is_left_out(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, installed: bool, chips: int, gpu: bool, plugin: bool, expected: str | None
) -> None:
    settings: Any = Settings(chosen)

    def answer(value: Any) -> Callable[..., Any]:
        return lambda *_, **__: value

    monkeypatch.setattr(backend.jax, "config", settings)
    monkeypatch.setattr(backend, "find_spec", answer(object() if installed else None))
    monkeypatch.setattr(backend, "entry_points", answer(["cuda"] if plugin else []))
    monkeypatch.setattr(backend.hardware_utils, "num_available_tpu_chips_and_device_id", answer((chips, None)))
    monkeypatch.setattr(backend.hardware_utils, "has_visible_nvidia_gpu", answer(gpu))
    backend.leave_out_absent_tpu()
    assert settings.jax_platforms == expected
