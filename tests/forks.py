"""Processes to be killed and raced: forks of one that has imported all that they need.

What they run is a function of a module; its first argument is a pipe to the test.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any
from unittest import mock

from btr.errors import BtrError

PRELOADED = ("stub_processes", "stub_warm", "stub_training", "stub_warm_training", "stub_steps")
"""Those of them that are there: pytest puts the folders of the tests that it runs on the path."""


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PRELOADED])
    # Or each process would have to import all of it by itself.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


class Worker:
    """A function in a process of its own, which waits for :meth:`go`.

    Args:
        work: The function.
        arguments: Behind the pipe.

    Attributes:
        pid: Of the process.
        unheard: What a killed one had said that nobody had asked for.
    """

    def __init__(self, work: Callable[..., object], *arguments: object) -> None:
        self.unheard: list[object] = []
        self._pipe, theirs = _context().Pipe()
        self._process = _context().Process(target=_run, args=(theirs, work, arguments), daemon=True)
        self._process.start()
        theirs.close()
        assert self.told() == "ready"
        self.pid = self._process.pid

    def go(self) -> None:
        """Let it begin; or tell it what it then waits for."""
        self._pipe.send("go")

    def told(self) -> Any:
        """The next thing that it says; at last a BtrError, or the function's result."""
        return self._pipe.recv()

    def kill(self) -> bool:
        """``kill -9``; whether it lived until then."""
        self._process.kill()
        self._process.join()
        status = self._process.exitcode
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                self.unheard.append(self._pipe.recv())
        self.close()
        assert status in (0, -9), "the process failed by itself"
        return status == -9

    def close(self) -> None:
        """Wait for its end."""
        self._process.join()
        self._process.close()
        self._pipe.close()


def _run(pipe: Connection, work: Callable[..., object], arguments: Sequence[object]) -> None:
    pipe.send("ready")
    pipe.recv()
    try:
        result = work(pipe, *arguments)
    except BtrError as error:
        result = error
    pipe.send(result)


def ended(*workers: Worker) -> list[Any]:
    """What processes end with that begin at the same moment."""
    for worker in workers:
        worker.go()
    results = [worker.told() for worker in workers]
    for worker in workers:
        worker.close()
    return results


def duration(work: Callable[..., object], *arguments: object) -> float:
    """Seconds that a function takes: kills are spread over as many."""
    worker = Worker(work, *arguments)
    began = time.perf_counter()
    (result,) = ended(worker)
    assert not isinstance(result, BtrError)
    return time.perf_counter() - began


def killed(seconds: float, work: Callable[..., object], *arguments: object) -> bool:
    """Run a function and kill it after so long; whether it lived until then."""
    worker = Worker(work, *arguments)
    worker.go()
    time.sleep(seconds)
    return worker.kill()
