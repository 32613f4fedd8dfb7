"""The store's tests don't wait for the disk, but for those that are about syncing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
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


@pytest.fixture
def effort(request: pytest.FixtureRequest) -> Callable[[str, int, int], int]:
    """How often a fault is tried: ``effort(what, every change, release)``.

    ``make torture`` takes the last number and prints it.
    """
    release = bool(request.config.getoption("--torture"))

    def chosen(what: str, gate: int, torture: int) -> int:
        if release:
            TRIED.append((what, torture))
        return torture if release else gate

    return chosen


TRIED: list[tuple[str, int]] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was tried how often."""
    for what, times in TRIED:
        terminalreporter.write_line(f"{times:>9,}  {what}")
