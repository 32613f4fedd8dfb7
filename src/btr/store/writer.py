"""Build a store: shard by shard in a folder beside the target, which appears when all is whole.

A process that dies at any moment leaves whole, committed shards and leftovers. A resumed build
keeps the former, deletes the latter, and ends in the same bytes as one never interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np

from btr import files
from btr.data.passages import Passage
from btr.errors import CorruptError, IncompatibleError, InputError, UsageError
from btr.store.building import BUILD, COMMITS, Building, Derive
from btr.store.format import (
    MAX_MANIFEST_BYTES,
    BuildPlan,
    Manifest,
    PassageState,
    ShardCommit,
    StoreSpec,
    check_counts,
    decode_commit,
    encode_commit,
    shard_totals,
    spec_difference,
)
from btr.store.ids import build_ids
from btr.store.names import (
    SHARDS,
    ids_name,
    manifest_name,
    rejects_name,
    shard_name,
)
from btr.store.reader import check_files
from btr.store.shard import check_state, record_of
from btr.store.shard_file import ShardFile, write_shard_file

UNBOUND = ("btr", "reader")
"""Settings that may differ where passages are added: what made the states is in the fingerprint."""


class StoreWriter:
    """The one writer of a new store, or of an addition to one; a context manager.

    Make one with :meth:`create`, call :meth:`write_shard` for passages from :attr:`committed` on,
    then :meth:`finish`. After an error, or without ``finish``, what was committed stays for a later
    ``create(..., resume=True)``. An addition is a generation of its own: shards, id table and
    lexical index of the new passages stand beside those of the generations before.

    Attributes:
        base: The generation that is added to; None for a new store.
    """

    def __init__(self, building: Building, spec: StoreSpec) -> None:
        self._building, self._spec = building, spec
        self._root, self.base = building.root, building.base
        self._store_id = (self.base.spec if self.base else spec).store_id
        self._first_shard = self.base.shards[-1].number + 1 if self.base else 0
        self._first_ordinal = self.base.ordinals if self.base else 0
        self._commits: list[ShardCommit] = []  # about 1 KB for each 2048 passages
        self._manifest: Manifest | None = None
        self._published = False

    @classmethod
    def create(
        cls, path: Path | str, spec: StoreSpec, *, resume: bool = False, add: bool = False
    ) -> StoreWriter:
        """Begin a store or an addition, or go on with one that was interrupted.

        Args:
            path: The store's folder. Work is done beside it, in ``<path>.building``.
            spec: What is to be built; for an addition all but its sources is the store's.
            resume: Go on with ``<path>.building`` if there is one.
            add: To a store that is there.

        Raises:
            UsageError: ``path`` exists (or, to be added to, does not), its parent doesn't, or an
                unfinished build is there and ``resume`` was not asked for.
            IncompatibleError: The unfinished build, or the store, has another spec; the field is
                named.
            LockedError: Another process is building the same store.
            CorruptError: The unfinished build's own record of what it is is damaged.
            ResourceError: No space.
        """
        building = Building(path, change=add)
        try:
            writer = cls(building, spec)
            writer._begin(resume)
        except BaseException:
            building.close()
            raise
        return writer

    @property
    def committed(self) -> int:
        """Passages in whole, committed shards of this build."""
        if self._manifest is not None:
            return self._manifest.ordinals - self._first_ordinal
        return sum(commit.passages for commit in self._commits)

    def discard(self) -> None:
        """Remove the unfinished build; for one that has come to nothing."""
        if not self._published:
            self._building.discard()

    def close(self) -> None:
        """Give the lock back."""
        self._building.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- beginning ----------------------------------------------------------------------------

    def _begin(self, resume: bool) -> None:
        target, root = self._building.target, self._root
        if self.base is None and os.path.lexists(target):
            raise UsageError("the target exists", where=str(target),
                             todo="choose another name, or remove it first")  # fmt: skip
        if not os.path.lexists(root):
            files.make_folder(root)
        elif not resume:
            raise UsageError("an unfinished build is here", where=str(root),
                             todo="go on with it by --resume, or remove it")  # fmt: skip
        elif root.is_symlink() or not root.is_dir():
            raise UsageError("not a folder", where=str(root), todo="move it away")
        started = self._load()
        if self._manifest is None:
            self._require_base()
        if not started:
            plan = BuildPlan(self._spec, self._building.generation, self._first_ordinal)
            files.write_file(root / BUILD, plan.encode())
        files.remove_tree(root, self._kept())
        if self._manifest is None:
            for name in (SHARDS, COMMITS):
                files.make_folder(root / name)

    def _require_base(self) -> None:
        """Refuse to add what the store's reader, or these settings, did not make."""
        if self.base is None:
            return
        theirs = self.base.spec
        free = {name: theirs.settings[name] for name in UNBOUND if name in theirs.settings}
        mine = replace(
            self._spec,
            sources_digest=theirs.sources_digest,
            settings={**self._spec.settings, **free},
        )
        found = spec_difference(mine, theirs)
        if found is not None:
            name, ours, stores = found
            raise IncompatibleError(
                f"passages cannot be added with another {name}", where=str(self._building.target),
                expected=stores, found=ours, todo="use the reader and settings of the store",
            )  # fmt: skip

    def _load(self) -> bool:
        """Read what an earlier run left; False if it left nothing, not even its spec."""
        file = self._root / BUILD
        plan = None
        if os.path.lexists(file):
            plan = BuildPlan.decode(files.read_file(file, MAX_MANIFEST_BYTES), file)
            self._require(plan.spec)
            # Where the addition has been published already, the base is the addition itself.
            self._first_ordinal = plan.first
        sealed = self._building.sealed()
        if sealed is not None:
            if self.base is None:
                self._require(sealed.spec)
                for error in check_files(self._root, sealed):
                    raise error
            self._manifest = sealed
            return True
        if plan is None:
            others = {name for name, _ in files.list_tree(self._root)} - {BUILD + files.TEMPORARY}
            if others:
                raise UsageError("this folder is not an unfinished build", where=str(self._root),
                                 found=", ".join(sorted(others)[:3]),
                                 todo="move it away")  # fmt: skip
            return False
        if plan.generation != self._building.generation:
            raise IncompatibleError(
                "the store was changed since this addition was begun", where=str(self._root),
                expected=f"generation {plan.generation - 1}",
                found=str(self._building.generation - 1),
                todo="remove it and add again",
            )  # fmt: skip
        while (commit := self._load_commit(self._first_shard + len(self._commits))) is not None:
            self._commits.append(commit)
            if commit.passages < self._spec.passages_per_shard:
                break
        return True

    def _kept(self) -> frozenset[str]:
        """The files of the building folder that count; all others are leftovers."""
        if self._manifest is not None:
            names = {entry.name for entry in self._manifest.files}
            if self.base is not None:
                names.add(BUILD)
            return frozenset({manifest_name(self._manifest.generation), *names})
        numbers = [commit.shard for commit in self._commits]
        return frozenset({BUILD, *map(shard_name, numbers), *map(commit_name, numbers)})

    def _require(self, spec: StoreSpec) -> None:
        found = spec_difference(self._spec, spec)
        if found is not None:
            name, mine, theirs = found
            raise IncompatibleError(
                f"the unfinished build was begun with another {name}", where=str(self._root),
                expected=mine, found=theirs,
                todo="resume with the same sources, reader and settings, or remove it",
            )  # fmt: skip

    def _load_commit(self, shard: int) -> ShardCommit | None:
        """The commit record of a shard that is whole, or None."""
        file, data = self._root / commit_name(shard), self._root / shard_name(shard)
        try:
            commit = decode_commit(files.read_file(file, MAX_MANIFEST_BYTES), file)
            if commit.store != self._store_id.hex() or commit.shard != shard:
                return None
            if not 1 <= commit.passages <= self._spec.passages_per_shard:
                return None
            header = ShardFile(
                data, self._spec, self._store_id, shard, commit.passages, commit.bytes
            ).header
            if files.digest_file(data, commit.bytes) != commit.sha256:
                return None
        except (CorruptError, IncompatibleError):
            return None  # not whole: built again
        totals = (header.tokens, header.truncated, header.parts)
        return commit if totals == (commit.tokens, commit.truncated, commit.parts) else None

    # -- shards -------------------------------------------------------------------------------

    def write_shard(
        self,
        passages: Sequence[Passage],
        states: Sequence[PassageState | None],
        vectors: np.ndarray,
    ) -> None:
        """Write and commit the next shard. On return it survives anything; before, it never was.

        Args:
            passages: ``passages_per_shard`` of them, or fewer for the last shard; at least one.
            states: One a passage, in the same order; None where none is stored.
            vectors: int8 ``[n, dense_dim]``. No argument is modified.

        Raises:
            UsageError: Wrong lengths, shapes or dtypes, or a shard after the last one.
            InputError: A passage that cannot be stored.
            ResourceError: No space; committed shards are intact and the call may be repeated.
        """
        if self._manifest or self._published or self.committed % self._spec.passages_per_shard:
            raise UsageError("the last shard of this store has been written")
        self._commits.append(
            commit_shard(
                self._root, self._spec, self._store_id, self.next_shard, passages, states, vectors
            )
        )

    @property
    def next_shard(self) -> int:
        """The number of the shard that is written next."""
        return self._first_shard + len(self._commits)

    @property
    def root(self) -> Path:
        """The building folder."""
        return self._root

    @property
    def store_id(self) -> bytes:
        """Of the store that is built or added to."""
        return self._store_id

    def adopt(self) -> bool:
        """Take over the next shard, committed by another process; False if it is not whole."""
        commit = self._load_commit(self.next_shard)
        if commit is not None:
            self._commits.append(commit)
        return commit is not None

    # -- finishing ----------------------------------------------------------------------------

    def finish(
        self,
        counts: Mapping[str, int],
        derive: Derive | None,
        rejects: Path | None,
        *,
        replaced: Sequence[int] = (),
    ) -> Manifest:
        """Index the stored passages, seal the generation and make it the current one.

        May be repeated after an error or a crash; what was sealed already is only published.

        Args:
            counts: What ingestion counted, for the manifest; added to the store's.
            derive: Gets the empty folder of the lexical index, all passages of this build in
                ordinal order (read back and checked), and the first one's ordinal; writes the index
                there.
            rejects: A file to keep with the store as ``rejects.jsonl``.
            replaced: Ordinals of passages that are removed with this addition.

        Returns:
            The manifest of the new generation.

        Raises:
            InputError: There are no passages, or two with the same id.
            UsageError: The target has appeared meanwhile, ``counts`` are not counts, or ``derive``
                wrote what does not belong into a store.
            LockedError: Another process has changed the store, where locks do not work.
            CorruptError: A passage cannot be read back.
            ResourceError: No space; committed shards are intact.
        """
        if self._published:
            raise UsageError("this store is finished", where=str(self._building.target))
        check_counts(counts)
        if self._manifest is None:
            self._manifest = self._seal(counts, derive, rejects, replaced)
        files.remove_tree(self._root, self._kept())
        self._building.publish(self._manifest)
        self._published = True
        if self.base is not None:
            self._building.collect()
        self.close()
        return self._manifest

    def _seal(
        self,
        counts: Mapping[str, int],
        derive: Derive | None,
        rejects: Path | None,
        replaced: Sequence[int],
    ) -> Manifest:
        if not self._commits:
            raise InputError("no passages to store", where=str(self._building.target),
                             todo="check the sources")  # fmt: skip
        files.remove_tree(self._root, self._kept())
        base, generation, commits = self.base, self._building.generation, self._commits
        written = [shard_name(commit.shard) for commit in commits]
        if derive is not None:
            written += self._building.derive(derive, self._stored(), self._first_ordinal)
        ids = (passage.id for passage in self._stored())
        build_ids(self._root / ids_name(generation), ids, first=self._first_ordinal)
        written.append(ids_name(generation))
        if rejects is not None:
            files.copy_file(rejects, self._root / rejects_name(generation))
            written.append(rejects_name(generation))
        manifest = Manifest(
            base.spec if base else self._spec,
            generation,
            removed=0,
            counts=_added(base.counts, counts) if base else dict(counts),
            compression=base.compression if base else {},
            others=(),
            **shard_totals(commits, base),
        )
        removed = np.union1d(self._building.removed(), np.asarray(replaced, np.int64))
        return self._building.seal(
            manifest, written, kept=self._building.lasting_files(), removed=removed
        )

    def _stored(self) -> Iterator[Passage]:
        """All committed passages in ordinal order, read back from the disk."""
        for commit in self._commits:
            shard = ShardFile(
                self._root / shard_name(commit.shard), self._spec, self._store_id, commit.shard,
                commit.passages, commit.bytes,
            )  # fmt: skip
            yield from shard.passages()


def commit_shard(
    root: Path,
    spec: StoreSpec,
    store_id: bytes,
    shard: int,
    passages: Sequence[Passage],
    states: Sequence[PassageState | None],
    vectors: np.ndarray,
) -> ShardCommit:
    """Write a shard and its commit record below a building folder.

    Args:
        root: The folder.
        spec: Of the shard.
        store_id: Of the store.
        shard: The shard's number.
        passages: As for :meth:`StoreWriter.write_shard`, and so are the others and the errors.
        states: One a passage.
        vectors: int8 ``[n, dense_dim]``.

    Returns:
        The commit record.
    """
    n = len(passages)
    if not 1 <= n <= spec.passages_per_shard or len(states) != n:
        raise UsageError("wrong number of passages or states for a shard",
                         expected=f"1 to {spec.passages_per_shard} of each",
                         found=f"{n} passages, {len(states)} states")  # fmt: skip
    if vectors.dtype != np.int8 or vectors.shape != (n, spec.dense_dim):
        raise UsageError("wrong dense vectors", expected=f"int8 [{n}, {spec.dense_dim}]",
                         found=f"{vectors.dtype} {list(vectors.shape)}")  # fmt: skip
    for state in states:
        if state is not None:
            check_state(state, spec.row_bytes)
    commit = write_shard_file(
        root / shard_name(shard), spec, store_id, shard, passages,
        [record_of(state) for state in states], vectors,
    )  # fmt: skip
    files.write_file(root / commit_name(shard), encode_commit(commit))
    return commit


def _added(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    return {name: before.get(name, 0) + now.get(name, 0) for name in sorted({*before, *now})}


def commit_name(shard: int) -> str:
    """The commit record of a shard."""
    return f"{COMMITS}/{shard:08d}.json"
