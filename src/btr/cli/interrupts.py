"""Ctrl-C and SIGTERM end a command within seconds, whatever it is busy with."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

GRACE_S = 4.0
"""Seconds a command has to unwind before the process ends without it."""


class Interrupted(BaseException):
    """The user or the system asked the command to stop."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted")
        self.exit_status = 128 + number


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextlib.contextmanager
def listen() -> Iterator[None]:
    """Turn both signals into :class:`Interrupted` in the main thread while inside.

    Python runs its handlers between bytecodes only, and a matrix product or an index merge can take
    longer than a user waits. A signal also writes a byte to a socket at once, by which a second
    thread learns of it; if the main thread has not left after ``GRACE_S``, that thread ends the
    process, which is as safe as kill -9: committed work stays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    left = threading.Event()

    def watch() -> None:
        with ours:
            while data := ours.recv(1):
                if data[0] in (signal.SIGINT, signal.SIGTERM) and not left.wait(GRACE_S):
                    sys.stderr.write("interrupted; a build goes on with --resume\n")
                    sys.stderr.flush()
                    os._exit(128 + data[0])

    threading.Thread(target=watch, daemon=True).start()
    before = {n: signal.signal(n, _stop) for n in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()  # the watcher reads the end and goes
