"""A process that is killed loses nothing, doubles nothing, and leaves no lock behind."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import stub_store as stub
from stub_changes import CHANGES, contents, has_ended_well
from stub_processes import build, change, hold

from btr import files
from btr.errors import LockedError
from btr.store import StoreWriter, verify
from btr.store.building import Building
from forks import Worker, duration, killed

N, SIZE = 150, 5


@pytest.mark.parametrize(
    ("what", "times", "gate", "release"),
    [
        ("kill -9 of a build, which is then gone on with", 1, 20, 200),
        ("kill -9 of a build, and again while it is gone on with", 2, 10, 100),
    ],
)
def test_a_killed_build_is_gone_on_with_to_the_same_bytes(
    memory_folder: Path, effort: Callable[[str, int, int], int],
    what: str, times: int, gate: int, release: int,
) -> None:  # fmt: skip
    reference = memory_folder / "reference" / "store"
    reference.parent.mkdir()
    seconds = duration(build, reference, N, SIZE)
    expected = stub.tree(reference)
    assert verify(reference).ok
    draw, done, wanted = random.Random(what), 0, effort(what, gate, release)
    while done < wanted:
        folder = memory_folder / "killed"
        folder.mkdir()
        stub.reject(folder / "rejects.jsonl")  # the list is ingestion's, and not what is killed
        path = folder / "store"
        hits = 0
        while hits < times and not path.exists():
            hits += killed(draw.uniform(0, seconds), build, path, N, SIZE)
        if not path.exists():
            stub.build(path, N, of=stub.spec(passages_per_shard=SIZE), resume=True)
        assert stub.tree(path) == expected
        left = {name for name, _ in files.list_tree(folder) if not name.startswith("store/")}
        assert left <= {"store", "rejects.jsonl", "store.lock"}
        done += hits == times
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "build"])
def test_a_killed_change_leaves_the_old_or_the_new(
    memory_folder: Path, effort: Callable[[str, int, int], int], name: str
) -> None:
    prepared, reference = memory_folder / "prepared", memory_folder / "reference"
    prepared.mkdir()
    CHANGES[name].prepare(prepared / "store")
    stub.copy_tree(prepared, reference)
    seconds = duration(change, name, reference / "store")
    new = contents(reference / "store")
    draw, done, wanted = random.Random(name), 0, effort(f"kill -9 of {name}", 6, 50)
    while done < wanted:
        folder = memory_folder / "killed"
        stub.copy_tree(prepared, folder)
        done += killed(draw.uniform(0, seconds), change, name, folder / "store")
        has_ended_well(folder / "store", name, new)
        shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["build", "change"])
def test_a_lock_ends_with_the_process_that_held_it(
    memory_folder: Path, effort: Callable[[str, int, int], int], what: str
) -> None:
    path = memory_folder / "store"
    if what == "change":
        stub.build(path)
    for _ in range(effort(f"kill -9 of who holds the lock for a {what}", 4, 50)):
        worker = Worker(hold, path, what == "build")
        worker.go()
        assert worker.told() == "holding"
        with pytest.raises(LockedError, match=f"pid {worker.pid} on"):
            Building(path, change=what == "change")
        assert worker.kill()
        Building(path, change=what == "change").close()
    if what == "build":
        with StoreWriter.create(path, stub.SPEC, resume=True) as writer:
            assert writer.committed == 2
