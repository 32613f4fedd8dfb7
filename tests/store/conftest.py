"""The store's tests don't wait for the disk, but for those that are about syncing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import stub_store as stub


@pytest.fixture(autouse=True)
def _unsynced() -> Iterator[None]:
    with stub.unsynced():
        yield


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A folder in memory where there is such a thing: processes sync there without a wait."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)
