"""Processes of their own, to be killed and raced: forks of one that has imported all they need.

What they run is a function of this module; its first argument is a pipe to the test.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

import stub_store as stub
from stub_changes import CHANGES, add

from btr.errors import BtrError
from btr.store import StoreWriter, TokenStore
from btr.store.building import changing
from btr.store.change import remove_passages


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "stub_warm"])
    # Or each process would have to import all of it by itself.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    return context


class Worker:
    """A function in a process of its own, which waits for :meth:`go`.

    Args:
        work: The function.
        arguments: Behind the pipe.
    """

    def __init__(self, work: Callable[..., object], *arguments: object) -> None:
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


# -- what processes do --------------------------------------------------------------------------


def build(pipe: Connection, path: Path, n: int, size: int) -> None:
    """Build the stub store, or go on with it."""
    stub.build(path, n, of=stub.spec(passages_per_shard=size), resume=True)


def change(pipe: Connection, name: str, path: Path) -> None:
    """Make one of the changes."""
    CHANGES[name].run(path)


def hold(pipe: Connection, path: Path, build: bool) -> None:
    """Hold a store's lock in the middle of the work."""
    if build:
        with StoreWriter.create(path, stub.SPEC, resume=True) as writer:
            if not writer.committed:
                writer.write_shard([stub.passage(0), stub.passage(1)],
                                   [stub.state(0), stub.state(1)], stub.vectors(0, 2))  # fmt: skip
            pipe.send("holding")
            pipe.recv()
    else:
        with changing(path) as building:
            building.start_over()
            pipe.send("holding")
            pipe.recv()


RACERS: dict[str, Callable[[Path], object]] = {
    "add 5, 6": lambda path: add(path, 5, 2),
    "add 7": lambda path: add(path, 7, 1, of=stub.spec(sources_digest="others")),
    "remove 0": lambda path: remove_passages(path, [0]),
    "remove 1, 2": lambda path: remove_passages(path, [1, 2]),
}


def race(pipe: Connection, what: str, path: Path, seed: float) -> str:
    """Make a change, slowly: each step takes another time in every race."""
    draw = random.Random(seed)
    fake = stub.hooked(lambda name, args: time.sleep(draw.uniform(0, 0.0006)))
    with stub.operations(fake):
        RACERS[what](path)
    return what


def read(pipe: Connection, path: Path, live: dict[int, list[int]]) -> None:
    """Open the store and read all of it, again and again, until told to stop.

    Args:
        pipe: Told the generation of every read.
        path: The store.
        live: The passages of every generation.
    """
    while not pipe.poll():
        with TokenStore.open(path) as store:
            generation = store.manifest.generation
            ordinals = [o for o in range(len(store)) if not store.is_removed(o)]
            passages = store.passages(ordinals)
            assert passages == [stub.passage(number) for number in live[generation]]
            for number, state in zip(live[generation], store.states(ordinals), strict=True):
                assert state.rows.tobytes() == stub.state(number).rows.tobytes()
            assert [store.ordinal(passage.id) for passage in passages] == ordinals
        pipe.send(generation)
    pipe.recv()


def limited(pipe: Connection, name: str, path: Path, size: int) -> None:
    """Make one of the changes with files of at most so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    CHANGES[name].run(path)
