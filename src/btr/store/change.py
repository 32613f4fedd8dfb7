"""Change a finished store: remove passages, and rewrite it without what was removed.

Adding is building: see ``StoreWriter.create(..., add=True)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np

from btr import files
from btr.data.passages import Passage
from btr.errors import UsageError
from btr.store.building import Building, Derive, changing
from btr.store.coding import Coder
from btr.store.format import Manifest, ShardCommit, shard_totals
from btr.store.ids import build_ids
from btr.store.names import SHARDS, ids_name, shard_name
from btr.store.reader import TokenStore
from btr.store.shard_file import write_shard_file


def remove_passages(
    path: Path | str, which: Iterable[int] | Callable[[TokenStore], Iterable[int]]
) -> Manifest:
    """Commit a generation in which passages count no more.

    Their bytes stay until :func:`compact`.

    Args:
        path: The store.
        which: Ordinals, or what finds them in the store, which nobody else changes meanwhile: a
            passage may have another ordinal in the next generation. Those that are removed already
            are no error.

    Returns:
        The manifest of the new generation, or of the current one if nothing changes.

    Raises:
        UsageError: An ordinal is out of range, all passages would go, or an addition is unfinished.
        LockedError: Another process is changing the store.
        ResourceError: No space; the store is as it was.
        InputError, CorruptError: As raised by ``which``.
    """
    with changing(path) as building:
        base = _base(building)
        old = building.removed()
        if callable(which):
            with TokenStore.open(building.target) as store:
                ordinals = which(store)
        else:
            ordinals = which
        gone = np.union1d(old, np.asarray(sorted(ordinals), np.int64))
        if len(gone) == len(old):
            building.collect()
            return base
        if gone[0] < 0 or gone[-1] >= base.ordinals:
            raise UsageError("no such passage", where=str(path),
                             expected=f"an ordinal from 0 to {base.ordinals - 1}",
                             found=str(gone[0] if gone[0] < 0 else gone[-1]))  # fmt: skip
        if len(gone) == base.ordinals:
            raise UsageError("a store cannot lose all its passages", where=str(path),
                             todo="remove the folder")  # fmt: skip
        building.start_over()
        manifest = replace(base, generation=building.generation)
        manifest = building.seal(manifest, [], kept=building.lasting_files(), removed=gone)
        building.publish(manifest)
        building.collect()
        return manifest


def compact(
    path: Path | str,
    derive: Derive | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Rewrite a store without its removed passages, with one id table and one lexical index.

    States are copied, not made again: every question gets the answer that a store built from these
    passages alone would give.

    Args:
        path: The store.
        derive: As for ``StoreWriter.finish``; None in a store without retrieval.
        progress: Called with (passages written, passages in all).

    Returns:
        The manifest of the new generation, or of the current one if there is nothing to do.

    Raises:
        UsageError: An addition is unfinished.
        LockedError: Another process is changing the store.
        CorruptError: A record is damaged; the store is as it was.
        ResourceError: No space; the store is as it was.
    """
    with changing(path) as building:
        base = _base(building)
        full = [shard.passages for shard in base.shards[:-1]]
        if not base.removed and len(base.id_tables) == 1 and set(full) <= {
            base.spec.passages_per_shard
        }:  # fmt: skip
            building.collect()
            return base
        building.start_over()
        with TokenStore.open(building.target) as store:
            manifest = _rewrite(building, store, derive, progress)
        building.publish(manifest)
        building.collect()
        return manifest


def _rewrite(
    building: Building,
    store: TokenStore,
    derive: Derive | None,
    progress: Callable[[int, int], None],
) -> Manifest:
    base, root, generation = _base(building), building.root, building.generation
    spec, store_id = base.spec, base.spec.store_id
    files.make_folder(root / SHARDS)
    kept = (ordinal for ordinal in range(base.ordinals) if not store.is_removed(ordinal))
    commits: list[ShardCommit] = []
    coder = None if store.coding is None else Coder(store.coding)
    spent: Counter[str] = Counter()
    done = 0
    for number in count(base.shards[-1].number + 1):
        group = list(islice(kept, spec.passages_per_shard))
        if not group:
            break
        records = store.state_records(group)
        commits.append(
            write_shard_file(
                root / shard_name(number), spec, store_id, number, store.passages(group), records,
                store.vectors_of(group),
            )
        )  # fmt: skip
        if coder is not None:
            spent.update(coder.spent(records))
        done += len(group)
        progress(done, base.passages)
    written = [shard_name(commit.shard) for commit in commits]
    ids = (passage.id for passage in _live(store))
    build_ids(root / ids_name(generation), ids)
    written.append(ids_name(generation))
    if derive is not None and base.lexical_folders:
        written += building.derive(derive, _live(store), 0)
    dropped = ("ids", "removed", "retrieval")
    manifest = replace(
        base, generation=generation, compression={**base.compression, **spent},
        **shard_totals(commits),
    )  # fmt: skip
    others = [entry for entry in base.others if not entry.name.startswith(dropped)]
    return building.seal(manifest, written, kept=others)


def _base(building: Building) -> Manifest:
    assert building.base is not None  # noqa: S101 -- for the type checker: it is a change
    return building.base


def _live(store: TokenStore) -> Iterator[Passage]:
    for ordinal, passage in enumerate(store.iter_passages()):
        if not store.is_removed(ordinal):
            yield passage
