"""What a build will take, against what it took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

import btr.indexing
import btr.planning
from btr.data.passages import Passage
from btr.errors import InputError, UsageError
from btr.indexing import build_index
from btr.planning import estimate_build
from btr.readers.bert import BertReader
from btr.retrieval import lexical
from btr.retrieval.dense import Embedder
from btr.store.format import PassageState
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


class Clock:
    """Time that passes as work is done: what each kind of it takes is laid down here.

    Attributes:
        seconds: By kind.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seconds = dict.fromkeys(("reading", "encoding", "embedding", "indexing"), 0.0)
        patch.setattr(btr.planning, "time", self)
        encode, embed = BertReader.encode, Embedder.encode_passages
        read, build = btr.planning.read_passages, lexical.build

        def encoded(reader: BertReader, passages: Sequence[Passage]) -> list[PassageState]:
            states = encode(reader, passages)
            self.seconds["encoding"] += 1e-3 * sum(len(state.rows) for state in states)
            return states

        def embedded(embedder: Embedder, passages: Sequence[Passage]) -> NDArray[np.float32]:
            self.seconds["embedding"] += 1e-4 * sum(len(passage.text) for passage in passages)
            return embed(embedder, passages)

        def passages_read(*args: Any, **kwargs: Any) -> Iterator[Passage]:
            for passage in read(*args, **kwargs):
                self.seconds["reading"] += 8e-3
                yield passage

        def built(folder: Path, passages: Iterable[Passage], **kwargs: Any) -> None:
            taken = list(passages)
            self.seconds["indexing"] += 8e-3 * len(taken)
            build(folder, taken, **kwargs)

        patch.setattr(BertReader, "encode", encoded)
        patch.setattr(Embedder, "encode_passages", embedded)
        patch.setattr(btr.planning, "read_passages", passages_read)
        patch.setattr(btr.indexing, "read_passages", passages_read)
        patch.setattr(lexical, "build", built)

    def perf_counter(self) -> float:
        """What a clock would show."""
        return sum(self.seconds.values())


@pytest.mark.parametrize(("sample", "read_s"), [(20_000, 120.0), (80, 0.8)])
def test_the_hours_are_those_that_the_build_takes(
    tmp_path: Path, sources: Path, reader: BertReader, embedder: Embedder, sample: int,
    read_s: float, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(btr.planning, "SAMPLE", sample)
    monkeypatch.setattr(btr.planning, "READ_SECONDS", read_s)
    lines = sources.read_text().splitlines(keepends=True)
    sources = tmp_path / "many"
    sources.mkdir()
    for i in range(30):
        (sources / f"{i:02d}.jsonl").write_text("".join(lines[8 * i : 8 * i + 8]))
    clock = Clock(monkeypatch)
    found = estimate_build([sources], reader, embedder=embedder, tflops=3.0)
    clock.seconds = dict.fromkeys(clock.seconds, 0.0)
    manifest = build_index([sources], tmp_path / "s", reader, embedder=embedder)
    took = clock.seconds
    assert min(took.values()) > 0.12 * clock.perf_counter()  # none too small to be missed
    assert 3600 * found.hours == pytest.approx(clock.perf_counter(), rel=0.1)
    encoding = took["encoding"] + took["embedding"]
    assert found.passages_per_s == pytest.approx(manifest.passages / encoding, rel=0.1)
    operations = 2 * manifest.tokens * (reader.lower_parameters + embedder.parameters)
    assert 3600 * found.gpu_hours == pytest.approx(operations / 3e12, rel=0.1)


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
