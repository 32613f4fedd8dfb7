"""What processes do to a store, to be killed and raced (``forks.py``)."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import stub_store as stub
from stub_changes import CHANGES, add

from btr.store import StoreWriter, TokenStore
from btr.store.building import changing
from btr.store.change import remove_passages


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
