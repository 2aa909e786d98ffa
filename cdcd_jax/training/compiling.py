"""Compiling for hardware that is not here: the program's text and what it says of its memory, or how much it would have taken."""

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable, Iterator

import jax

TICK = 60.0  # seconds of compiling after which a line says so
Say = Callable[[str], None]  # told of what takes long, a line each


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program and the memory that it says it takes; no text, and only `peak`, of one that is too large for the chip."""

    text: str
    arguments: int | float
    temporaries: int | float
    peak: int | float


@contextlib.contextmanager
def ticking(say: Say) -> Iterator[None]:
    """Says every TICK seconds that the block still runs: the compiler says nothing, and cannot be asked."""
    done, began = threading.Event(), time.monotonic()

    def tick() -> None:
        while not done.wait(TICK):
            say(f"still compiling after {time.monotonic() - began:.0f} s")

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def compile_lowered(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles a program, or says how much memory it would have taken."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise
        return Compiled("", 0.0, 0.0, needed)
    m = compiled.memory_analysis()
    assert m is not None  # TPU programs have one
    beyond = m.output_size_in_bytes - m.alias_size_in_bytes + m.generated_code_size_in_bytes
    text = compiled.as_text()
    assert text is not None
    return Compiled(text, m.argument_size_in_bytes, m.temp_size_in_bytes, m.argument_size_in_bytes + m.temp_size_in_bytes + beyond)


def _needed(message: str) -> float | None:
    """Bytes that a program would take, from the compiler's words for one that is too large; None for other words."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM", message) or re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", message)
    if "RESOURCE_EXHAUSTED" not in message or found is None:
        return None
    return float(found[1]) * 2 ** (10 * (1 + "KMGT".index(found[2])))
