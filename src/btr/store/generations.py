"""Which generation of a store is the current one, and which of them are still being read.

The current generation is the one with the highest number. Its manifest is created under its final
name in one step and only if no other has taken the number, so two writers cannot both make it, even
where locks do not work. Whoever reads a generation holds a shared kernel lock on its manifest, a
*lease*: its files stay until the lease ends, with the reader's process at the latest.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from btr import files
from btr.errors import BtrError, CorruptError, UsageError
from btr.store.format import MAX_MANIFEST_BYTES, Manifest
from btr.store.names import MANIFEST, MANIFESTS, manifest_generation, manifest_name

BUILDING = ".building"  # ends the name of the folder where a store is built


_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class Lease:
    """A shared lock on the manifest of a generation, and what the manifest says.

    Args:
        path: The store's folder.

    Raises:
        UsageError: There is no store.
        CorruptError: The manifest is damaged.
        IncompatibleError: A newer version wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._fd: int | None = None
        # Kept, as a lease may outlast its modules when the interpreter ends.
        self._close = files.ops.close
        while True:
            file = path / manifest_name(current_generation(path))
            try:
                self._fd = _locked(file, fcntl.LOCK_SH)
                # A writer may have collected the generation between the two steps.
                if os.path.samestat(os.fstat(self._fd), os.lstat(file)):
                    break
            except CorruptError:
                # No such file: it was collected. Anything else is found below to be damage.
                if os.path.lexists(file):
                    break
            except FileNotFoundError:
                pass  # the same, a moment later
            self.release()
        try:
            self.manifest = Manifest.decode(files.read_file(file, MAX_MANIFEST_BYTES), file)
            generation = manifest_generation(str(file.relative_to(path)))
            if self.manifest.generation != generation:
                raise CorruptError("a manifest under another generation's name", where=str(file),
                                   expected=str(generation),
                                   found=str(self.manifest.generation))  # fmt: skip
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let go; safe to call twice."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self._close(fd)

    def __del__(self) -> None:
        self.release()


def current_generation(path: Path) -> int:
    """The number of the newest generation.

    Raises:
        UsageError: There is no store.
    """
    with files.explaining(path):
        is_folder = path.is_dir()
    if not is_folder:
        if path.with_name(path.name + BUILDING).is_dir():
            raise UsageError("this store is not finished", where=str(path),
                             todo="finish it with `btr index ... --resume`")  # fmt: skip
        raise UsageError("no store here", where=str(path), expected="a folder",
                         found="a file" if path.exists() else "",
                         todo="build one with `btr index`")  # fmt: skip
    found = max(generations(path), default=None)
    if found is None:
        raise UsageError("this folder is not a store", where=str(path), expected=MANIFEST,
                         todo="name a folder that `btr index` has made")  # fmt: skip
    return found


def generations(path: Path) -> Iterator[int]:
    """The generations that have a manifest."""
    with files.explaining(path / MANIFESTS):
        names = os.listdir(path / MANIFESTS) if (path / MANIFESTS).is_dir() else []
    for name in (MANIFEST, *(f"{MANIFESTS}/{name}" for name in names)):
        generation = manifest_generation(name)
        if generation is not None and os.path.lexists(path / name):
            yield generation


def retire(path: Path, generation: int) -> bool:
    """Remove the manifest of an old generation, unless someone reads it.

    Returns:
        Whether it is gone. Nobody can begin to read it afterwards: a reader that opened the file
        before gets its lock after, and looks whether the file is still there.
    """
    file = path / manifest_name(generation)
    try:
        fd = _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BtrError as error:
        if isinstance(error.__cause__, BlockingIOError):
            return False
        raise
    try:
        files.remove(file)
    finally:
        files.ops.close(fd)
    return True


def _locked(file: Path, how: int) -> int:
    """A descriptor of a manifest with a lock on it."""
    with files.explaining(file):
        fd = files.ops.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            files.ops.flock(fd, how)
        except OSError as error:
            # A file system without locks has no writers of ours either: it can still be read.
            if how != fcntl.LOCK_SH or error.errno not in _NO_LOCKS:
                files.ops.close(fd)
                raise
    return fd
