from __future__ import annotations

from pathlib import Path

import pytest

from btr.bench.random_reader import write_random_reader
from btr.bench.t5_shapes import SHAPES
from btr.data.passages import Passage
from btr.readers.base import Mode
from btr.readers.load import load_reader


@pytest.mark.parametrize(("mode", "row_bytes"), [("btr", 256 // 8 + 1), ("decomposed", 2 * 256)])
def test_a_random_reader_reads(tmp_path: Path, mode: Mode, row_bytes: int) -> None:
    write_random_reader(tmp_path / "r", "tiny", scale="rms8")
    reader = load_reader(str(tmp_path / "r"), mode)
    assert reader.split_layer == SHAPES["tiny"].split_layer
    passage = Passage("p", "The bridge was built by king Olaf.", "Bridge")
    (state,) = reader.encode([passage])
    (ids,) = reader.token_ids([passage])
    assert state.rows.shape == (len(ids), row_bytes)
    assert reader.read("who built it?", [passage], [state]).answers is not None
