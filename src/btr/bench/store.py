"""How long a store takes to open, and to give the states of a question's passages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import google_crc32c
import numpy as np

from btr.errors import UsageError
from btr.store.reader import TokenStore

WARM_READS = 20
"""Of the same passages a round: the first ones are slower, as Python learns what it runs often."""


def store_rows(
    path: Path, *, passages: int, rounds: int, progress: Callable[[int], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Time a store on this machine, round by round, on random passages.

    *Warm* reads are of passages that were read just before; before *cold* ones the shards are
    dropped from the page cache, as far as the system does so (a virtual disk may keep its own).

    Args:
        path: The store, on a disk of this machine.
        passages: How many a question reads.
        rounds: Each of other passages.
        progress: Called with the number of rounds done.

    Returns:
        For each step its median milliseconds and their range: ``step``, ``ms``, ``range``.

    Raises:
        UsageError: The store has fewer passages.
    """
    taken: dict[str, list[float]] = {}
    draw = np.random.default_rng(0)
    for number in range(rounds):
        with _timed(taken, "opening"):
            store = TokenStore.open(path)
        with store:
            if len(store) < passages:
                raise UsageError("the store has too few passages", where=str(path),
                                 expected=f"at least {passages}", found=str(len(store)),
                                 todo="give --passages")  # fmt: skip
            chosen = draw.choice(len(store), passages, replace=False).tolist()
            store.held_states(chosen)
            store.passages(chosen)
            for _ in range(WARM_READS):
                with _timed(taken, "states, warm"):
                    store.held_states(chosen)
            bodies = [record.body.tobytes() for record in store.state_records(chosen)]
            with _timed(taken, "their checksums"):
                for body in bodies:
                    google_crc32c.value(body)
            for _ in range(WARM_READS):
                with _timed(taken, "texts, warm"):
                    store.passages(chosen)
            _drop(path, store)
            with _timed(taken, "states, cold"):
                store.held_states(chosen)
        progress(number + 1)
    return [
        {"step": step, "ms": median(ms), "range": [min(ms), max(ms)]} for step, ms in taken.items()
    ]


@contextmanager
def _timed(taken: dict[str, list[float]], step: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    taken.setdefault(step, []).append(1e3 * (time.perf_counter() - began))


def _drop(path: Path, store: TokenStore) -> None:
    """Ask the system to forget the shards' pages."""
    for entry in store.manifest.shards:
        fd = os.open(path / entry.name, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
