"""What a build will take, against what it took."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import btr.planning
from btr.errors import InputError, UsageError
from btr.indexing import build_index
from btr.planning import estimate_build
from btr.readers.bert import BertReader
from btr.retrieval.dense import Embedder
from btr.store.sizes import store_sizes
from tiny_readers import make_reader


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    lines = (f'{{"id": "p{i}", "text": "{"the river is long " * (2 + i % 9)}{i}"}}\n'
             for i in range(240))  # fmt: skip
    (tmp_path / "in.jsonl").write_text("".join(lines))
    return tmp_path / "in.jsonl"


@pytest.mark.parametrize("sample", [20_000, 80])
def test_the_estimate_is_close_to_the_truth(
    tmp_path: Path, sources: Path, reader: BertReader, embedder: Embedder, sample: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(btr.planning, "SAMPLE", sample)
    found = estimate_build([sources], reader, embedder=embedder)
    manifest = build_index([sources], tmp_path / "s", reader, embedder=embedder)
    sizes = store_sizes(tmp_path / "s", manifest).by_part
    assert found.passages == manifest.passages == 240
    assert found.tokens == pytest.approx(manifest.tokens, rel=0.1)
    assert sum(found.bytes.values()) == pytest.approx(sum(sizes.values()), rel=0.1)
    for part in ("bits", "text", "index"):
        assert found.bytes[part] == pytest.approx(sizes[part], rel=0.15), part
    assert found.read_bytes == found.source_bytes == sources.stat().st_size
    assert min(found.hours, found.passages_per_s, found.gpu_hours) > 0


def test_what_was_not_read_is_reckoned_by_its_bytes(
    tmp_path: Path, reader: BertReader, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text("The river is long. " * 400)
    monkeypatch.setattr(btr.planning, "READ_SECONDS", 0.02)
    found = estimate_build([tmp_path], reader, embedder=embedder)
    assert found.read_bytes <= found.source_bytes
    monkeypatch.setattr(btr.planning, "READ_SECONDS", 120)
    whole = estimate_build([tmp_path], reader, embedder=embedder)
    assert found.passages == pytest.approx(whole.passages, rel=0.3)


def test_nothing_to_build_is_an_error(
    tmp_path: Path, reader: BertReader, embedder: Embedder, tokenizer: PreTrainedTokenizerBase,
    sources: Path,
) -> None:  # fmt: skip
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError):
        estimate_build([tmp_path / "empty.jsonl"], reader, embedder=embedder)
    plain = make_reader(tmp_path / "plain", tokenizer, "plain", 0)
    with pytest.raises(UsageError, match="plain reader"):
        estimate_build([sources], plain, embedder=embedder)
