"""Compression's scratch files are outside the store; a disk that is full for them harms nothing."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import stub_store as stub
from stub_changes import CHANGES, COMPRESSIONS, contents, has_ended_well
from stub_processes import limited

from btr.errors import ResourceError
from forks import Worker, ended


class FullScratch:
    """Scratch files that no operation ``at`` or later has space for.

    Attributes:
        failed: Operations that had none.
    """

    def __init__(self, at: int) -> None:
        self.failed, self._left = 0, at

    def step(self, path: object) -> None:
        """One more operation."""
        self._left -= 1
        if self._left < 0:
            self.failed += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Only what the store does not write itself comes by these functions."""
        io_open, os_open, os_mkdir = io.open, os.open, os.mkdir

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "/scratch-" not in str(file) or "w" not in mode:
                return io_open(file, mode, *args, **kwargs)
            self.step(file)
            return _ScratchFile(io_open(file, mode, *args, **kwargs), self)

        def opened_by_number(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if "/scratch-" in str(path) and flags & os.O_CREAT:
                self.step(path)
            return os_open(path, flags, *args, **kwargs)

        def folder_made(path: Any, *args: Any, **kwargs: Any) -> None:
            if "/scratch-" in str(path):
                self.step(path)
            os_mkdir(path, *args, **kwargs)

        with (
            mock.patch("io.open", opened),
            mock.patch("os.open", opened_by_number),
            mock.patch("os.mkdir", folder_made),
        ):
            yield


class _ScratchFile:
    """A file whose writes may find no space, the last of them when it is closed."""

    def __init__(self, file: Any, disk: FullScratch) -> None:
        self._file, self._disk = file, disk

    def write(self, data: bytes) -> int:
        self._disk.step(self._file.name)
        written: int = self._file.write(data)
        return written

    def __enter__(self) -> _ScratchFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._disk.step(self._file.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def path(memory_folder: Path) -> Path:
    stub.build(memory_folder / "whole", 5)
    (memory_folder / "tried").mkdir()
    return memory_folder / "tried" / "store"


def new_contents(path: Path, name: str) -> list[tuple[str, bytes, bytes]]:
    """What the store has when it is compressed."""
    copy = path.parent.parent / "new"
    stub.copy_tree(path.parent.parent / "whole", copy)
    CHANGES[name].run(copy)
    return contents(copy)


@pytest.mark.parametrize(
    ("name", "operations"), [("compress", 2), ("compress --lossless", 2), ("compress --paper", 15)]
)
def test_no_space_for_scratch_files_at_any_operation(
    path: Path, figure: Callable[[str, int], None], name: str, operations: int
) -> None:
    new, at, failed = new_contents(path, name), 0, 1
    while failed:
        stub.copy_tree(path.parent.parent / "whole", path)
        before = stub.tree(path)
        disk = FullScratch(at)
        told = ""
        with disk.inside():
            try:
                CHANGES[name].run(path)
            except ResourceError as error:
                told = error.what
        failed = disk.failed
        assert told == ("the disk is full" if failed else "")
        assert (stub.tree(path) == before) == bool(failed)
        has_ended_well(path, name, new)
        shutil.rmtree(path)
        at += 1
    assert at > operations
    figure(f"operations on scratch files of {name}: a full disk from each on", at)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_files_that_may_not_grow_leave_the_store_as_it_was(
    path: Path, effort: Callable[[str, int, int], int], name: str
) -> None:
    """A limit cuts writes short wherever a file reaches it: those of numpy and C too."""
    new = new_contents(path, name)
    refused = 0
    limits = effort(f"limits of the size of a file, {name}", 10, 100)
    for i in range(limits):
        stub.copy_tree(path.parent.parent / "whole", path)
        before = stub.tree(path)
        # Most where the smallest files end: from nothing to more than the largest.
        limit = int(1600 * (i / (limits - 1)) ** 2)
        (result,) = ended(Worker(limited, name, path, limit))
        if result is not None:
            assert isinstance(result, ResourceError)
            assert result.what == "the file would exceed the allowed file size"
            assert stub.tree(path) == before
            refused += 1
        has_ended_well(path, name, new)
        shutil.rmtree(path)
    assert 0 < refused < limits
