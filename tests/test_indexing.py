"""Building a store: figures on the way, the same bytes every time, nothing left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from btr.answering import Answerer
from btr.data.passages import Passage
from btr.errors import IncompatibleError, InputError, RejectsError, UsageError
from btr.indexing import IndexProgress, build_index
from btr.readers.bert import BertReader
from btr.retrieval.dense import Embedder, quantize
from btr.retrieval.hybrid import HybridRetriever, build_indexes
from btr.store.change import compact, remove_passages
from btr.store.check import verify
from btr.store.reader import TokenStore
from btr.store.sizes import store_sizes
from tiny_readers import make_reader

LINES = "".join(f'{{"id": "p{i}", "title": "T", "text": "It is {i} long."}}\n' for i in range(10))


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture(scope="module")
def readers(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> dict[str, BertReader]:
    folder = tmp_path_factory.mktemp("readers")
    layers = {"plain": 0, "decomposed": 2, "btr": 2}
    return {m: make_reader(folder / m, tokenizer, m, k) for m, k in layers.items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "in.jsonl"
    file.write_text(LINES)
    return file


def content(store: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize("mode", ["btr", "decomposed"])
def test_a_store_holds_what_the_reader_and_the_encoder_make(
    tmp_path: Path, source: Path, readers: dict[str, BertReader], embedder: Embedder, mode: str
) -> None:
    reader = readers[mode]
    manifest = build_index([source], tmp_path / "s", reader, embedder=embedder, shard_passages=4)
    passages = [Passage(f"p{i}", f"It is {i} long.", "T", f"in.jsonl#{i + 1}") for i in range(10)]
    assert manifest.passages == 10
    assert len(manifest.shards) == 3
    with TokenStore.open(tmp_path / "s", fingerprint=reader.fingerprint) as store:
        assert store.passages(range(10)) == passages
        wanted = [s for at in range(0, 10, 4) for s in reader.encode(passages[at : at + 4])]
        for found, state in zip(store.states(range(10)), wanted, strict=True):
            assert np.array_equal(found.rows, state.rows)
            assert found.text_start == state.text_start
        vectors = [quantize(embedder.encode_passages(passages[at : at + 4])) for at in (0, 4, 8)]
        assert np.array_equal(np.concatenate(list(store.vectors())), np.concatenate(vectors))
        settings = store.manifest.spec.settings
        assert (settings["reader"], settings["mode"]) == (reader.name, mode)
        sizes = store_sizes(store.path, store.manifest)
    assert sum(sizes.by_part.values()) == sum(map(len, content(tmp_path / "s").values()))
    assert verify(tmp_path / "s").ok


def test_progress_counts_to_the_end(
    tmp_path: Path, source: Path, readers: dict[str, BertReader], embedder: Embedder
) -> None:
    seen: list[IndexProgress] = []
    manifest = build_index(
        [source], tmp_path / "s", readers["btr"], embedder=embedder, shard_passages=4,
        progress=seen.append,
    )  # fmt: skip
    stages = [s.stage for s in seen]
    assert sorted(set(stages), key=stages.index) == ["hashing sources", "encoding", "indexing"]
    assert (seen[-1].passages, seen[-1].tokens) == (10, manifest.tokens)
    assert seen[-1].source_bytes == seen[-1].total_bytes == len(LINES)
    assert [s.passages for s in seen] == sorted(s.passages for s in seen)


@pytest.mark.parametrize("fail_at", [0, 4, 7, 9])
def test_resuming_ends_in_the_same_bytes(
    tmp_path: Path, source: Path, readers: dict[str, BertReader], embedder: Embedder, fail_at: int
) -> None:
    class StopError(Exception):
        pass

    def stop(state: IndexProgress) -> None:
        if state.stage == "encoding" and state.passages > fail_at:
            raise StopError

    build_index([source], tmp_path / "whole", readers["btr"], embedder=embedder, shard_passages=4)
    with pytest.raises(StopError):
        build_index([source], tmp_path / "s", readers["btr"], embedder=embedder,
                    shard_passages=4, progress=stop)  # fmt: skip
    assert not (tmp_path / "s").exists()
    skipped: list[int] = []
    build_index([source], tmp_path / "s", readers["btr"], embedder=embedder, shard_passages=4,
                resume=True, progress=lambda state: skipped.append(state.skipped))  # fmt: skip
    assert skipped[-1] == fail_at // 4 * 4
    assert content(tmp_path / "s") == content(tmp_path / "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "s", "whole"]


def test_resuming_with_changed_sources_is_refused(
    tmp_path: Path, source: Path, readers: dict[str, BertReader], embedder: Embedder
) -> None:
    def stop(state: IndexProgress) -> None:
        if state.passages > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index([source], tmp_path / "s", readers["btr"], embedder=embedder,
                    shard_passages=4, progress=stop)  # fmt: skip
    source.write_text(LINES.replace("long", "wide"))
    with pytest.raises(IncompatibleError, match="begun with another sources_digest"):
        build_index([source], tmp_path / "s", readers["btr"], embedder=embedder,
                    shard_passages=4, resume=True)  # fmt: skip
    with pytest.raises(UsageError, match="an unfinished build is here"):
        build_index([source], tmp_path / "s", readers["btr"], embedder=embedder)


def test_a_build_that_came_to_nothing_leaves_nothing(
    tmp_path: Path, source: Path, readers: dict[str, BertReader], embedder: Embedder
) -> None:
    source.write_text("[]\n")
    with pytest.raises(InputError, match="the sources give no passages"):
        build_index([source], tmp_path / "s", readers["btr"], embedder=embedder)
    # But for the list of what was wrong.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "s.rejects.jsonl"]
    source.write_text(LINES)
    build_index([source], tmp_path / "s", readers["btr"], embedder=embedder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "s"]


def test_rejects_over_the_limit_are_an_error_after_the_store_is_there(
    tmp_path: Path, source: Path, readers: dict[str, BertReader], embedder: Embedder
) -> None:
    source.write_text(LINES + "[]\nno\n")
    with pytest.raises(RejectsError, match="expected at most 1, found 2") as caught:
        build_index([source], tmp_path / "s", readers["btr"], embedder=embedder, max_rejects=1)
    assert str(tmp_path / "s" / "rejects.jsonl") in caught.value.todo
    assert len((tmp_path / "s" / "rejects.jsonl").read_text().splitlines()) == 2
    with TokenStore.open(tmp_path / "s") as store:
        assert len(store) == 10
        assert store.manifest.counts["rejected"] == 2
    shutil.rmtree(tmp_path / "s")
    build_index([source], tmp_path / "s", readers["btr"], embedder=embedder, max_rejects=2)


def test_a_plain_reader_stores_nothing(
    tmp_path: Path, source: Path, readers: dict[str, BertReader], embedder: Embedder
) -> None:
    with pytest.raises(UsageError, match="a plain reader has no states to store"):
        build_index([source], tmp_path / "s", readers["plain"], embedder=embedder)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def lines(*numbers: int, word: str = "long") -> str:
    return "".join(
        f'{{"id": "p{i}", "title": "T", "text": "It is {i} {word}."}}\n' for i in numbers
    )


def test_added_removed_and_compacted_equals_built_from_scratch(
    tmp_path: Path, readers: dict[str, BertReader], embedder: Embedder
) -> None:
    reader, store = readers["btr"], tmp_path / "s"
    (tmp_path / "one.jsonl").write_text(lines(0, 1, 2, 3, 4))
    (tmp_path / "two.jsonl").write_text(lines(3, 5, 6, 7, 8, 9))
    build_index([tmp_path / "one.jsonl"], store, reader, embedder=embedder, shard_passages=4)
    manifest = build_index(
        [tmp_path / "two.jsonl"], store, reader, embedder=embedder, shard_passages=4, add=True
    )
    assert manifest.counts["known"] == 1  # p3 was there
    with TokenStore.open(store) as opened:
        hits = HybridRetriever(opened, embedder).search("It is 9 long", 3)
        assert opened.passages([hits[0].ordinal])[0].id == "p9"
        gone = [opened.ordinal("p1"), opened.ordinal("p9")]
    remove_passages(store, gone)
    with TokenStore.open(store) as opened:
        found = {hit.ordinal for hit in HybridRetriever(opened, embedder).search("It is 9", 50)}
        assert len(found) == 8
        assert not found & set(gone)
    compact(store, build_indexes)
    assert verify(store).ok
    (tmp_path / "all.jsonl").write_text(lines(0, 2, 3, 4, 5, 6, 7, 8))
    build_index([tmp_path / "all.jsonl"], tmp_path / "t", reader, embedder=embedder,
                shard_passages=4)  # fmt: skip
    with TokenStore.open(store) as mine, TokenStore.open(tmp_path / "t") as scratch:
        texts = [[(p.id, p.title, p.text) for p in s.passages(range(8))] for s in (mine, scratch)]
        assert texts[0] == texts[1]
        for a, b in zip(mine.states(range(8)), scratch.states(range(8)), strict=True):
            assert np.array_equal(a.rows, b.rows)
        found = set()
        for question in ("It is 9 long", "what is 4?", "It", "what is 7 long?", "is it 2"):
            replies = []
            for opened in (mine, scratch):
                answerer = Answerer(opened, reader, HybridRetriever(opened, embedder))
                reply = answerer.ask(question, passages=5)
                answers = [
                    (answer.text, answer.probability, answer.passage.id, answer.start, answer.end)
                    for answer in reply.reading.answers
                ]
                replies.append((reply.hits, answers, reply.reading.no_answer))
            assert replies[0] == replies[1]
            assert len(replies[0][1]) == 5
            found |= {text for text, *_ in replies[0][1]}
        assert len(found) > 5


def test_another_text_of_a_known_id_is_refused_or_replaces_it(
    tmp_path: Path, source: Path, readers: dict[str, BertReader], embedder: Embedder
) -> None:
    reader, store = readers["btr"], tmp_path / "s"
    build_index([source], store, reader, embedder=embedder, shard_passages=4)
    (tmp_path / "new.jsonl").write_text(lines(2, 3) + lines(4, 11, word="wide"))
    before = content(store)
    with pytest.raises(InputError, match=r"another passage of this id: id 'p4'.*--replace"):
        build_index([tmp_path / "new.jsonl"], store, reader, embedder=embedder, shard_passages=4,
                    add=True)  # fmt: skip
    assert content(store) == before
    manifest = build_index([tmp_path / "new.jsonl"], store, reader, embedder=embedder,
                           shard_passages=4, add=True, replace_known=True)  # fmt: skip
    assert (manifest.passages, manifest.removed) == (11, 1)
    with TokenStore.open(store) as opened:
        (passage,) = opened.passages([opened.ordinal("p4")])
    assert passage.text == "It is 4 wide."
    (tmp_path / "new.jsonl").write_text(lines(2, 3))
    again = build_index([tmp_path / "new.jsonl"], store, reader, embedder=embedder,
                        shard_passages=4, add=True)  # fmt: skip
    assert again == manifest  # nothing was new
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "new.jsonl", "s"]
