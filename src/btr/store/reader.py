"""Read a finished store: passages, states and vectors by ordinal, each checked on every read."""

from __future__ import annotations

import operator
import os
import resource
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex, TypeVar

import numpy as np

from btr import files
from btr.data.passages import Passage
from btr.errors import CorruptError, IncompatibleError, InputError, UsageError
from btr.store.format import (
    IDS,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    RETRIEVAL,
    Manifest,
    PassageState,
    mapping_difference,
    shard_name,
)
from btr.store.ids import IdTable
from btr.store.shard_file import ShardFile

MAX_OPEN_SHARDS = 256

T = TypeVar("T")


def load_manifest(path: Path) -> Manifest:
    """Read and check the manifest of the store at ``path``.

    Raises:
        UsageError: There is no store.
        CorruptError: The manifest is damaged.
        IncompatibleError: A newer version wrote it.
    """
    with files.explaining(path):
        is_folder = path.is_dir()
    if not is_folder:
        building = path.with_name(path.name + ".building")
        if building.is_dir():
            raise UsageError("this store is not finished", where=str(path),
                             todo="finish it with `btr index ... --resume`")  # fmt: skip
        raise UsageError("no store here", where=str(path), expected="a folder",
                         found="a file" if path.exists() else "",
                         todo="build one with `btr index`")  # fmt: skip
    file = path / MANIFEST
    if not os.path.lexists(file):
        raise UsageError("this folder is not a store", where=str(path), expected=MANIFEST,
                         todo="name a folder that `btr index` has made")  # fmt: skip
    return Manifest.decode(files.read_file(file, MAX_MANIFEST_BYTES), file)


def check_files(path: Path, manifest: Manifest) -> Iterator[CorruptError]:
    """What is wrong with the existence, type and size of the files that a manifest names."""
    folders = {str(folder) for entry in manifest.files for folder in Path(entry.name).parents}
    for name in sorted(folders):
        try:
            with files.explaining(path / name):
                # The store's own folder may be reached by a link; nothing inside it may.
                mode = os.lstat(path / name).st_mode if name != "." else stat.S_IFDIR
            if not stat.S_ISDIR(mode):
                yield CorruptError("not a folder", where=str(path / name))
        except CorruptError as error:
            yield error
    for entry in manifest.files:
        file = path / entry.name
        try:
            with files.explaining(file):
                status = os.lstat(file)
            files.check_status(file, status, entry.bytes)
        except CorruptError as error:
            yield error


class TokenStore:
    """An open store. Threads may share it; so may processes, each by opening it.

    Shards are opened when they are first read, and only so many at a time. Files are read by
    ``pread``: a file that is cut off while in use gives an error, not a dead process.

    Attributes:
        path: The folder.
        manifest: What it says of itself.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._spec, self._store_id = manifest.spec, manifest.spec.store_id
        self._shard_size = manifest.spec.passages_per_shard
        self._entries = {entry.name: entry for entry in manifest.files}
        self._ids = IdTable(path / IDS)
        self._ids_whole = False
        self._lock = threading.Lock()
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        # Other parts of the process need descriptors too; -1 means that there is no limit.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_open = MAX_OPEN_SHARDS if limit < 0 else max(1, min(MAX_OPEN_SHARDS, limit // 4))

    @classmethod
    def open(cls, path: Path | str, *, fingerprint: Mapping[str, str] | None = None) -> TokenStore:
        """Open a store.

        Args:
            path: Its folder.
            fingerprint: What the caller's reader needs the states to be made with; None to look
                at passages and vectors only.

        Raises:
            UsageError: There is no store.
            CorruptError: A file is missing or has another size, or the manifest is damaged.
            IncompatibleError: Another reader's store, or a newer format.
        """
        path = Path(path)
        manifest = load_manifest(path)
        for error in check_files(path, manifest):
            raise error
        store = cls(path, manifest)
        if fingerprint is not None:
            store.require(fingerprint)
        return store

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
                expected=readers, found=stores,
                todo="use the reader that made it, or build the store again",
            )  # fmt: skip

    def __len__(self) -> int:
        return self.manifest.passages

    @property
    def retrieval_folder(self) -> Path:
        """Where the retrieval indexes are."""
        return self.path / RETRIEVAL

    def states(self, ordinals: Iterable[SupportsIndex]) -> list[PassageState]:
        """States of passages, in the order asked for; their rows are read-only.

        Args:
            ordinals: Any order, repeats allowed.

        Raises:
            UsageError: An ordinal is out of range.
            CorruptError: A record is damaged.
        """
        return self._fetch(ordinals, ShardFile.state)

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
        first, shard = -self._shard_size, None
        for ordinal, place in wanted:
            if shard is None or ordinal - first >= self._shard_size:
                number = ordinal // self._shard_size
                first, shard = number * self._shard_size, self._shard(number)
            results[place] = read(shard, ordinal - first)
        return results

    def _shard(self, number: int) -> ShardFile:
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
            # Make room first: the bound holds at every moment.
            while len(self._open) >= self._most_open:
                self._open.popitem(last=False)
            name = shard_name(number)
            shard = self._open[number] = ShardFile(
                self.path / name, self._spec, self._store_id, number,
                self.manifest.shard_passages(number), self._entries[name].bytes,
            )  # fmt: skip
            return shard

    def ordinal(self, passage_id: str) -> int:
        """The ordinal of the passage with this id.

        Raises:
            InputError: No passage has it.
            CorruptError: The id table is damaged.
        """
        found = self._ids.find(passage_id)
        if found is None:
            self._check_ids()
            raise InputError("no passage has this id", where=repr(passage_id)[:600],
                             todo="check the id")  # fmt: skip
        if not 0 <= found < len(self) or self.passages([found])[0].id != passage_id:
            raise CorruptError("damaged id table", where=str(self.path / IDS))
        return found

    def _check_ids(self) -> None:
        """Believe "no such id" only of a table whose digest has been checked (once)."""
        if not self._ids_whole:
            entry = self._entries[IDS]
            if files.digest_file(self.path / IDS, entry.bytes) != entry.sha256:
                raise CorruptError("damaged id table", where=str(self.path / IDS),
                                   expected=entry.sha256, found="another digest")  # fmt: skip
            self._ids_whole = True

    def iter_passages(self) -> Iterator[Passage]:
        """All passages in ordinal order."""
        for number in range(self.manifest.shards):
            shard = self._shard(number)
            for record in range(self.manifest.shard_passages(number)):
                yield shard.passage(record)

    def vectors(self) -> Iterator[np.ndarray]:
        """Dense vectors shard by shard, in ordinal order: int8 ``[n, dense_dim]``, read-only."""
        for number in range(self.manifest.shards):
            yield self._shard(number).vectors()

    def close(self) -> None:
        """Let go of all open files; the store opens them again if it is used again."""
        with self._lock:
            self._open.clear()
        self._ids.close()

    def __enter__(self) -> TokenStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
