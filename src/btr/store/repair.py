"""Make damaged files of a store again, to the byte.

A store is a function of its sources, reader and settings, so what is lost can be made anew; that it
is what was there, its digest in the manifest proves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from btr import files
from btr.data.passages import Passage
from btr.errors import CorruptError, UsageError
from btr.store.building import Building, Derive, changing
from btr.store.format import FileEntry, Manifest, PassageState
from btr.store.ids import build_ids
from btr.store.names import SHARDS, ids_name, lexical_name
from btr.store.shard import record_of
from btr.store.shard_file import ShardFile, write_shard_file

Shard = tuple[int, Sequence[Passage], Sequence[PassageState | None], np.ndarray]
"""A shard's number, and what it holds as :meth:`StoreWriter.write_shard` takes it."""


def repair(
    path: Path | str, remake: Callable[[Manifest, list[int]], Iterator[Shard]], derive: Derive
) -> list[str]:
    """Put files that came out as they were in the place of damaged or missing ones.

    Each is put there when its digest is that of the manifest, so a repair that ends early has
    mended a part, and can be run again.

    Args:
        path: The store; its manifest is sound.
        remake: Given the manifest and numbers of shards, makes these again, in their order.
        derive: As for ``StoreWriter.finish``.

    Returns:
        Names of the mended files; none where all was sound.

    Raises:
        UsageError: The store has been changed since it was built.
        CorruptError: The manifest is damaged, or a file can't be made again as it was.
        LockedError: Another process is changing the store.
        ResourceError: No space.
    """
    with changing(path) as building:
        base = building.base
        assert base is not None  # noqa: S101 -- for the type checker: it is a change
        wrong = {entry.name: entry for entry in base.files if not _sound(building.target, entry)}
        if not wrong:
            return []
        if base.generation:
            raise UsageError("a store that was changed cannot be made again from its sources",
                             where=", ".join(wrong), found=f"generation {base.generation}",
                             todo="restore it from a copy, or build it again")  # fmt: skip
        damaged = list(wrong)
        building.start_over()
        try:
            files.make_folder(building.root / SHARDS)
            _repair_shards(building, base, wrong, remake)
            _repair_indexes(building, base, wrong, derive)
        finally:
            # Of no use to anyone else: what came out right is in its place.
            building.discard()
        if wrong:
            raise CorruptError("files that nothing here can make again", where=", ".join(wrong),
                               todo="restore them from a copy, or build the store again",
                               )  # fmt: skip
        return damaged


def _sound(target: Path, entry: FileEntry) -> bool:
    try:
        return files.digest_file(target / entry.name, entry.bytes) == entry.sha256
    except CorruptError:
        return False


def _repair_shards(
    building: Building,
    base: Manifest,
    wrong: dict[str, FileEntry],
    remake: Callable[[Manifest, list[int]], Iterator[Shard]],
) -> None:
    """Put back the shards among wrong files, and take them out of these."""
    numbers = [shard.number for shard in base.shards if shard.name in wrong]
    if not numbers:
        return
    names = {shard.number: shard.name for shard in base.shards}
    for number, passages, states, vectors in remake(base, numbers):
        write_shard_file(
            building.root / names[number], base.spec, base.spec.store_id, number, passages,
            [record_of(state) for state in states], vectors,
        )  # fmt: skip
        building.put_back(wrong.pop(names[number]))


def _repair_indexes(
    building: Building, base: Manifest, wrong: dict[str, FileEntry], derive: Derive
) -> None:
    """The same for the id table and the lexical index."""
    name = ids_name(0)
    if name in wrong:
        ids = (passage.id for passage in _passages(building, base))
        build_ids(building.root / name, ids)
        building.put_back(wrong.pop(name))
    lexical = [name for name in wrong if name.startswith(f"{lexical_name(0)}/")]
    if lexical:
        building.derive(derive, _passages(building, base), 0, generation=0)
        for name in lexical:
            building.put_back(wrong.pop(name))


def _passages(building: Building, base: Manifest) -> Iterator[Passage]:
    """All of the store, its shards mended."""
    for entry in base.shards:
        shard = ShardFile(
            building.target / entry.name, base.spec, base.spec.store_id, entry.number,
            entry.passages, entry.bytes,
        )  # fmt: skip
        yield from shard.passages()
