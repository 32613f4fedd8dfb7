"""A small deterministic store for the tests, and the ways to break a build of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from btr import files
from btr.data.passages import Passage
from btr.store import Manifest, PassageState, StoreSpec, StoreWriter

SPEC = StoreSpec(
    kind="bits", dim=16, split_layer=1, fingerprint={"tokenizer": "t1", "weights": "w1"},
    dense_dim=4, passages_per_shard=2, sources_digest="sources",
    settings={"reader": "stub", "ratio": 0.5, "query_budget": 40, "lossless": True, "note": None},
)  # fmt: skip


def spec(**changes: Any) -> StoreSpec:
    """The stub's spec with some fields changed."""
    return StoreSpec(**SPEC.as_dict() | changes)


def passage(i: int) -> Passage:
    return Passage(f"id-{i:05d}", f"Text {i} — “é”.", f"Title {i % 3}", "folder/a.txt", 7 * i)


def state(i: int, row_bytes: int = 2) -> PassageState:
    values = np.arange(row_bytes * (2 + i % 3)) * 37 + i
    return PassageState(values.astype(np.uint8).reshape(-1, row_bytes), i % 2, i % 5 == 4)


def vectors(first: int, last: int) -> np.ndarray:
    return (np.arange(4 * first, 4 * last) * 11 % 255 - 127).astype(np.int8).reshape(-1, 4)


def derive(folder: Path, passages: Iterator[Passage], first: int) -> None:
    """Stand in for a lexical index: a file."""
    (folder / "index.bin").write_text(f"{first}\n" + "\n".join(p.id for p in passages))


def reject(file: Path) -> None:
    """Leave a list of rejected lines, unless there is one."""
    if not file.exists():
        file.write_text('{"line": 3}\n')


def build(
    path: Path, n: int = 5, *, of: StoreSpec = SPEC, resume: bool = False, rejects: bool = True
) -> Manifest:
    """Build, or go on building, the stub store of ``n`` passages."""
    rejected = path.parent / "rejects.jsonl"
    if rejects:
        reject(rejected)
    with StoreWriter.create(path, of, resume=resume) as writer:
        for first in range(writer.committed, n, of.passages_per_shard):
            numbers = range(first, min(n, first + of.passages_per_shard))
            writer.write_shard(
                [passage(i) for i in numbers],
                [state(i, of.row_bytes) for i in numbers],
                vectors(numbers.start, numbers.stop),
            )
        return writer.finish({"stored": n, "rejected": 1}, derive, rejected if rejects else None)


def tree(path: Path) -> dict[str, bytes]:
    """All files of a store."""
    return {
        name: (path / name).read_bytes() for name, folder in files.list_tree(path) if not folder
    }


def copy_tree(source: Path, target: Path) -> None:
    """A folder's copy."""
    shutil.copytree(source, target)


# -- operations that fail -----------------------------------------------------------------------

CHANGING = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir", "database")
Hook = Callable[[str, tuple[Any, ...]], None]


def hooked(before: Hook) -> files.Files:
    """Operations that call ``before(name, arguments)`` first; nothing is ever really synced."""
    fake, real = files.Files(), files.Files()

    def wrap(name: str) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            before(name, args)
            return None if name == "fsync" else getattr(real, name)(*args, **kwargs)

        return operation

    for name in CHANGING:
        setattr(fake, name, wrap(name))
    return fake


@contextlib.contextmanager
def operations(fake: files.Files) -> Iterator[None]:
    """Use these operations inside."""
    real, files.ops = files.ops, fake
    try:
        yield
    finally:
        files.ops = real


def unsynced() -> contextlib.AbstractContextManager[None]:
    """Real operations without the wait for the disk."""
    return operations(hooked(lambda name, args: None))


class Crash(BaseException):
    """The process is gone: not an Exception, so that nothing handles it."""


class CrashingFiles(files.Files):
    """Operations of a process that dies at operation ``at``.

    The operation itself is not done, but half of a write is. All later operations fail too: a dead
    process cleans nothing up. Its descriptors are closed as the kernel would do.
    """

    def __init__(self, at: int) -> None:
        self.count, self._at, self._descriptors = 0, at, set[int]()
        fake = hooked(self._step)
        for name in CHANGING:
            setattr(self, name, getattr(fake, name))
        opened = fake.open

        def open_(*args: Any) -> int:
            fd = opened(*args)
            self._descriptors.add(fd)
            return fd

        def close(fd: int) -> None:
            if fd in self._descriptors:
                self._descriptors.remove(fd)
                os.close(fd)

        self.open, self.close = open_, close  # type: ignore[assignment]

    def _step(self, name: str, args: tuple[Any, ...]) -> None:
        if self.count == self._at and name == "write":
            os.write(args[0], args[1][: len(args[1]) // 2])
        if self.count >= self._at:
            for fd in list(self._descriptors):
                self.close(fd)
            raise Crash
        self.count += 1


def failing(at: int, code: int) -> tuple[files.Files, list[str]]:
    """Operations of which all that need space fail from number ``at`` on; and the names of those
    that did."""
    count, failed = 0, list[str]()

    def before(name: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if name not in ("write", "fsync", "mkdir", "database") and not (
            name == "open" and args[1] & os.O_CREAT
        ):
            return
        count += 1
        if count <= at:
            return
        failed.append(name)
        if name == "database":
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = 13 if code == errno.ENOSPC else 10
            raise error
        raise OSError(code, os.strerror(code))

    return hooked(before), failed
