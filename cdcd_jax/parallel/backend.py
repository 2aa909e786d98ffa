"""What XLA needs to be told before its backend starts: which memory to keep, and how long a GPU may stand still."""

import ctypes
import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import jax
from jax._src import hardware_utils  # its count of TPUs has no public name

from cdcd_jax.config import HostsConfig

# mallopt's numbers in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
GPU_FLAG = "--xla_gpu_execution_terminate_timeout"


def leave_out_absent_tpu() -> None:
    """Lets JAX use the CPU where libtpu is installed, to plan with, but no TPU is there: it would look for one, and complain of what it finds.

    Does nothing where the user said what to use, or where a GPU may be there. Call it before the backend starts.
    """
    chosen = jax.config.jax_platforms or entry_points(group="jax_plugins")  # type: ignore[attr-defined]
    if chosen or find_spec("libtpu") is None or hardware_utils.has_visible_nvidia_gpu():
        return
    if hardware_utils.num_available_tpu_chips_and_device_id()[0] == 0:
        jax.config.update("jax_platforms", "cpu")


def keep_freed_memory() -> None:
    """On Linux with glibc, where JAX will run on the CPU: lets the allocator keep what it frees instead of giving it back to the kernel.

    XLA's CPU client allocates its temporary buffers anew in every call, and by default each is mapped, faulted in and unmapped again; keeping them
    makes a train step of the demo 1.3 to 2 times faster (docs/RESULTS.md). Elsewhere this does nothing. Call it before the backend starts.
    """
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    accelerator = platforms != "cpu" if platforms else bool(entry_points(group="jax_plugins")) or find_spec("libtpu") is not None
    if accelerator or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_ARENA_MAX, 1)


def watch_gpus(config: HostsConfig) -> None:
    """On GPUs XLA has a watchdog of its own; the user's setting comes first."""
    set_by_user = GPU_FLAG in os.environ.get("XLA_FLAGS", "")
    if any(entry.name.startswith(("cuda", "xla_cuda", "rocm")) for entry in entry_points(group="jax_plugins")) and not set_by_user:
        seconds = int(max(config.compile_seconds, config.stall_seconds))
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {GPU_FLAG}={seconds}s".strip()
