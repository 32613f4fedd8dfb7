"""The folder beside a store where its next generation is made, and how that becomes current.

Nothing is written into a store but whole files under names that no manifest has, and last the new
manifest. A process that dies at any moment leaves the generation before, or the new one, and a
building folder from which the work is ended or begun again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from btr import files
from btr.data.passages import Passage
from btr.errors import CorruptError, LockedError, UsageError
from btr.store.format import MAX_MANIFEST_BYTES, FileEntry, Manifest
from btr.store.generations import BUILDING, Lease, current_generation, generations, retire
from btr.store.names import (
    MANIFESTS,
    is_file_name,
    lexical_name,
    manifest_name,
    removed_name,
)
from btr.store.removed import load_removed, write_removed

LOCK = ".lock"
DISCARDED = ".discarded"
BUILD = "build.json"
COMMITS = "commits"

Derive = Callable[[Path, Iterator[Passage], int], None]
"""Writes a lexical index: an empty folder, passages in ordinal order, the first one's ordinal."""

NOTHING = np.empty(0, np.int64)


class Building:
    """Where one generation is made; holds the store's lock until :meth:`close`.

    Attributes:
        target: The store's folder.
        root: The building folder, ``<store>.building``.
        base: The generation that is changed; None for a new store.

    Raises:
        UsageError: The folder cannot be a store's, or, for a change, there is no store.
        LockedError: Another process is writing the same store.
    """

    def __init__(self, path: Path | str, *, change: bool = False) -> None:
        # Not Path.resolve(): the target may be named through a link, but is not one itself.
        self.target = Path(os.path.abspath(path))
        if not self.target.name or "\0" in str(self.target):
            raise UsageError("not a name for a store", where=repr(str(path)))
        if change:
            current_generation(self.target)  # no lock file is left where there is no store
        with files.explaining(self.target):
            parent_exists = self.target.parent.is_dir()
        if not parent_exists:
            raise UsageError("the folder for the store does not exist",
                             where=str(self.target.parent), todo="make it first")  # fmt: skip
        self.root = _beside(self.target, BUILDING)
        self._discarded = _beside(self.target, DISCARDED)
        self.base: Manifest | None = None
        self._lease: Lease | None = None
        self._lock = files.FileLock(_beside(self.target, LOCK))
        try:
            self._sweep()
            if change:
                self._lease = Lease(self.target)
                self.base = self._lease.manifest
        except BaseException:
            self.close()
            raise

    @property
    def generation(self) -> int:
        """The number of the generation that is made."""
        return 0 if self.base is None else self.base.generation + 1

    def sealed(self) -> Manifest | None:
        """The manifest in the building folder: all work is done, and only publishing is left."""
        # The generation may have been published, and its folder not been removed.
        published = [] if self.base is None else [self.base.generation]
        for generation in (self.generation, *published):
            file = self.root / manifest_name(generation)
            if os.path.lexists(file):
                return Manifest.decode(files.read_file(file, MAX_MANIFEST_BYTES), file)
        return None

    def start_over(self) -> None:
        """Empty the building folder for a change that is not resumed.

        Raises:
            UsageError: An addition, which is, has not been ended.
        """
        if os.path.lexists(self.root / BUILD):
            raise UsageError("an unfinished addition is here", where=str(self.root),
                             todo="go on with it by `btr add ... --resume`, or remove the folder",
                             )  # fmt: skip
        if os.path.lexists(self.root):
            files.remove_tree(self.root)
        else:
            files.make_folder(self.root)

    def publish(self, manifest: Manifest) -> None:
        """Make a sealed generation the current one; may be repeated after an error or a crash.

        Raises:
            LockedError: Another generation of this number has come first.
            ResourceError: No space, or the disk fails.
        """
        if manifest.generation == 0:
            files.sync_folder(self.root)
            if os.path.lexists(self.target):  # rename would silently replace an empty folder
                raise UsageError("the target has appeared meanwhile", where=str(self.target),
                                 todo="remove it and run again with --resume")  # fmt: skip
            files.rename(self.root, self.target)
            return
        # Linked, not moved: until the manifest is there, every file has its name here for certain.
        for entry in manifest.files:
            if os.path.lexists(self.root / entry.name):
                self._folders_for(entry.name)
                self._link(entry.name)
            elif not os.path.lexists(self.target / entry.name):
                raise CorruptError("a file is missing", where=str(self.target / entry.name),
                                   todo="restore the store from a copy")  # fmt: skip
        name = manifest_name(manifest.generation)
        self._folders_for(name)
        if not files.link(self.root / name, self.target / name):
            there = files.read_file(self.target / name, MAX_MANIFEST_BYTES)
            if there != manifest.encode():
                raise LockedError("another process has changed this store meanwhile",
                                  where=str(self.target / name), expected="no such generation",
                                  todo="run again")  # fmt: skip
        self.discard()

    def _link(self, name: str) -> None:
        here, there = self.root / name, self.target / name
        if not files.link(here, there) and not os.path.samestat(os.lstat(here), os.lstat(there)):
            # Left by a change whose building folder someone has removed; no manifest names it.
            files.remove(there)
            files.link(here, there)

    def seal(
        self,
        manifest: Manifest,
        written: Iterable[str],
        *,
        kept: Iterable[FileEntry] = (),
        removed: np.ndarray = NOTHING,
    ) -> Manifest:
        """Write the manifest of a generation whose files are all here or in the base.

        Args:
            manifest: All but its files and what is removed.
            written: Names of the new files.
            kept: Files of the base that this generation has too.
            removed: Ascending ordinals of removed passages.

        Raises:
            UsageError: A file has a name that no store may hold.
        """
        entries = [*(file_entry(self.root, name) for name in written), *kept]
        if len(removed):
            name = removed_name(manifest.generation)
            write_removed(self.root / name, manifest.spec.store_id, manifest.generation, removed)
            entries.append(file_entry(self.root, name))
        manifest = manifest.with_files(entries, removed=len(removed))
        data = manifest.encode()
        file = self.root / manifest_name(manifest.generation)
        try:
            # Nothing is sealed that could not be opened: a bad name from `derive`, say.
            Manifest.decode(data, file)
        except CorruptError as error:
            raise UsageError(f"this store could not be opened again: {error.what}",
                             expected=error.expected, found=error.found) from None  # fmt: skip
        if file.parent != self.root:
            files.make_folder(file.parent)
        files.write_file(file, data)
        return manifest

    def put_back(self, entry: FileEntry) -> None:
        """Let a file made again take the place of the damaged one that it equals.

        Raises:
            CorruptError: It came out otherwise; nothing has changed.
        """
        made = file_entry(self.root, entry.name)
        if made != entry:
            raise CorruptError(
                "a file made again is not the one that was written",
                where=str(self.target / entry.name), expected=f"digest {entry.sha256}",
                found=made.sha256,
                todo="repair it where the store was built, or build the store again",
            )  # fmt: skip
        self._folders_for(entry.name)
        files.rename(self.root / entry.name, self.target / entry.name)

    def lasting_files(self) -> list[FileEntry]:
        """The base's files that last where passages are only added or removed."""
        if self.base is None:
            return []
        lists = removed_name(self.base.generation)
        return [entry for entry in self.base.files if entry.name != lists]

    def removed(self) -> np.ndarray:
        """Ascending ordinals that are removed in the base."""
        if self.base is None or not self.base.removed:
            return NOTHING
        name = removed_name(self.base.generation)
        size = next(entry.bytes for entry in self.base.others if entry.name == name)
        return load_removed(self.target / name, self.base, size)

    def derive(
        self,
        derive: Derive,
        passages: Iterator[Passage],
        first: int,
        generation: int | None = None,
    ) -> list[str]:
        """Have a lexical index written; the names of its files, all on disk for good.

        Args:
            derive: Writes it.
            passages: In ordinal order.
            first: Ordinal of the first one.
            generation: Whose index it is; that of the generation that is made if not given.
        """
        name = lexical_name(self.generation if generation is None else generation)
        folder = self.root / name
        for parent in (folder.parent, folder):
            files.make_folder(parent)
        with files.explaining(folder):
            derive(folder, passages, first)
        names = []
        for found, is_folder in files.list_tree(folder):
            files.sync_file(folder / found)
            if not is_folder:
                names.append(f"{name}/{found}")
        files.sync_folder(folder)
        return names

    def _folders_for(self, name: str) -> None:
        for folder in reversed(Path(name).parents[:-1]):
            if not os.path.lexists(self.target / folder):
                files.make_folder(self.target / folder)

    def discard(self) -> None:
        """Remove the building folder, at once for whoever looks for it."""
        files.rename(self.root, self._discarded)
        self._sweep()

    def _sweep(self) -> None:
        if os.path.lexists(self._discarded):
            files.remove_tree(self._discarded)
            with files.explaining(self._discarded):
                files.ops.rmdir(self._discarded)

    def collect(self) -> None:
        """Remove generations that nobody reads any more, and all files that no generation names."""
        self._release()
        current = current_generation(self.target)
        kept: set[str] = set()
        for generation in sorted(generations(self.target), reverse=True):
            if generation != current and retire(self.target, generation):
                continue
            name = manifest_name(generation)
            file = self.target / name
            manifest = Manifest.decode(files.read_file(file, MAX_MANIFEST_BYTES), file)
            kept |= {name, *(entry.name for entry in manifest.files)}
        for name, is_folder in reversed(list(files.list_tree(self.target))):
            path = self.target / name
            if is_folder:
                if name != MANIFESTS and not any(path.iterdir()):
                    with files.explaining(path):
                        files.ops.rmdir(path)
            elif name not in kept and is_file_name(name):
                files.remove(path)

    def _release(self) -> None:
        if self._lease is not None:
            self._lease.release()

    def close(self) -> None:
        """Give lock and lease back."""
        self._release()
        self._lock.release()


@contextmanager
def changing(path: Path | str) -> Iterator[Building]:
    """The building of a change, after one that a process sealed and did not live to publish.

    Raises:
        As :class:`Building`.
    """
    building = Building(path, change=True)
    try:
        manifest = building.sealed()
        if manifest is not None:
            building.publish(manifest)
            building.close()
            building = Building(path, change=True)
        yield building
    finally:
        building.close()


def file_entry(root: Path, name: str) -> FileEntry:
    """A written file as the manifest names it."""
    size = files.file_size(root / name)
    return FileEntry(name, size, files.digest_file(root / name, size))


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)
