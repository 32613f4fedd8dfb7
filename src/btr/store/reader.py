"""Read a finished store: passages, states and vectors by ordinal, each checked on every read."""

from __future__ import annotations

import operator
import os
import resource
import stat
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, groupby
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex, TypeVar

import numpy as np

from btr import files
from btr.data.passages import Passage
from btr.errors import CorruptError, IncompatibleError, InputError, UsageError
from btr.store.coding import load_coder, undecodable
from btr.store.coding_tables import CodingTables
from btr.store.format import (
    FileEntry,
    Manifest,
    PassageState,
    ShardEntry,
    mapping_difference,
)
from btr.store.generations import Lease
from btr.store.ids import IdTable
from btr.store.names import SHARDS, removed_name
from btr.store.remote import RemoteStore, address_of
from btr.store.removed import load_removed
from btr.store.shard import StateRecord
from btr.store.shard_file import ShardFile

MAX_OPEN_SHARDS = 256

T = TypeVar("T")


def check_files(
    path: Path, manifest: Manifest, *, shard_sizes: bool = True
) -> Iterator[CorruptError]:
    """What is wrong with the existence, type and size of the files that a manifest names.

    Args:
        path: The store's folder.
        manifest: What should be there.
        shard_sizes: False to leave the sizes of shards to their opening. Their names and types
            come from one listing; asking for every size takes 2 ms a thousand.
    """
    folders = {str(folder) for entry in manifest.others for folder in Path(entry.name).parents}
    for name in sorted({*folders, SHARDS}):
        try:
            with files.explaining(path / name):
                # The store's own folder may be reached by a link; nothing inside it may.
                mode = os.lstat(path / name).st_mode if name != "." else stat.S_IFDIR
            if not stat.S_ISDIR(mode):
                yield CorruptError("not a folder", where=str(path / name))
        except CorruptError as error:
            yield error
    there: set[str] = set()
    if not shard_sizes:
        with files.explaining(path / SHARDS), os.scandir(path / SHARDS) as found:
            there = {f"{SHARDS}/{e.name}" for e in found if e.is_file(follow_symlinks=False)}
    unlisted = (shard for shard in manifest.shards if shard.name not in there)
    entries: Iterator[FileEntry | ShardEntry] = chain(manifest.others, unlisted)
    for entry in entries:
        file = path / entry.name
        try:
            with files.explaining(file):
                status = os.lstat(file)
            files.check_status(file, status, entry.bytes)
        except CorruptError as error:
            yield error


class TokenStore:
    """One generation of a store, open. Threads may share it; so may processes, each by opening it.

    What is committed later is not seen: open the store again. Shards are opened when they are first
    read, and only so many at a time. Files are read by ``pread``: a file that is cut off while in
    use gives an error, not a dead process.

    Attributes:
        path: The folder.
        manifest: What it says of itself.
        removed: Ordinals of removed passages, ascending.
    """

    def __init__(self, path: Path, lease: Lease, elsewhere: RemoteStore | None = None) -> None:
        self.path, self.manifest, self._lease = path, lease.manifest, lease
        self._elsewhere = elsewhere
        manifest = lease.manifest
        self._spec, self._store_id = manifest.spec, manifest.spec.store_id
        self._entries = {entry.name: entry for entry in manifest.others}
        self._starts = [0, *accumulate(shard.passages for shard in manifest.shards)]
        self.removed = np.empty(0, np.int64)
        if manifest.removed:
            entry = self._entries[removed_name(manifest.generation)]
            self.removed = load_removed(path / entry.name, manifest, entry.bytes)
        self._coder = load_coder(path, manifest)
        self._ids = {name: IdTable(path / name) for name in manifest.id_tables}
        self._ids_whole: set[str] = set()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        # Other parts of the process need descriptors too; -1 means that there is no limit.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_open = MAX_OPEN_SHARDS if limit < 0 else max(1, min(MAX_OPEN_SHARDS, limit // 4))

    @classmethod
    def open(cls, path: Path | str, *, fingerprint: Mapping[str, str] | None = None) -> TokenStore:
        """Open a store.

        Args:
            path: Its folder, or its address on another file system (``s3://...``).
            fingerprint: What the caller's reader needs the states to be made with; None to look
                at passages and vectors only.

        Raises:
            UsageError: There is no store.
            CorruptError: A file is missing or has another size, or the manifest is damaged.
            IncompatibleError: Another reader's store, or a newer format.
        """
        address = address_of(path)
        elsewhere = None if address is None else RemoteStore(address)
        path = Path(path) if elsewhere is None else elsewhere.folder
        lease = Lease(path)
        try:
            if elsewhere is None:
                for error in check_files(path, lease.manifest, shard_sizes=False):
                    raise error
            store = cls(path, lease, elsewhere)
            if fingerprint is not None:
                store.require(fingerprint)
        except BaseException:
            lease.release()
            raise
        return store

    def check_sizes(self) -> None:
        """Check the size of every file; opening leaves that of a shard to its first use.

        Raises:
            CorruptError: A file has another size than the manifest says.
        """
        for error in check_files(self.path, self.manifest) if self._elsewhere is None else ():
            raise error

    def require(self, fingerprint: Mapping[str, str]) -> None:
        """Refuse a reader that did not make this store's states.

        Raises:
            IncompatibleError: A field of the fingerprint differs; it is named.
        """
        found = mapping_difference(fingerprint, self._spec.fingerprint)
        if found is not None:
            name, readers, stores = found
            raise IncompatibleError(
                f"this store was made by another reader: {name} differs", where=str(self.path),
                expected=readers or "nothing", found=stores,
                todo="use the reader that made it, or build the store again",
            )  # fmt: skip

    @property
    def coding(self) -> CodingTables | None:
        """What coded states are decoded with; None in a store that has none."""
        return None if self._coder is None else self._coder.tables

    def __len__(self) -> int:
        """Ordinals, those of removed passages among them."""
        return self._starts[-1]

    @property
    def lexical_folders(self) -> list[Path]:
        """Where the lexical indexes are, in the order of their passages' ordinals."""
        return [self.path / name for name in self.manifest.lexical_folders]

    def is_removed(self, ordinal: int) -> bool:
        """Whether a passage counts no more."""
        place = int(np.searchsorted(self.removed, ordinal))
        return place < len(self.removed) and int(self.removed[place]) == ordinal

    def states(self, ordinals: Iterable[SupportsIndex]) -> list[PassageState]:
        """States of passages, in the order asked for; their rows are read-only.

        Args:
            ordinals: Any order, repeats allowed.

        Raises:
            UsageError: An ordinal is out of range.
            InputError: No state of a passage is stored.
            CorruptError: A record is damaged.
        """
        states = []
        for state in self.held_states(ordinals):
            if state is None:
                raise InputError("no state of a passage is stored", where=str(self.path),
                                 todo="read it with a reader that makes it")  # fmt: skip
            states.append(state)
        return states

    def held_states(self, ordinals: Iterable[SupportsIndex]) -> list[PassageState | None]:
        """The same, with None for passages of which no state is stored."""
        wanted = [operator.index(ordinal) for ordinal in ordinals]
        found = self._fetch(wanted, ShardFile.state)
        coded = [s for s in found if isinstance(s, StateRecord) and not s.is_absent]
        decoded = iter(self._coder.decode(coded) if self._coder else [None] * len(coded))
        states: list[PassageState | None] = []
        for ordinal, state in zip(wanted, found, strict=True):
            if not isinstance(state, StateRecord):
                states.append(state)
                continue
            whole = None if state.is_absent else next(decoded)
            if whole is None and not state.is_absent:
                raise undecodable(f"{self.path}, passage {ordinal}")
            states.append(whole)
        return states

    def state_records(self, ordinals: Iterable[SupportsIndex]) -> list[StateRecord]:
        """States as they are stored; arguments and errors as for :meth:`states`."""
        return self._fetch(ordinals, ShardFile.state_record)

    def passages(self, ordinals: Iterable[SupportsIndex]) -> list[Passage]:
        """Passages in the order asked for; arguments and errors as for :meth:`states`."""
        return self._fetch(ordinals, ShardFile.passage)

    def _fetch(
        self, ordinals: Iterable[SupportsIndex], read: Callable[[ShardFile, int], T]
    ) -> list[T]:
        # In ordinal order, so that each shard is looked up once and the disk is read forwards.
        wanted = sorted((operator.index(o), place) for place, o in enumerate(ordinals))
        if wanted and not 0 <= wanted[0][0] <= wanted[-1][0] < len(self):
            bad = wanted[0][0] if wanted[0][0] < 0 else wanted[-1][0]
            raise UsageError(
                "no such passage", where=str(self.path),
                expected=f"an ordinal from 0 to {len(self) - 1}", found=str(bad),
            )  # fmt: skip
        results: list[Any] = [None] * len(wanted)
        first = end = 0
        for ordinal, place in wanted:
            if ordinal >= end:
                index = bisect_right(self._starts, ordinal) - 1
                first, end, shard = self._starts[index], self._starts[index + 1], self._shard(index)
            results[place] = read(shard, ordinal - first)
        return results

    def _shard(self, index: int) -> ShardFile:
        with self._lock:
            shard = self._open.get(index)
            if shard is not None:
                self._open.move_to_end(index)
                return shard
            # Make room first: the bound holds at every moment.
            while len(self._open) >= self._most_open:
                self._open.popitem(last=False)
            entry = self.manifest.shards[index]
            shard = self._open[index] = ShardFile(
                self.path / entry.name, self._spec, self._store_id, entry.number, entry.passages,
                entry.bytes,
                self._elsewhere.open(entry.name, entry.bytes) if self._elsewhere else None,
            )  # fmt: skip
            return shard

    def ordinal(self, passage_id: str) -> int:
        """The ordinal of the passage with this id.

        Raises:
            InputError: No passage has it, or it was removed.
            CorruptError: An id table is damaged.
        """
        found = self.find(passage_id)
        if found is None:
            raise InputError("no passage has this id", where=repr(passage_id)[:600],
                             todo="check the id")  # fmt: skip
        return found

    def find(self, passage_id: str) -> int | None:
        """The ordinal of the passage with this id; None if there is none, or it was removed.

        Raises:
            CorruptError: An id table is damaged.
        """
        for name, table in self._ids.items():
            found = table.find(passage_id)
            if found is None:
                self._check_ids(name)
            elif not 0 <= found < len(self) or self.passages([found])[0].id != passage_id:
                raise CorruptError("damaged id table", where=str(self.path / name))
            elif not self.is_removed(found):
                return found
        return None

    def _check_ids(self, name: str) -> None:
        """Believe "no such id" only of a table whose digest has been checked (once)."""
        if name not in self._ids_whole:
            entry = self._entries[name]
            if files.digest_file(self.path / name, entry.bytes) != entry.sha256:
                raise CorruptError("damaged id table", where=str(self.path / name),
                                   expected=entry.sha256, found="another digest")  # fmt: skip
            self._ids_whole.add(name)

    def iter_passages(self) -> Iterator[Passage]:
        """All passages in ordinal order, removed ones among them."""
        for index in range(len(self.manifest.shards)):
            yield from self._shard(index).passages()

    def vectors(self) -> Iterator[np.ndarray]:
        """Dense vectors shard by shard, in ordinal order: int8 ``[n, dense_dim]``, read-only."""
        for index in range(len(self.manifest.shards)):
            yield self._shard(index).vectors()

    def vectors_of(self, ordinals: Sequence[int]) -> np.ndarray:
        """Dense vectors of passages, int8 ``[n, dense_dim]``, in ascending order of ordinals."""
        parts = []
        for index, inside in groupby(ordinals, lambda o: bisect_right(self._starts, o) - 1):
            first = self._starts[index]
            parts.append(self._shard(index).vectors()[[ordinal - first for ordinal in inside]])
        return np.concatenate(parts)

    def close(self) -> None:
        """Let go of all open files and of the lease.

        A closed store opens its files again if it is used, as long as nobody has changed the store.
        """
        self._lease.release()
        with self._lock:
            self._open.clear()
        for table in self._ids.values():
            table.close()

    def __enter__(self) -> TokenStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
