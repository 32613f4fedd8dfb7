"""Processes that change one store at the same time, and processes that read it meanwhile."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import stub_store as stub
from stub_changes import add, contents
from stub_processes import RACERS, build, race, read

from btr.errors import LockedError, UsageError
from btr.store import TokenStore, verify
from btr.store.change import compact, remove_passages
from forks import Worker, ended


def test_of_two_builds_exactly_one_is_made(
    memory_folder: Path, effort: Callable[[str, int, int], int]
) -> None:
    stub.build(memory_folder / "whole", 60)
    locked = 0
    for i in range(effort("races of two processes that build a store", 5, 100)):
        path = memory_folder / str(i) / "store"
        path.parent.mkdir()
        results = ended(*(Worker(build, path, 60, 2) for _ in range(2)))
        errors = [result for result in results if result is not None]
        # Whoever comes when the other one is done finds the store.
        assert len(errors) == 1
        assert isinstance(errors[0], (LockedError, UsageError)), errors
        locked += isinstance(errors[0], LockedError)
        assert stub.tree(path) == stub.tree(memory_folder / "whole")
        shutil.rmtree(path.parent)
    assert locked


def test_of_two_changes_at_once_each_is_made_or_refused(
    memory_folder: Path, effort: Callable[[str, int, int], int]
) -> None:
    base, reference = memory_folder / "base", memory_folder / "reference"
    stub.build(base, 5)
    draw, refused = random.Random(21), 0
    for _ in range(effort("races of two processes that change a store", 10, 100)):
        path = memory_folder / "race" / "store"
        stub.copy_tree(base, path)
        pair = draw.sample(list(RACERS), 2)
        results = ended(*(Worker(race, name, path, draw.random()) for name in pair))
        made = [result for result in results if isinstance(result, str)]
        errors = [result for result in results if not isinstance(result, str)]
        assert made
        assert all(isinstance(error, LockedError) for error in errors), errors
        refused += len(errors)
        # Two are made where one begins when the other is done.
        orders = []
        for order in permutations(made):
            stub.copy_tree(base, reference)
            for name in order:
                RACERS[name](reference)
            orders.append(contents(reference))
            shutil.rmtree(reference)
        assert contents(path) in orders
        assert verify(path).ok
        assert not list(path.parent.glob("store.*"))
        shutil.rmtree(path.parent)
    assert refused


def schedule(commits: int) -> list[tuple[str, list[int]]]:
    """Commits of all kinds, and the passages that the store has after each; it begins with five."""
    live, newest, steps = list(range(5)), 4, []
    for i in range(commits):
        kind = ("add", "remove", "add", "remove", "compact")[i % 5]
        if kind == "add":
            newest += 1
            live = [*live, newest]
        elif kind == "remove":
            live = [*live[:-2], live[-1]]
        steps.append((kind, live))
    return steps


def test_readers_see_one_whole_generation_whatever_is_committed(
    memory_folder: Path, effort: Callable[[str, int, int], int]
) -> None:
    commits = effort("commits under four reading processes", 20, 50)
    reads = effort("reads of the whole store by each of them, at least", 60, 2000)
    path = memory_folder / "store"
    stub.build(path, 5)
    steps = schedule(commits)
    live = {0: list(range(5))} | {i + 1: numbers for i, (_, numbers) in enumerate(steps)}
    readers = [Worker(read, path, live) for _ in range(4)]
    for reader in readers:
        reader.go()
    seen = set[int]()
    for i, (kind, numbers) in enumerate(steps):
        for reader in readers:  # they go on while the next commit is made
            seen.update(reader.told() for _ in range(-(-reads // commits)))
        if kind == "add":
            add(path, numbers[-1], 1)
        elif kind == "remove":
            with TokenStore.open(path) as store:
                gone = store.ordinal(stub.passage(live[i][-2]).id)
            remove_passages(path, [gone])
        else:
            compact(path, stub.derive)
        with TokenStore.open(path) as store:
            assert store.manifest.generation == i + 1
    for reader in readers:
        reader.go()
        while (told := reader.told()) is not None:
            seen.add(told)
        reader.close()
    assert len(seen) > commits / 2
    remove_passages(path, [1])  # collects what the readers have left
    with TokenStore.open(path) as store:
        names = {entry.name for entry in store.manifest.files}
        generation = store.manifest.generation
    assert set(stub.tree(path)) == names | {f"manifests/{generation:08d}.json"}
