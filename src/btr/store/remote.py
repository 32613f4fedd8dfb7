"""Stores on other file systems (``s3://``, ``gs://``), through fsspec: copied up, read in place.

What is small or needs a real file (manifest, id tables, lexical indexes, coding tables) is fetched
once into a cache folder and checked by its digest. Shards stay where they are: each record is read
by its byte range, and checked as ever. A copy puts the manifest last, so a store is there whole or
not at all. No generation is deleted there: old ones stay until their owner removes them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from btr import files
from btr.errors import CorruptError, ResourceError, UsageError
from btr.store.format import MAX_MANIFEST_BYTES, FileEntry, Manifest
from btr.store.generations import Lease
from btr.store.names import MANIFEST, MANIFESTS, manifest_generation, manifest_name

CACHE = "BTR_CACHE"
"""Environment variable with the folder for fetched files; ``~/.cache/btr`` if it is not set."""

COPYING = "copying.json"
"""The manifest of a copy that has begun and not ended, at the target."""

# A path object has one slash where the address had two or, for files, three.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.ASCII | re.DOTALL)


def address_of(path: Path | str) -> str | None:
    """The address that a path stands for, or None for a path on this machine."""
    match = _ADDRESS.fullmatch(str(path))
    if match is None:
        return None
    scheme, rest = match.groups()
    return f"{scheme}:///{rest}" if scheme in ("file", "local") else f"{scheme}://{rest}"


class RemoteFile:
    """A file elsewhere, read by ranges; the counterpart of ``files.LocalFile``.

    Args:
        system: Of fsspec.
        name: Within it.
        size: That it must have.

    Raises:
        CorruptError: It is missing or has another size.
    """

    def __init__(self, system: Any, name: str, size: int) -> None:
        self._system, self._name = system, name
        with _explaining(name):
            found = int(system.info(name)["size"])
        if found != size:
            raise CorruptError("wrong file size", where=name, expected=f"{size} bytes",
                               found=f"{found} bytes")  # fmt: skip

    def read(self, size: int, offset: int) -> bytes:
        """``size`` bytes from ``offset``.

        Raises:
            CorruptError: The file ends before.
            ResourceError: It cannot be read now.
        """
        with _explaining(self._name):
            data: bytes = self._system.cat_file(self._name, start=offset, end=offset + size)
        if len(data) != size:
            raise CorruptError("the file ends too early", where=self._name,
                               expected=f"{size} bytes at {offset}",
                               found=f"{len(data)} bytes")  # fmt: skip
        return data


class RemoteStore:
    """The newest generation of a store elsewhere, with what is needed of it fetched.

    Args:
        address: The store's folder.

    Attributes:
        folder: Where its files are on this machine, but for the shards.

    Raises:
        UsageError: There is no store, or no file system of this kind is installed.
        CorruptError: A file is not what the manifest says.
        ResourceError: It cannot be read now.
    """

    def __init__(self, address: str) -> None:
        self._system, self._root = open_system(address)
        numbers = _generations(self._system, self._root)
        if not numbers:
            raise UsageError("no store here", where=address,
                             todo="copy one there with `btr copy`")  # fmt: skip
        name = manifest_name(max(numbers))
        data = _fetch(self._system, self._name(name))
        manifest = Manifest.decode(data, Path(name))
        self.folder = cache_folder() / f"{manifest.spec.store_id.hex()}-{manifest.generation}"
        for entry in manifest.others:
            self._keep(entry)
        place = self.folder / name
        if not place.exists() or place.read_bytes() != data:
            _make_folders(place.parent)
            files.write_file(place, data)

    def open(self, name: str, size: int) -> RemoteFile:
        """A shard."""
        return RemoteFile(self._system, self._name(name), size)

    def _name(self, name: str) -> str:
        return str(PurePosixPath(self._root) / name)

    def _keep(self, entry: FileEntry) -> None:
        """Fetch a file, unless an earlier run has."""
        place, name = self.folder / entry.name, self._name(entry.name)
        if place.exists() and files.digest_file(place, entry.bytes) == entry.sha256:
            return
        _make_folders(place.parent)
        fetched = place.with_name(f"{place.name}.{os.getpid()}{files.TEMPORARY}")
        with _explaining(name):
            self._system.get_file(name, str(fetched))
        if files.digest_file(fetched, files.file_size(fetched)) != entry.sha256:
            files.remove(fetched)
            raise CorruptError("a file's content is not what was written", where=name,
                               expected=entry.sha256)  # fmt: skip
        files.rename(fetched, place)


def copy_store(source: Path, address: str) -> Manifest:
    """Copy a store's current generation to another file system, the manifest last.

    Files that the generations there have already are not copied again, nor those of an interrupted
    copy of the same generation, which goes on.

    Args:
        source: A store on this machine.
        address: The folder for it.

    Raises:
        UsageError: No store, another one or a later generation is there, or no file system of this
            kind is installed.
        CorruptError: A file is not what the manifest says; it is not copied.
        ResourceError: It cannot be written now.
    """
    lease = Lease(source)
    try:
        system, root = open_system(address)
        manifest = lease.manifest
        there = _files_there(system, root, manifest, address)
        with _explaining(address):
            _begin(system, root, manifest, there)
        for entry in manifest.files:
            target = str(PurePosixPath(root) / entry.name)
            if files.digest_file(source / entry.name, entry.bytes) != entry.sha256:
                raise CorruptError("a file's content is not what was written",
                                   where=str(source / entry.name))  # fmt: skip
            with _explaining(target):
                if system.exists(target) and int(system.info(target)["size"]) == entry.bytes:
                    continue
                system.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
                system.put_file(str(source / entry.name), target)
        target = str(PurePosixPath(root) / manifest_name(manifest.generation))
        with _explaining(target):
            system.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            system.pipe_file(target, manifest.encode())
            system.rm_file(str(PurePosixPath(root) / COPYING))
        return manifest
    finally:
        lease.release()


def _files_there(system: Any, root: str, manifest: Manifest, address: str) -> dict[str, str]:
    """Digests of the files, by name, of all generations of a store there; empty if none is.

    Raises:
        UsageError: The manifest's generation does not fit among them.
    """
    there: dict[str, str] = {}
    for generation in _generations(system, root):
        name = str(PurePosixPath(root) / manifest_name(generation))
        data = _fetch(system, name)
        other = Manifest.decode(data, Path(name))
        there |= {entry.name: entry.sha256 for entry in other.files}
        if (
            other.spec.store_id != manifest.spec.store_id
            or generation > manifest.generation
            or (generation == manifest.generation and data != manifest.encode())
        ):
            raise UsageError(
                "another store, or a later generation of this one, is there", where=address,
                expected=f"generations of this store up to {manifest.generation}",
                found=f"generation {generation}", todo="copy it to another folder",
            )  # fmt: skip
    for entry in manifest.files:
        if there.get(entry.name, entry.sha256) != entry.sha256:
            raise UsageError("a store that was changed otherwise is there", where=address,
                             found=f"another {entry.name}", todo="copy it to another folder",
                             )  # fmt: skip
    return there


def _begin(system: Any, root: str, manifest: Manifest, there: Mapping[str, str]) -> None:
    """Leave there, of files that no generation names, only those of this copy."""
    place, data = str(PurePosixPath(root) / COPYING), manifest.encode()
    if system.exists(place) and system.cat_file(place) == data:
        return
    for entry in manifest.files:
        target = str(PurePosixPath(root) / entry.name)
        if entry.name not in there and system.exists(target):
            system.rm_file(target)
    system.makedirs(root, exist_ok=True)
    system.pipe_file(place, data)


def _generations(system: Any, root: str) -> list[int]:
    """Numbers of the generations that are there."""
    folder = PurePosixPath(root)
    with _explaining(root):
        names = [MANIFEST] if system.exists(str(folder / MANIFEST)) else []
        if system.isdir(str(folder / MANIFESTS)):
            found = system.ls(str(folder / MANIFESTS), detail=False)
            names += [f"{MANIFESTS}/{PurePosixPath(name).name}" for name in found]
    return [number for name in names if (number := manifest_generation(name)) is not None]


def _fetch(system: Any, name: str) -> bytes:
    """A manifest."""
    with _explaining(name):
        data: bytes = system.cat_file(name)
    if len(data) > MAX_MANIFEST_BYTES:
        raise CorruptError("the file is too big", where=name)
    return data


def open_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the name within it.

    Raises:
        UsageError: None of this kind is installed.
    """
    try:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError("no file system of this kind", where=address,
                         found=str(error).split("\n")[0][:200],
                         todo="pip install fsspec and the package for this kind, as s3fs",
                         ) from error  # fmt: skip
    return system, str(root)


def cache_folder() -> Path:
    """Where fetched files are kept."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "btr") / "stores"


def _make_folders(folder: Path) -> None:
    with files.explaining(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _explaining(name: str) -> Iterator[None]:
    """Raise what a file system raises as an error of btr.

    Raises:
        CorruptError: The file is missing.
        ResourceError: Anything else.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptError("a file is missing", where=name) from error
    except OSError as error:
        raise ResourceError("the file system failed", where=name, found=str(error)[:200],
                            todo="try again") from error  # fmt: skip
