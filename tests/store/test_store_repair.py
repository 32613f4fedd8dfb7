"""Repairs that die or find no space: nothing gets worse, and another one ends them."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stub_store as stub

from btr.errors import ResourceError
from btr.store import Manifest
from btr.store.repair import Shard, repair


def remake(manifest: Manifest, numbers: list[int]) -> Iterator[Shard]:
    size = manifest.spec.passages_per_shard
    for number in numbers:
        last = min(manifest.ordinals, (number + 1) * size)
        mine = range(number * size, last)
        yield (
            number, [stub.passage(i) for i in mine], [stub.state(i) for i in mine],
            stub.vectors(mine.start, mine.stop),
        )  # fmt: skip


def broken(path: Path) -> Path:
    """A store with a file missing, one cut off, one changed and one emptied."""
    stub.build(path, 5, rejects=False)
    (path / "shards/00000000.btr").unlink()
    cut, changed = path / "shards/00000002.btr", bytearray((path / "ids.sqlite").read_bytes())
    cut.write_bytes(cut.read_bytes()[:-9])
    changed[200] ^= 1
    (path / "ids.sqlite").write_bytes(changed)
    (path / "retrieval/lexical/index.bin").write_bytes(b"")
    return path


@pytest.fixture
def sound(tmp_path: Path) -> dict[str, bytes]:
    stub.build(tmp_path / "sound", 5, rejects=False)
    return stub.tree(tmp_path / "sound")


def test_a_crash_at_any_operation_of_a_repair(
    tmp_path: Path, figure: Callable[[str, int], None], sound: dict[str, bytes]
) -> None:
    at, ended = 0, False
    while not ended:
        path = broken(tmp_path / str(at))
        with stub.operations(stub.CrashingFiles(at)), contextlib.suppress(stub.Crash):
            ended = len(repair(path, remake, stub.derive)) == 4
        # What is there is as it was built or as it was broken.
        assert {name for name, data in stub.tree(path).items() if data == sound[name]} >= {
            "manifest.json", "shards/00000001.btr",
        }  # fmt: skip
        repair(path, remake, stub.derive)
        assert stub.tree(path) == sound
        at += 1
    assert at > 15
    figure("operations of repair: a crash at each", at)


def test_no_space_for_a_repair(tmp_path: Path, sound: dict[str, bytes]) -> None:
    at, failed = 0, ["something"]
    while failed:
        path = broken(tmp_path / str(at))
        fake, failed = stub.failing(at, errno.ENOSPC)
        with stub.operations(fake):
            try:
                repair(path, remake, stub.derive)
            except ResourceError:
                assert failed
        repair(path, remake, stub.derive)
        assert stub.tree(path) == sound
        at += 1
    assert at > 8
