"""Build a store: shard by shard in a folder beside the target, which appears when all is whole.

A process that dies at any moment leaves whole, committed shards and leftovers. A resumed build
keeps the former, deletes the latter, and ends in the same bytes as one never interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from btr import files
from btr.data.passages import Passage
from btr.errors import CorruptError, IncompatibleError, InputError, UsageError
from btr.store.format import (
    IDS,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    PARTS,
    REJECTS,
    RETRIEVAL,
    SHARDS,
    FileEntry,
    Manifest,
    PassageState,
    ShardCommit,
    StoreSpec,
    check_counts,
    decode_commit,
    decode_spec,
    encode_commit,
    encode_spec,
    shard_name,
    spec_difference,
)
from btr.store.ids import build_ids
from btr.store.reader import check_files
from btr.store.shard import check_state
from btr.store.shard_file import ShardFile, write_shard_file

BUILDING = ".building"  # ends the name of the folder where a store is built
LOCK = ".lock"
BUILD = "build.json"
COMMITS = "commits"

Derive = Callable[[Path, Iterator[Passage]], None]


class StoreWriter:
    """The one writer of an unfinished store; a context manager that holds its lock.

    Make one with :meth:`create`, call :meth:`write_shard` for passages from :attr:`committed` on,
    then :meth:`finish`. After an error, or without ``finish``, what was committed stays for a later
    ``create(..., resume=True)``.
    """

    def __init__(self, target: Path, spec: StoreSpec, lock: files.FileLock) -> None:
        self._target, self._spec, self._lock = target, spec, lock
        self._store_id = spec.store_id
        self._root = _beside(target, BUILDING)
        self._commits: list[ShardCommit] = []  # about 1 KB for each 2048 passages
        self._manifest: Manifest | None = None
        self._published = False

    @classmethod
    def create(cls, path: Path | str, spec: StoreSpec, *, resume: bool = False) -> StoreWriter:
        """Begin a store, or go on with one that was interrupted.

        Args:
            path: The store's folder. Work is done beside it, in ``<path>.building``.
            spec: What is to be built.
            resume: Go on with ``<path>.building`` if there is one.

        Raises:
            UsageError: ``path`` exists, its parent doesn't, or an unfinished build is there and
                ``resume`` was not asked for.
            IncompatibleError: The unfinished build has another spec; the field is named.
            LockedError: Another process is building the same store.
            CorruptError: The unfinished build's own record of what it is is damaged.
            ResourceError: No space.
        """
        # Not Path.resolve(): the target may be named through a link, but is not one itself.
        target = Path(os.path.abspath(path))
        if not target.name or "\0" in str(target):
            raise UsageError("not a name for a store", where=repr(str(path)))
        with files.explaining(target):
            parent_exists = target.parent.is_dir()
        if not parent_exists:
            raise UsageError("the folder for the store does not exist", where=str(target.parent),
                             todo="make it first")  # fmt: skip
        lock = files.FileLock(_beside(target, LOCK))
        try:
            writer = cls(target, spec, lock)
            writer._begin(resume)
        except BaseException:
            lock.release()
            raise
        return writer

    @property
    def committed(self) -> int:
        """Passages in whole, committed shards."""
        if self._manifest is not None:
            return self._manifest.passages
        return sum(commit.passages for commit in self._commits)

    def discard(self) -> None:
        """Remove the unfinished build; for one that has come to nothing."""
        if not self._published:
            files.remove_tree(self._root)
            with files.explaining(self._root):
                files.ops.rmdir(self._root)

    def close(self) -> None:
        """Give the lock back."""
        self._lock.release()

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
        if os.path.lexists(self._target):
            raise UsageError("the target exists", where=str(self._target),
                             todo="choose another name, or remove it first")  # fmt: skip
        if not os.path.lexists(self._root):
            files.make_folder(self._root)
        elif not resume:
            raise UsageError("an unfinished build is here", where=str(self._root),
                             todo="go on with it by --resume, or remove it")  # fmt: skip
        elif self._root.is_symlink() or not self._root.is_dir():
            raise UsageError("not a folder", where=str(self._root), todo="move it away")
        started = self._load()
        if not started:
            files.write_file(self._root / BUILD, encode_spec(self._spec))
        files.remove_tree(self._root, self._kept())
        if self._manifest is None:
            for name in (SHARDS, COMMITS):
                files.make_folder(self._root / name)

    def _load(self) -> bool:
        """Read what an earlier run left; False if it left nothing, not even its spec."""
        if os.path.lexists(self._root / MANIFEST):
            file = self._root / MANIFEST
            manifest = Manifest.decode(files.read_file(file, MAX_MANIFEST_BYTES), file)
            self._require(manifest.spec)
            for error in check_files(self._root, manifest):
                raise error
            self._manifest = manifest
            return True
        file = self._root / BUILD
        if not os.path.lexists(file):
            others = {name for name, _ in files.list_tree(self._root)} - {BUILD + files.TEMPORARY}
            if others:
                raise UsageError("this folder is not an unfinished build", where=str(self._root),
                                 found=", ".join(sorted(others)[:3]),
                                 todo="move it away")  # fmt: skip
            return False
        self._require(decode_spec(files.read_file(file, MAX_MANIFEST_BYTES), file))
        while (commit := self._load_commit(len(self._commits))) is not None:
            self._commits.append(commit)
            if commit.passages < self._spec.passages_per_shard:
                break
        return True

    def _kept(self) -> frozenset[str]:
        """The files of the building folder that count; all others are leftovers."""
        if self._manifest is not None:
            return frozenset({MANIFEST, *(entry.name for entry in self._manifest.files)})
        numbers = [commit.shard for commit in self._commits]
        return frozenset({BUILD, *map(shard_name, numbers), *map(_commit_name, numbers)})

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
        file, data = self._root / _commit_name(shard), self._root / shard_name(shard)
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
        states: Sequence[PassageState],
        vectors: np.ndarray,
    ) -> None:
        """Write and commit the next shard. On return it survives anything; before, it never was.

        Args:
            passages: ``passages_per_shard`` of them, or fewer for the last shard; at least one.
            states: One a passage, in the same order.
            vectors: int8 ``[n, dense_dim]``. No argument is modified.

        Raises:
            UsageError: Wrong lengths, shapes or dtypes, or a shard after the last one.
            InputError: A passage that cannot be stored.
            ResourceError: No space; committed shards are intact and the call may be repeated.
        """
        n, spec = len(passages), self._spec
        if self._manifest or self._published or self.committed % spec.passages_per_shard:
            raise UsageError("the last shard of this store has been written")
        if not 1 <= n <= spec.passages_per_shard or len(states) != n:
            raise UsageError("wrong number of passages or states for a shard",
                             expected=f"1 to {spec.passages_per_shard} of each",
                             found=f"{n} passages, {len(states)} states")  # fmt: skip
        if vectors.dtype != np.int8 or vectors.shape != (n, spec.dense_dim):
            raise UsageError("wrong dense vectors", expected=f"int8 [{n}, {spec.dense_dim}]",
                             found=f"{vectors.dtype} {list(vectors.shape)}")  # fmt: skip
        for state in states:
            check_state(state, spec.row_bytes)
        shard = len(self._commits)
        commit = write_shard_file(
            self._root / shard_name(shard), spec, self._store_id, shard, passages, states, vectors
        )
        files.write_file(self._root / _commit_name(shard), encode_commit(commit))
        self._commits.append(commit)

    # -- finishing ----------------------------------------------------------------------------

    def finish(
        self, counts: Mapping[str, int], derive: Derive | None, rejects: Path | None
    ) -> Manifest:
        """Index the stored passages, seal the store and give it its name.

        May be repeated after an error or a crash; a store that was sealed already is only named.

        Args:
            counts: What ingestion counted, for the manifest.
            derive: Gets an empty folder and all stored passages in ordinal order (read back and
                checked), and writes the retrieval indexes there.
            rejects: A file to keep with the store as ``rejects.jsonl``.

        Returns:
            The manifest of the finished store.

        Raises:
            InputError: There are no passages, or two with the same id.
            UsageError: The target has appeared meanwhile, ``counts`` are not counts, or ``derive``
                wrote what does not belong into a store.
            CorruptError: A passage cannot be read back.
            ResourceError: No space; committed shards are intact.
        """
        if self._published:
            raise UsageError("this store is finished", where=str(self._target))
        check_counts(counts)
        if self._manifest is None:
            self._manifest = self._seal(counts, derive, rejects)
        files.remove_tree(self._root, self._kept())
        files.sync_folder(self._root)
        if os.path.lexists(self._target):  # rename would silently replace an empty folder
            raise UsageError("the target has appeared meanwhile", where=str(self._target),
                             todo="remove it and run again with --resume")  # fmt: skip
        files.rename(self._root, self._target)
        self._published = True
        self.close()
        return self._manifest

    def _seal(
        self, counts: Mapping[str, int], derive: Derive | None, rejects: Path | None
    ) -> Manifest:
        if not self._commits:
            raise InputError("no passages to store", where=str(self._target),
                             todo="check the sources")  # fmt: skip
        files.remove_tree(self._root, self._kept())
        derived = self._derive(derive)
        build_ids(self._root / IDS, (passage.id for passage in self._stored()))
        others = [IDS, *derived]
        if rejects is not None:
            files.copy_file(rejects, self._root / REJECTS)
            others.append(REJECTS)
        entries = [FileEntry(shard_name(c.shard), c.bytes, c.sha256) for c in self._commits]
        for name in others:
            size = files.file_size(self._root / name)
            entries.append(FileEntry(name, size, files.digest_file(self._root / name, size)))
        commits = self._commits
        manifest = Manifest(
            self._spec,
            self.committed,
            sum(c.tokens for c in commits),
            sum(c.truncated for c in commits),
            {part: sum(c.parts[part] for c in commits) for part in PARTS},
            dict(counts),
            tuple(sorted(entries, key=lambda entry: entry.name)),
        )
        data = manifest.encode()
        try:
            # Nothing is sealed that could not be opened: a bad name from `derive`, say.
            Manifest.decode(data, self._root / MANIFEST)
        except CorruptError as error:
            raise UsageError(f"this store could not be opened again: {error.what}",
                             expected=error.expected, found=error.found) from None  # fmt: skip
        files.write_file(self._root / MANIFEST, data)
        return manifest

    def _derive(self, derive: Derive | None) -> list[str]:
        """Have the retrieval indexes written; their names, all on disk for good."""
        if derive is None:
            return []
        folder = self._root / RETRIEVAL
        files.make_folder(folder)
        with files.explaining(folder):
            derive(folder, self._stored())
        names = []
        for name, is_folder in files.list_tree(folder):
            files.sync_file(folder / name)
            if not is_folder:
                names.append(f"{RETRIEVAL}/{name}")
        files.sync_folder(folder)
        return names

    def _stored(self) -> Iterator[Passage]:
        """All committed passages in ordinal order, read back from the disk."""
        for commit in self._commits:
            shard = ShardFile(
                self._root / shard_name(commit.shard), self._spec, self._store_id, commit.shard,
                commit.passages, commit.bytes,
            )  # fmt: skip
            for record in range(commit.passages):
                yield shard.passage(record)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _commit_name(shard: int) -> str:
    return f"{COMMITS}/{shard:08d}.json"
