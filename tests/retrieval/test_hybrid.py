from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from btr.data.passages import Passage
from btr.errors import IncompatibleError, InputError, UsageError
from btr.retrieval.dense import Embedder, quantize
from btr.retrieval.hybrid import Hit, HybridRetriever, build_indexes
from btr.store import PassageState, StoreSpec, StoreWriter, TokenStore, verify

PASSAGES = [
    Passage("0", "Plants turn light into chemical energy, and give off oxygen.", "Photosynthesis"),
    Passage("1", "It began in New Orleans around 1900; its players improvise.", "Jazz"),
    Passage("2", "He discovered X-rays in 1895.", "Wilhelm Röntgen"),
    Passage("3", "The Moon goes round the Earth once in about 27 days.", "Moon"),
    Passage("4", "An orbit is the path of one body round another.", "Orbit"),
]


class Store:
    """The part of a token store that retrieval uses, with a count of what was read."""

    def __init__(self, folder: Path, codes: np.ndarray) -> None:
        self.lexical_folders, self.codes, self.reads = [folder / "lexical"], codes, 0
        self.removed: set[int] = set()

    def __len__(self) -> int:
        return len(self.codes)

    def is_removed(self, ordinal: int) -> bool:
        return ordinal in self.removed

    def vectors(self) -> Iterator[np.ndarray]:
        self.reads += 1
        yield self.codes[:2]
        yield self.codes[2:]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(dtype=torch.float32)


@pytest.fixture
def store(tmp_path: Path, embedder: Embedder) -> Store:
    build_indexes(tmp_path / "lexical", iter(PASSAGES))
    return Store(tmp_path, quantize(embedder.encode_passages(PASSAGES)))


def test_both_rankings_are_fused(store: Store, embedder: Embedder) -> None:
    hits = HybridRetriever(store, embedder).search("How long is the moon's orbit?", 5)
    assert [hit.ordinal for hit in hits[:2]] == [3, 4]
    assert all(hit.dense_rank is not None for hit in hits)
    ranks = {hit.ordinal: (hit.lexical_rank, hit.dense_rank) for hit in hits}
    assert ranks[0][0] is None  # shares no word with the question
    for hit in hits:
        places = [rank for rank in (hit.lexical_rank, hit.dense_rank) if rank]
        assert hit.score == pytest.approx(sum(1 / (60 + rank) for rank in places))


def test_words_that_no_passage_has_leave_it_to_meaning(store: Store, embedder: Embedder) -> None:
    (hit,) = HybridRetriever(store, embedder).search("trumpet swing music", 1)
    assert hit == Hit(1, pytest.approx(1 / 61), None, 1)


def test_without_an_embedder_it_is_lexical(store: Store) -> None:
    hits = HybridRetriever(store, None).search("the moon's orbit", 5)
    assert {hit.ordinal for hit in hits} == {3, 4}
    assert [hit.lexical_rank for hit in hits] == [1, 2]
    assert all(hit.dense_rank is None for hit in hits)
    assert store.reads == 0


def test_indexes_are_loaded_once_and_when_needed(store: Store, embedder: Embedder) -> None:
    retriever = HybridRetriever(store, embedder)
    assert store.reads == 0
    first = retriever.search("moon", 3)
    assert retriever.search("moon", 3) == first
    assert store.reads == 1


def test_questions_without_a_word_find_nothing(store: Store, embedder: Embedder) -> None:
    retriever = HybridRetriever(store, embedder)
    assert retriever.search("", 5) == retriever.search(" \n", 5) == []
    with pytest.raises(UsageError, match="at least 1"):
        retriever.search("moon", 0)


def test_more_passages_than_the_usual_depth(tmp_path: Path) -> None:
    passages = [Passage(str(i), f"the moon number {i}") for i in range(150)]
    build_indexes(tmp_path / "lexical", passages)
    store = Store(tmp_path, np.ones((150, 384), np.int8))
    assert len(HybridRetriever(store, None).search("moon", 140)) == 140


def test_removed_passages_are_not_found_and_leave_room_for_others(tmp_path: Path) -> None:
    build_indexes(tmp_path / "lexical", [Passage(str(i), f"the moon {i}") for i in range(400)])
    store = Store(tmp_path, np.ones((400, 384), np.int8))
    store.removed = set(range(0, 350))
    hits = HybridRetriever(store, None).search("moon", 20)
    assert [hit.ordinal for hit in hits] == list(range(350, 370))
    assert len(HybridRetriever(store, None).search("moon", 100)) == 50


def test_an_index_of_other_passages_is_refused(tmp_path: Path, embedder: Embedder) -> None:
    build_indexes(tmp_path / "lexical", PASSAGES)
    with pytest.raises(IncompatibleError, match="expected 4 passages, found 5"):
        HybridRetriever(Store(tmp_path, np.ones((4, 384), np.int8)), None).search("moon", 1)
    with pytest.raises(IncompatibleError, match="does not fit the dense index"):
        HybridRetriever(Store(tmp_path, np.ones((5, 16), np.int8)), embedder).search("moon", 1)


def test_a_store_without_indexes_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no lexical index"):
        HybridRetriever(Store(tmp_path, np.ones((5, 16), np.int8)), None).search("moon", 1)


def test_it_works_over_a_real_store(tmp_path: Path, embedder: Embedder) -> None:
    codes = quantize(embedder.encode_passages(PASSAGES))
    spec = StoreSpec(
        kind="bits", dim=8, split_layer=1, fingerprint={}, dense_dim=embedder.dim,
        passages_per_shard=2, sources_digest="s", settings={},
    )  # fmt: skip
    states = [PassageState(np.zeros((2, 1), np.uint8), 0, False)] * 2
    with StoreWriter.create(tmp_path / "store", spec) as writer:
        for first in (0, 2, 4):
            shard = PASSAGES[first : first + 2]
            writer.write_shard(shard, states[: len(shard)], codes[first : first + 2])
        writer.finish({}, build_indexes, None)
    with TokenStore.open(tmp_path / "store") as store:
        hits = HybridRetriever(store, embedder).search("How long is the moon's orbit?", 2)
        assert [passage.title for passage in store.passages([h.ordinal for h in hits])] == [
            "Moon",
            "Orbit",
        ]
    # Searching left nothing behind.
    assert verify(tmp_path / "store").damage == ()
