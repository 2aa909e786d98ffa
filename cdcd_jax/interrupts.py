"""Ctrl-C where there is nothing to save: the process ends at once, with one line, wherever it is. And what else a signal does at once.

A KeyboardInterrupt would have to wait until the call under way returns, a compilation or a whole sampling loop, and raised while an extension module
starts or ends it brings the interpreter down. A thread hears of the signal at any time. Only the standard library is imported: this comes first.
"""

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

INTERRUPTED = 130  # the exit code, as the shells have it

said = b"interrupted.\n"
_armed = False
_actions: dict[int, tuple[Any, Callable[[], None]]] = {}  # of a signal: the handler, and what is done at once while that is set


def arm() -> None:
    """From here on SIGINT ends the process with 130. Call it from the main thread."""
    global _armed
    _armed = True
    ours, kernels = socket.socketpair()
    kernels.setblocking(False)
    signal.set_wakeup_fd(kernels.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _ignore)
    threading.Thread(target=_listen, args=(ours, kernels), name="interrupts", daemon=True).start()


def say(sentence: str) -> None:
    """What the process says from here on when it is interrupted."""
    global said
    said = f"{sentence}\n".encode()


def disarm() -> None:
    """From here on the handlers of the signal module decide: there is something to save."""
    global _armed
    _armed = False


def at_once(number: signal.Signals, handler: Any, action: Callable[[], None]) -> None:
    """Sets a signal's handler; while it is set, the thread, in a door, calls `action` as soon as the signal comes. Call it from the main thread.

    The handler runs as well, as soon as the main thread is back from the call under way, so that the two must agree on who does what.
    """
    _actions[number] = (handler, action)
    signal.signal(number, handler)


def _ignore(number: int, frame: object) -> None:
    """Python's own handler must not raise: the thread ends the process."""


def _listen(ours: socket.socket, kernels: socket.socket) -> None:
    while kernels.fileno() >= 0:
        number = ours.recv(1)[0]
        handler, action = _actions.get(number, (None, None))
        if action is not None and signal.getsignal(number) == handler:
            action()
        if number == signal.SIGINT and _armed:
            with contextlib.suppress(OSError):  # stderr may be closed, or a pipe that nobody reads
                if select.select([], [2], [], 1.0)[1]:
                    os.write(2, said)
            os._exit(INTERRUPTED)
