"""Ctrl-C where there is nothing to save: the process ends at once, with one word, wherever it is.

A KeyboardInterrupt would have to wait until the call under way returns, a compilation or a whole sampling loop, and raised while an extension module
starts or ends it brings the interpreter down. A thread hears of the signal at any time. Only the standard library is imported: this comes first.
"""

import contextlib
import os
import select
import signal
import socket
import threading

INTERRUPTED = 130  # the exit code, as the shells have it

_armed = False


def arm() -> None:
    """From here on SIGINT ends the process with 130. Call it from the main thread."""
    global _armed
    _armed = True
    ours, kernels = socket.socketpair()
    kernels.setblocking(False)
    signal.set_wakeup_fd(kernels.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _ignore)
    threading.Thread(target=_listen, args=(ours, kernels), name="interrupts", daemon=True).start()


def disarm() -> None:
    """From here on the handlers of the signal module decide: there is something to save."""
    global _armed
    _armed = False


def _ignore(number: int, frame: object) -> None:
    """Python's own handler must not raise: the thread ends the process."""


def _listen(ours: socket.socket, kernels: socket.socket) -> None:
    while kernels.fileno() >= 0:
        if signal.SIGINT in ours.recv(1) and _armed:
            with contextlib.suppress(OSError):  # stderr may be closed, or a pipe that nobody reads
                if select.select([], [2], [], 1.0)[1]:
                    os.write(2, b"interrupted.\n")
            os._exit(INTERRUPTED)
