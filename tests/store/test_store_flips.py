"""Every byte of a store changed, and records moved: an error or the answer as it was, always."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import stub_store as stub
from stub_changes import COMPRESSIONS, add, squeeze

from btr.errors import CorruptError, IncompatibleError
from btr.store import TokenStore, verify
from btr.store.change import compact, remove_passages

KINDS = {"as it is built": None, **COMPRESSIONS}
SIZE = 5
SPEC = stub.spec(passages_per_shard=SIZE, dim=32)


def stored(path: Path, n: int, kind: str, **changes: object) -> Path:
    """A store of ``n`` passages, compressed or not."""
    stub.build(path, n, of=stub.spec(**{**SPEC.as_dict(), **changes}))
    how = KINDS[kind]
    if how is not None:
        squeeze(path, how)
    return path


def states_of(store: TokenStore, ordinals: Sequence[int]) -> list[tuple[bytes, int, bool]]:
    return [(s.rows.tobytes(), s.text_start, s.truncated) for s in store.states(ordinals)]


def vectors_of(store: TokenStore, ordinals: Sequence[int]) -> bytes:
    return store.vectors_of(ordinals).tobytes()


READS: tuple[Callable[[TokenStore, Sequence[int]], object], ...] = (
    TokenStore.passages, states_of, vectors_of,
)  # fmt: skip


class Flips:
    """Bytes of one file changed where it is, one by one.

    Args:
        file: The file.
        draw: What a byte becomes.
    """

    def __init__(self, file: Path, draw: random.Random) -> None:
        self.data, self._draw = file.read_bytes(), draw
        self._fd = os.open(file, os.O_WRONLY)

    def each(self, check: Callable[[int], None], every: int = 1) -> int:
        """Change every byte, or one in so many, check, and change it back; how many there are."""
        for at in range(0, len(self.data), every):
            byte = self.data[at]
            os.pwrite(self._fd, bytes([byte ^ self._draw.randrange(1, 256)]), at)
            check(at)
            os.pwrite(self._fd, bytes([byte]), at)
        os.close(self._fd)
        return len(self.data)


@pytest.mark.parametrize(
    ("kind", "gate"),
    [("as it is built", 64), ("compress", 8), ("compress --lossless", 8), ("compress --paper", 8)],
)
def test_every_changed_byte_is_an_error_when_it_is_read(
    memory_folder: Path, torture: bool, effort: Callable[[str, int, int], int], kind: str, gate: int
) -> None:
    size = 1024 * effort(f"KiB of a store, {kind}: each byte changed, and read", gate, 256)
    path = stored(memory_folder / "store", size // 175, kind)
    draw = random.Random(kind)
    with TokenStore.open(path) as store:
        n, manifest = len(store), store.manifest
        clean = [[read(store, range(i, min(n, i + SIZE))) for read in READS]
                 for i in range(0, n, SIZE)]  # fmt: skip
        everything = states_of(store, range(n))
        tried = 0
        for i, entry in enumerate(manifest.shards):
            ordinals = range(SIZE * i, min(n, SIZE * (i + 1)))

            def refused(
                at: int, name: str = entry.name, i: int = i, ordinals: range = ordinals
            ) -> None:
                store.close()
                errors = []
                for read, wanted in zip(READS, clean[i], strict=True):
                    try:
                        got = read(store, ordinals)
                    except (CorruptError, IncompatibleError) as error:
                        errors.append(error)
                        # What else is read of this shard is looked at now and then.
                        if at % (4 if torture else 16):
                            break
                    else:
                        assert got == wanted, f"{name} byte {at}"
                assert errors, f"{name} byte {at}"
                assert all(name in error.where for error in errors)

            tried += Flips(path / entry.name, draw).each(refused)
    unread = 0

    def refused_or_unread(at: int) -> None:
        nonlocal unread
        try:
            with TokenStore.open(path) as store:
                got = states_of(store, range(n))
        except (CorruptError, IncompatibleError):
            return
        # A merged vector that no passage refers to is not read, but it is verified.
        assert got == everything
        assert not verify(path).ok
        unread += 1

    names = [entry.name for entry in manifest.files if entry.name.startswith("coding")]
    assert len(names) == (kind != "as it is built")
    for name in [*names, *(name for name in stub.tree(path) if "manifest" in name)]:
        tried += Flips(path / name, draw).each(refused_or_unread)
    assert tried >= size
    assert unread < tried / 100
    assert verify(path).ok


def test_changed_bytes_of_every_file_are_found_by_verify(
    memory_folder: Path, torture: bool, effort: Callable[[str, int, int], int]
) -> None:
    n = effort("passages of a store: each byte of its files changed, and verified", 3, 200)
    path, draw = memory_folder / "store", random.Random(5)
    stub.build(path, n, of=stub.spec(passages_per_shard=2 if n == 3 else 50))
    for name in stub.tree(path):

        def found(at: int, name: str = name) -> None:
            damage = verify(path).damage
            assert any(name in error.where for error in damage if isinstance(error, CorruptError))

        Flips(path / name, draw).each(found, 1 if torture else 3)
    assert verify(path).ok


# -- records that are moved ---------------------------------------------------------------------


class Record(NamedTuple):
    """Where a record is, and what it is read by."""

    file: Path
    section: str
    ordinal: int
    first: int
    data: bytes


def records(path: Path) -> list[Record]:
    """All records of a store's shards."""
    found = []
    with TokenStore.open(path) as store:
        manifest = store.manifest
    ordinal = 0
    for shard in manifest.shards:
        data = (path / shard.name).read_bytes()
        sizes = [struct.unpack_from("<Q", data, 72 + 16 * i)[0] for i in range(5)]
        table = 256
        for section, base in (("state", sum(sizes[:4])), ("passage", sum(sizes[:3]))):
            offsets = struct.unpack_from(f"<{shard.passages + 1}Q", data, table)
            for i, (a, b) in enumerate(pairwise(offsets)):
                first = 256 + base + a
                found.append(Record(path / shard.name, section, ordinal + i, first,
                                    data[first : 256 + base + b]))  # fmt: skip
            table += sizes[0]
        ordinal += shard.passages
    return found


def write(record: Record, data: bytes) -> None:
    with record.file.open("r+b") as file:
        file.seek(record.first)
        file.write(data)


@pytest.mark.parametrize("kind", KINDS)
def test_records_in_the_place_of_others_are_found(
    memory_folder: Path, effort: Callable[[str, int, int], int], kind: str
) -> None:
    """Records of this store, of another one, and of this one's last generation."""
    n, draw = 60, random.Random(kind)
    path, other = memory_folder / "store", memory_folder / "other"
    stored(path, n, kind)
    stored(other, n, kind, sources_digest="others")
    old = records(path)
    remove_passages(path, [0])
    compact(path, stub.derive)
    pools: list[dict[tuple[str, int], list[Record]]] = []
    for given in (records(path), records(other), old):
        pools.append({})
        for record in given:
            pools[-1].setdefault((record.section, len(record.data)), []).append(record)
    mine = [record for group in pools[0].values() for record in group if len(group) > 1]
    store = TokenStore.open(path)

    def refused(record: Record) -> None:
        read = store.states if record.section == "state" else store.passages
        with pytest.raises(CorruptError, match=f"damaged {record.section} record") as caught:
            read([record.ordinal])
        assert f"{record.file}, passage {record.ordinal % SIZE} of" in caught.value.where

    tried = [0, 0, 0]
    for _ in range(effort(f"records in the place of others, {kind}", 400, 10_000)):
        record = draw.choice(mine)
        which = draw.choice([0, 0, 1, 2])
        group = pools[which].get((record.section, len(record.data)))
        if group is None:
            which, group = 0, pools[0][record.section, len(record.data)]
        another = draw.choice(group)
        while which == 0 and another == record:
            another = draw.choice(group)
        assert another.data != record.data
        write(record, another.data)
        if which == 0:  # they change places
            write(another, record.data)
            refused(another)
        refused(record)
        tried[which] += 1
        write(record, record.data)
        if which == 0:
            write(another, another.data)
    assert min(tried) > 0
    assert verify(path).ok


def test_a_shard_of_the_same_number_is_found_by_verify(memory_folder: Path) -> None:
    """The same store, changed in two ways from a copy: seeds and sizes are equal."""
    one, two = memory_folder / "one", memory_folder / "two"
    stub.build(one, 4)
    stub.copy_tree(one, two)
    add(one, 4, 2)
    add(two, 7, 2)
    name = "shards/00000002.btr"
    data = (two / name).read_bytes()
    assert len(data) == (one / name).stat().st_size
    assert data != (one / name).read_bytes()
    (one / name).write_bytes(data)
    report = verify(one)
    assert sum(name in error.where for error in report.damage) == 1
