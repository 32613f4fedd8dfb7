"""Every file operation of the store, each with a BtrError that says what happened.

The operations themselves are the attributes of :data:`ops`. A test puts another :class:`Files`
there to crash, fill the disk or write short after operation ``k``, so that every step between two
operations can be tried. Nothing else in the store touches the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import socket
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from btr.errors import BtrError, CorruptError, LockedError, ResourceError, UsageError

CHUNK = 1 << 20  # bytes read or written at a time
TEMPORARY = ".tmp"  # ends the name of a file that is not whole yet


class Files:
    """The operating system's operations, as they are."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    write = staticmethod(os.write)
    pread = staticmethod(os.pread)
    fsync = staticmethod(os.fsync)
    rename = staticmethod(os.rename)
    link = staticmethod(os.link)
    unlink = staticmethod(os.unlink)
    mkdir = staticmethod(os.mkdir)
    rmdir = staticmethod(os.rmdir)
    flock = staticmethod(fcntl.flock)
    database = staticmethod(sqlite3.connect)


ops = Files()

_EXHAUSTED = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the allowed file size",
    errno.EIO: "the disk reports an input/output error",
    errno.ENOMEM: "out of memory",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files on this machine",
}

EXHAUSTED_TODO = "committed work is intact: solve this, then run again (a build: with --resume)"


def explain(error: OSError, path: Path | str) -> BtrError:
    """The error to raise for a failed operation on ``path``."""
    where = str(path)
    if error.errno in _EXHAUSTED:
        return ResourceError(
            _EXHAUSTED[error.errno],
            where=where,
            todo=EXHAUSTED_TODO,
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError("no permission", where=where, todo="check owner, mode and mount")
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
        return UsageError("not a usable file name", where=where, found=str(error.strerror))
    if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EISDIR):
        return CorruptError(
            "not a readable file", where=where, expected="a regular file", found=str(error.strerror)
        )
    return ResourceError(error.strerror or str(error) or "file operation failed", where=where)


@contextlib.contextmanager
def explaining(path: Path | str) -> Iterator[None]:
    """Turn an OSError inside into the BtrError for ``path``."""
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error


# -- reading ----------------------------------------------------------------------------------


def open_exact(path: Path, size: int) -> int:
    """A descriptor to read a regular file that has exactly ``size`` bytes.

    Raises:
        CorruptError: It is missing, not a regular file (links are not followed), or another size.
    """
    with explaining(path):
        # O_NONBLOCK: opening a pipe that stands in the file's place must not wait for a writer.
        fd = ops.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_status(path, os.fstat(fd), size)
    except BaseException:
        ops.close(fd)
        raise
    return fd


def check_status(path: Path, status: os.stat_result, size: int) -> None:
    """Refuse anything but a regular file of ``size`` bytes."""
    if not stat.S_ISREG(status.st_mode):
        raise CorruptError("not a regular file", where=str(path))
    if status.st_size != size:
        raise CorruptError("wrong file size", where=str(path), expected=f"{size} bytes",
                           found=f"{status.st_size} bytes")  # fmt: skip


def read_exact(fd: int, size: int, offset: int, path: Path) -> bytes:
    """``size`` bytes from ``offset``; the caller has checked ``size`` against the file's.

    Raises:
        CorruptError: The file ends before.
        ResourceError: The disk failed, or there is no memory for ``size`` bytes.
    """
    try:
        data = ops.pread(fd, size, offset)
        while len(data) < size:  # a signal or a 2 GiB limit can cut a read
            more = ops.pread(fd, size - len(data), offset + len(data))
            if not more:
                raise CorruptError("the file ends too early", where=str(path),
                                   expected=f"{size} bytes at {offset}",
                                   found=f"{len(data)} bytes")  # fmt: skip
            data += more
    except OSError as error:
        raise explain(error, path) from error
    except MemoryError:
        raise ResourceError("out of memory", where=str(path)) from None
    return data


class LocalFile:
    """A file open for reading, which must have exactly ``size`` bytes.

    Raises:
        CorruptError: It is missing, not a regular file, or has another size.
    """

    __slots__ = ("_close", "_fd", "path")

    def __init__(self, path: Path, size: int) -> None:
        self._fd, self._close, self.path = -1, ops.close, path
        self._fd = open_exact(path, size)

    def read(self, size: int, offset: int) -> bytes:
        """``size`` bytes from ``offset``; errors as :func:`read_exact`."""
        return read_exact(self._fd, size, offset, self.path)

    def __del__(self) -> None:
        # Closed by the last reference: another thread may still read when whoever opened the file
        # lets go of it, and a closed descriptor's number soon is another file's.
        if self._fd >= 0:
            self._close(self._fd)


def read_file(path: Path, limit: int) -> bytes:
    """A whole file of at most ``limit`` bytes.

    Raises:
        CorruptError: It is missing, not a regular file, or longer.
    """
    size = file_size(path)
    if size > limit:
        raise CorruptError("the file is too big", where=str(path),
                           expected=f"at most {limit} bytes", found=f"{size} bytes")  # fmt: skip
    fd = open_exact(path, size)
    try:
        return read_exact(fd, size, 0, path)
    finally:
        ops.close(fd)


def read_chunks(path: Path, size: int) -> Iterator[bytes]:
    """The bytes of a file of exactly ``size`` bytes, in pieces of :data:`CHUNK`."""
    fd = open_exact(path, size)
    try:
        for offset in range(0, size, CHUNK):
            yield read_exact(fd, min(CHUNK, size - offset), offset, path)
    finally:
        ops.close(fd)


def file_size(path: Path) -> int:
    """Bytes of a regular file; links are not followed."""
    with explaining(path):
        status = os.lstat(path)
    check_status(path, status, status.st_size)
    return status.st_size


def digest_file(path: Path, size: int) -> str:
    """SHA-256 in hex of a file of exactly ``size`` bytes."""
    digest = new_digest()
    for chunk in read_chunks(path, size):
        digest.update(chunk)
    return digest.hexdigest()


def new_digest() -> hashlib._Hash:
    """The digest that names a whole file's content."""
    return hashlib.sha256()


def list_tree(root: Path) -> Iterator[tuple[str, bool]]:
    """Everything below ``root``: (name relative to it with "/", is a folder), sorted by name.

    A folder comes before what is in it. Links are listed, never followed.
    """
    with explaining(root):
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    for entry in entries:
        folder = entry.is_dir(follow_symlinks=False)
        yield entry.name, folder
        if folder:
            for name, is_folder in list_tree(root / entry.name):
                yield f"{entry.name}/{name}", is_folder


# -- writing ----------------------------------------------------------------------------------


class NewFile:
    """A file that appears under its name when it is whole, and never before.

    A context manager: leaving it without :meth:`commit` removes what was written.

    Attributes:
        size: Bytes written so far.
        digest: Of these bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size, self.digest = path, 0, new_digest()
        self._temporary = path.with_name(path.name + TEMPORARY)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._whole = False
        remove(self._temporary)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with explaining(path):
            self._fd = ops.open(self._temporary, flags, 0o666)  # -1 once it is closed

    def write(self, data: bytes) -> None:
        """Append; small pieces are gathered so that each costs no call of its own."""
        self.size += len(data)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._pending)
        self._pending, self._pending_bytes = [], 0
        self.digest.update(data)
        view = memoryview(data)
        with explaining(self.path):
            while view:  # a write may be short without an error, when the disk is nearly full
                view = view[ops.write(self._fd, view) :]

    def commit(self) -> None:
        """Make the file and its name last; the caller may rely on them when this returns."""
        self._flush()
        with explaining(self.path):
            ops.fsync(self._fd)
            fd, self._fd = self._fd, -1
            ops.close(fd)
            ops.rename(self._temporary, self.path)
            self._whole = True
        sync_folder(self.path.parent)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._whole:
            return
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                ops.close(self._fd)
        # The first error is the one to report; a leftover is removed by the next run anyway.
        with contextlib.suppress(BtrError):
            remove(self._temporary)


def write_file(path: Path, data: bytes) -> None:
    """Write a whole small file, synced, under its name."""
    with NewFile(path) as new:
        new.write(data)
        new.commit()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file that may be large; ``target`` appears when it is whole."""
    with NewFile(target) as new:
        for chunk in read_chunks(source, file_size(source)):
            new.write(chunk)
        new.commit()


def sync_file(path: Path) -> None:
    """Make the content of a file last that other code wrote."""
    with explaining(path):
        fd = ops.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            ops.fsync(fd)
        finally:
            ops.close(fd)


sync_folder = sync_file  # what makes the names in a folder last is the same call


def make_folder(path: Path) -> None:
    """Make one folder and make its name last; it may exist."""
    with explaining(path), contextlib.suppress(FileExistsError):
        ops.mkdir(path, 0o777)
    sync_folder(path.parent)


def rename(source: Path, target: Path) -> None:
    """Rename and make the new name last; both in the same folder."""
    with explaining(target):
        ops.rename(source, target)
    sync_folder(target.parent)


def link(source: Path, target: Path) -> bool:
    """Give a file a second name, for good; False if the name is taken."""
    with explaining(target):
        try:
            ops.link(source, target)
        except FileExistsError:
            return False
    sync_folder(target.parent)
    return True


def remove(path: Path) -> None:
    """Remove a file or a link, if there is one."""
    with explaining(path), contextlib.suppress(FileNotFoundError):
        ops.unlink(path)


def remove_tree(root: Path, keep: frozenset[str] = frozenset()) -> None:
    """Remove all below ``root`` but the files named in ``keep`` and the folders they are in."""
    kept_folders = {
        str(folder) for name in keep for folder in Path(name).parents if folder != Path()
    }
    for name, is_folder in reversed(list(list_tree(root))):
        if not is_folder and name not in keep:
            remove(root / name)
        elif is_folder and name not in kept_folders:
            with explaining(root / name):
                ops.rmdir(root / name)


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Write a folder that libraries fill, beside ``folder``, and put it in its place at the end.

    After a kill at any moment ``folder`` or ``<folder>.old`` is whole; after an error inside,
    ``folder`` is untouched. Parents are made. Whoever may read a new folder may read its files:
    safetensors would keep its own for their owner.
    """
    beside, old = (folder.with_name(folder.name + end) for end in (".tmp", ".old"))
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    yield beside
    readable = beside.stat().st_mode & 0o666
    for file in beside.iterdir():
        if file.is_file():
            file.chmod(readable)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        rename(folder, old)
    rename(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


# -- locking ----------------------------------------------------------------------------------


class FileLock:
    """A kernel lock on a file: it ends with the process, however that ends.

    The file's text names the holder for the message to others; it means nothing by itself.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock.

        Raises:
            LockedError: Another process (or another lock in this one) has it.
        """
        self._path = path
        while True:
            with explaining(path):
                fd = ops.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                with explaining(path):
                    ops.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BtrError as error:
                holder = self._holder(fd)
                ops.close(fd)
                if isinstance(error.__cause__, BlockingIOError):
                    raise LockedError(
                        "another process is writing this store", where=str(path),
                        expected="no lock", found=holder, todo="wait until it ends, or stop it",
                    ) from None  # fmt: skip
                raise
            # The last holder may have removed the file between our open and our lock; then others
            # would lock a new file of that name, and ours guards nothing.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.lstat()):
                    break
            ops.close(fd)
        self._fd: int | None = fd
        try:
            with explaining(path):
                text = f"pid {os.getpid()} on {socket.gethostname()}\n".encode()
                os.ftruncate(fd, 0)
                os.pwrite(fd, text, 0)
        except BaseException:
            self.release()
            raise

    def _holder(self, fd: int) -> str:
        """The holder's own words; a holder that has just begun gets a moment to write them."""
        for _ in range(20):
            text = os.pread(fd, 512, 0).decode(errors="replace").strip()
            if text:
                return text
            time.sleep(0.01)
        return "a process that has not said its name"

    def release(self) -> None:
        """Give the lock back; safe to call twice."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(BtrError):
                remove(self._path)  # before the close: while it is still ours
            ops.close(fd)
