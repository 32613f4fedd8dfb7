"""After a power loss a store is what it was, or what it was to become, and the work can go on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import stub_store as stub
from power_loss import PowerLoss
from stub_changes import CHANGES, Change, contents, expected

from btr.errors import UsageError
from btr.store import verify


@pytest.mark.parametrize("name", CHANGES)
def test_after_a_power_loss_a_store_is_the_old_or_the_new(
    memory_folder: Path, name: str, effort: Callable[[str, int, int], int]
) -> None:
    change = CHANGES[name]
    states = effort(f"power-loss states, {name}", 60, 500)
    draw = random.Random(name)
    made: list[Path] = []
    room = memory_folder / "room"
    room.mkdir()
    change.prepare(room / "store")
    operations = count(room, memory_folder / "counted", change)
    wanted = [draw.randrange(operations + 1) for _ in range(states)]
    seen = 0

    def before(disk: PowerLoss) -> None:
        nonlocal seen
        for _ in range(wanted.count(seen)):
            made.append(memory_folder / f"state-{len(made)}")
            disk.after_crash(made[-1], draw)
        seen += 1

    disk = PowerLoss(room, before)
    with stub.operations(disk):
        change.run(room / "store")
    old, new = expected(*change.before), contents(memory_folder / "counted" / "store")
    assert contents(room / "store") == new
    before(disk)  # the power fails right after the command said that it was done
    assert len(made) == states
    for i, state in enumerate(made):
        store = state / "store"
        try:
            found = contents(store)
        except UsageError:
            found = []
            assert not old, f"state {i}: there is no store any more"
        assert found in (old, new), f"state {i}"
        if found:
            assert verify(store).ok, f"state {i}"
        # A compressed store is compressed again to the same.
        if found != new or (state / "store.building" / "build.json").exists():
            change.again(store)
        assert contents(store) == new, f"state {i}, gone on with"
        assert verify(store).ok


def count(room: Path, copy: Path, change: Change) -> int:
    """Operations of a change, tried on a copy."""
    number = 0

    def before(disk: PowerLoss) -> None:
        nonlocal number
        number += 1

    stub.copy_tree(room, copy)
    with stub.operations(PowerLoss(copy, before)):
        change.run(copy / "store")
    return number
