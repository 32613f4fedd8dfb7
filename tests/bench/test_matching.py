"""What blocked matching is measured by."""

from __future__ import annotations

import numpy as np
import pytest

import btr.bench.matching
from btr.bench.matching import measure
from btr.occurrences import blocks_of


def clustered(n: int) -> np.ndarray:
    draw = np.random.default_rng(5)
    centres = draw.integers(0, 256, (6, 16), np.uint8)
    flips = np.packbits(draw.random((n, 128)) < 0.02, axis=1)
    return centres[draw.integers(0, 6, n)] ^ flips


def test_one_block_finds_every_nearest() -> None:
    found = measure("word", clustered(500), 0.2)
    assert (found.recall, found.occurrences) == (1.0, 500)
    assert 0 < found.distance == found.nearest < 16
    assert 0 < found.changed == found.changed_whole < 0.02


def test_blocks_lose_some(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (3000, 16), np.uint8)
    monkeypatch.setattr(btr.bench.matching, "BLOCK", 300)
    monkeypatch.setattr(btr.bench.matching, "blocks_of", lambda rows: blocks_of(rows, 300))
    found = measure("word", rows, 0.2)
    # Of points that lie anywhere a tenth of all is looked at; their direction helps a little.
    assert 0.1 < found.recall < 0.5
    assert found.distance > found.nearest
    assert found.changed > found.changed_whole > 0
