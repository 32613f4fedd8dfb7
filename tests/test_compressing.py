"""Offline compression: what is shared and merged, and that nothing else changes."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

import btr.coding_shards
import btr.compressing
import btr.occurrences
from btr.bits import hamming
from btr.compressing import Compression, Recompression, compress
from btr.data.passages import Passage
from btr.errors import CorruptError, IncompatibleError, UsageError
from btr.indexing import build_index
from btr.occurrences import blocks_of, merge_occurrences
from btr.readers.bert import BertReader
from btr.retrieval.dense import Embedder
from btr.retrieval.hybrid import build_indexes
from btr.stop_words import is_shared, shared_ids
from btr.store.change import compact, remove_passages
from btr.store.check import verify
from btr.store.entropy import (
    CLASSES,
    DRIFTS,
    BitModel,
    class_of,
    kernels,
    nominal,
    probabilities,
)
from btr.store.format import PassageState
from btr.store.neighbours import NeighbourModel
from btr.store.reader import TokenStore
from btr.store.sizes import store_sizes
from tiny_readers import make_reader


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def lines(first: int, last: int) -> str:
    words = ("the river", "a lake", "of snow", "the stone bridge", "king harald", "birds rest")
    return "".join(
        f'{{"id": "p{i}", "text": "In {i}, {words[i % 6]} was {words[i % 5]} of {i * i}."}}\n'
        for i in range(first, last)
    )


@pytest.fixture
def store(tmp_path: Path, reader: BertReader, embedder: Embedder) -> Path:
    (tmp_path / "in.jsonl").write_text(lines(0, 40))
    build_index([tmp_path / "in.jsonl"], tmp_path / "s", reader, embedder=embedder,
                shard_passages=16)  # fmt: skip
    return tmp_path / "s"


def rows_of(path: Path, reader: BertReader) -> tuple[np.ndarray, np.ndarray]:
    """Rows and token ids of all tokens."""
    with TokenStore.open(path, fingerprint=reader.fingerprint) as store:
        every = range(len(store))
        rows = np.concatenate([state.rows for state in store.states(every)])
        ids = np.concatenate(reader.token_ids(store.passages(every)))
    return rows, ids


def test_stop_words_share_their_majority_and_nothing_else_changes(
    store: Path, reader: BertReader
) -> None:
    before, ids = rows_of(store, reader)
    manifest = compress(store, reader, Compression(ratio=0, neighbours=False))
    after, _ = rows_of(store, reader)
    shared = shared_ids(reader.vocabulary)
    assert {reader.vocabulary[i] for i in np.unique(ids) if shared[i]} >= {"the", "of", "."}
    assert np.array_equal(after[~shared[ids]], before[~shared[ids]])
    for token in np.unique(ids[shared[ids]]):
        positive = np.unpackbits(before[ids == token], axis=1).mean(0) > 0.5
        assert np.all(np.unpackbits(after[ids == token], axis=1) == positive)
    assert manifest.compression["shared_tokens"] == int(shared[ids].sum())
    assert verify(store).ok


def test_neighbours_tell_more_of_a_stop_word_than_its_majority(
    store: Path, reader: BertReader
) -> None:
    before, ids = rows_of(store, reader)
    shared = shared_ids(reader.vocabulary)[ids]
    shutil.copytree(store, store.with_name("copy"))
    errors = []
    for path, neighbours in ((store.with_name("copy"), False), (store, True)):
        manifest = compress(path, reader, Compression(ratio=0, neighbours=neighbours))
        assert manifest.compression["neighbours"] is neighbours
        after, _ = rows_of(path, reader)
        assert np.array_equal(after[~shared], before[~shared])
        errors.append(np.unpackbits(after[shared] ^ before[shared], axis=1).mean())
        assert verify(path).ok
    assert 0 < errors[1] < 0.8 * errors[0]


def test_tokens_that_their_neighbours_guess_best_are_left_out(
    store: Path, reader: BertReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(btr.compressing, "BASED", 4)
    before, ids = rows_of(store, reader)
    shared = shared_ids(reader.vocabulary)[ids]
    for path, ratio in ((store.with_name("copy"), 0.0), (store, 0.4)):
        if ratio == 0:
            shutil.copytree(store, path)
        manifest = compress(path, reader, Compression(ratio=ratio))
        after, _ = rows_of(path, reader)
        changed = np.any(after != before, axis=1) & ~shared
        left_out = manifest.compression["left_out_tokens"]
        assert changed.sum() <= left_out <= ratio * (~shared).sum()
        assert bool(changed.any()) is (ratio > 0)
        assert verify(path).ok
    sizes = store_sizes(store, manifest)
    total = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    assert sum(sizes.by_part.values()) == total


@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_other_passages_can_be_compressed_as_a_store_is(
    store: Path, reader: BertReader, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(btr.compressing, "BASED", 4)
    with TokenStore.open(store) as opened:
        ordinals = range(len(opened))
        passages, before = opened.passages(ordinals), opened.states(ordinals)
    manifest = compress(store, reader, Compression(ratio=ratio, lossless=True))
    assert bool(manifest.compression["left_out_tokens"]) is (ratio > 0)
    new = Passage("new", "Quartz and zebras, of the orchard", "The zebra ate the quartz.")
    with TokenStore.open(store) as opened:
        after = opened.states(ordinals)
        assert opened.coding is not None
        other = Recompression(opened.manifest, opened.coding, len(reader.vocabulary))
    ids = [np.asarray(row, np.int64) for row in reader.token_ids([*passages, new])]
    made = other.decode(other.encode([*before, *reader.encode([new])], ids))
    assert len(made) == len(after) + 1
    for mine, kept in zip(made, after, strict=False):
        assert mine.rows.tobytes() == kept.rows.tobytes()
        assert mine.guesses is not None
        assert kept.guesses is not None
        assert mine.guesses.places.tolist() == kept.guesses.places.tolist()
        assert mine.guesses.levels.tobytes() == kept.guesses.levels.tobytes()
    known = set(other.tables.ids[: len(opened.coding.ids)].tolist())
    assert not set(ids[-1].tolist()) <= known, "the new passage has words that the corpus lacks"
    assert len(made[-1].rows) == len(ids[-1])


def test_what_was_worked_out_once_comes_out_again(store: Path, reader: BertReader) -> None:
    compress(store, reader, Compression(ratio=0))
    before, _ = rows_of(store, reader)
    compress(store, reader, Compression(ratio=0, lossless=True))
    after, _ = rows_of(store, reader)
    assert np.array_equal(after, before)


def test_the_closest_occurrences_of_an_id_merge(store: Path, reader: BertReader) -> None:
    before, ids = rows_of(store, reader)
    manifest = compress(store, reader, Compression(ratio=0.25, neighbours=False))
    after, _ = rows_of(store, reader)
    shared = shared_ids(reader.vocabulary)
    merged = 0
    for token in np.unique(ids[~shared[ids]]):
        mine = ids == token
        wanted, _ = merge_occurrences(before[mine], 0.25)
        distinct = len(np.unique(after[mine], axis=0))
        assert distinct <= len(np.unique(before[mine], axis=0))
        merged += len(wanted)
    assert manifest.compression["merged_vectors"] == merged > 5
    sizes = store_sizes(store, manifest)
    total = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    assert sum(sizes.by_part.values()) == total
    assert min(sizes.bits, sizes.refs, sizes.codebook) > 0
    assert verify(store).ok


def test_links_are_those_of_the_definition() -> None:
    rows = np.random.default_rng(2).integers(0, 256, (9, 4), np.uint8)
    merged, groups = merge_occurrences(rows, 0.34)
    distance = hamming(rows[::2], rows[1::2])
    nearest = distance.min(1)
    linked = sorted(range(5), key=lambda i: (nearest[i], i))[:3]
    partners = {int(distance[i].argmin()) for i in linked}
    assert len(merged) == len(partners)
    for i in linked:
        assert groups[2 * i] == groups[2 * int(distance[i].argmin()) + 1] >= 0
    assert np.count_nonzero(groups >= 0) == 3 + len(partners)
    assert [x.shape for x in merge_occurrences(rows[:1], 0.5)] == [(0, 4), (1,)]


def test_many_occurrences_are_matched_in_blocks() -> None:
    draw = np.random.default_rng(5)
    centres = draw.integers(0, 256, (40, 16), np.uint8)
    flips = np.packbits(draw.random((6000, 128)) < 0.02, axis=1)
    rows = centres[draw.integers(0, 40, 6000)] ^ flips
    whole, _ = merge_occurrences(rows, 0.2)
    assert [len(places) for places in blocks_of(rows, 1000)] == [1000] * 6
    merged, groups = merge_occurrences(rows, 0.2, 1000)
    lost = 6000 - (np.count_nonzero(groups < 0) + len(merged))
    assert lost == 1200
    assert groups.max() == len(merged) - 1
    member = rows[groups >= 0]
    apart = np.unpackbits(member ^ merged[groups[groups >= 0]], axis=1).sum(1).mean()
    assert apart < 4  # of 128 dimensions: those of one centre were found
    assert abs(len(whole) - len(merged)) < 400


@pytest.mark.parametrize("size", [40, 400])
def test_small_files_merge_as_much(
    store: Path, reader: BertReader, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Ids with more occurrences than a file holds are cut; others merge as ever."""
    before, ids = rows_of(store, reader)
    monkeypatch.setattr(btr.occurrences, "FILE_BYTES", size)
    monkeypatch.setattr(btr.occurrences, "MOST_FILES", 10_000)
    compress(store, reader, Compression(ratio=0.3, neighbours=False))
    after, _ = rows_of(store, reader)
    room = max(1, size // (before.shape[1] + 4))
    shared = shared_ids(reader.vocabulary)
    cut = 0
    for token in np.unique(ids[~shared[ids]]):
        mine = ids == token
        wanted = before[mine].copy()
        for first in range(0, len(wanted), room):
            merged, groups = merge_occurrences(before[mine][first : first + room], 0.3)
            part = wanted[first : first + room]
            part[groups >= 0] = merged[groups[groups >= 0]]
            cut += first > 0
        assert np.array_equal(after[mine], wanted)
    assert (cut > 0) == (size == 40)
    assert verify(store).ok


def test_a_compressed_store_can_be_added_to_thinned_and_compressed_again(
    tmp_path: Path, store: Path, reader: BertReader, embedder: Embedder
) -> None:
    compress(store, reader, Compression())
    first, _ = rows_of(store, reader)
    (tmp_path / "more.jsonl").write_text(lines(40, 50))
    build_index([tmp_path / "more.jsonl"], store, reader, embedder=embedder, shard_passages=16,
                add=True)  # fmt: skip
    added, _ = rows_of(store, reader)
    assert np.array_equal(added[: len(first)], first)
    remove_passages(store, [0, 45])
    compact(store, build_indexes)
    assert verify(store).ok
    with TokenStore.open(store) as opened:
        assert len(opened) == 48
        tokens = sum(len(ids) for ids in reader.token_ids(opened.passages(range(48))))
    rows, _ = rows_of(store, reader)
    assert len(rows) == tokens
    before = store_sizes(store, TokenStore.open(store).manifest).state_bytes_per_token
    # (The neighbours' factors are worth more than a store as small as this.)
    manifest = compress(store, reader, Compression(top=30, neighbours=False))
    assert store_sizes(store, manifest).state_bytes_per_token < before
    assert verify(store).ok
    assert not list(tmp_path.glob("s.*"))


def test_a_store_may_be_coded_and_nothing_else(store: Path, reader: BertReader) -> None:
    before, _ = rows_of(store, reader)
    manifest = compress(store, reader, Compression(0, lossless=True, stop_words=False))
    after, _ = rows_of(store, reader)
    assert np.array_equal(after, before)
    assert manifest.compression["shared_ids"] == 0


def test_where_no_id_can_be_worked_out_nothing_is_left_out(store: Path, reader: BertReader) -> None:
    before, _ = rows_of(store, reader)
    manifest = compress(store, reader, Compression(ratio=0.2, stop_words=False))
    after, _ = rows_of(store, reader)
    assert np.array_equal(after, before)
    assert manifest.compression["left_out_tokens"] == 0


def test_a_generation_that_cannot_be_opened_is_not_published(
    store: Path, reader: BertReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = rows_of(store, reader)
    monkeypatch.setattr(NeighbourModel, "to_bytes", lambda self: b"?")
    with pytest.raises(CorruptError, match="damaged coding tables"):
        compress(store, reader, Compression())
    after, _ = rows_of(store, reader)
    assert np.array_equal(after, before)


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_passages_are_let_go_when_they_are_written(
    store: Path, reader: BertReader, monkeypatch: pytest.MonkeyPatch, ratio: float, *,
    neighbours: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(btr.coding_shards, "GROUP", 1)
    alive: list[int] = []
    decode = TokenStore.held_states

    def counted(self: TokenStore, ordinals: range) -> list[PassageState | None]:
        states = decode(self, ordinals)
        held.extend(weakref.ref(state.rows) for state in states if state is not None)
        alive.append(sum(found() is not None for found in held))
        return states

    held: list[weakref.ref[np.ndarray]] = []
    monkeypatch.setattr(TokenStore, "held_states", counted)
    compress(store, reader, Compression(ratio=ratio, neighbours=neighbours))
    assert len(alive) >= 80  # two passes over 40 passages
    assert max(alive) <= 20  # those of a shard of 16, and a few on their way


def test_parts_are_counted_anew_when_passages_go(store: Path, reader: BertReader) -> None:
    before = dict(compress(store, reader, Compression(ratio=0, neighbours=False)).compression)
    remove_passages(store, range(5, 40))
    manifest = compact(store, build_indexes)
    sizes, after = store_sizes(store, manifest), manifest.compression
    assert min(sizes.by_part.values()) >= 0
    assert 0 < after["id_bytes"] < before["id_bytes"] / 4
    _, ids = rows_of(store, reader)
    assert after["shared_tokens"] == int(shared_ids(reader.vocabulary)[ids].sum())


def test_lossless_coding_changes_no_bit(store: Path, reader: BertReader) -> None:
    shutil.copytree(store, store.with_name("copy"))
    compress(store.with_name("copy"), reader, Compression(ratio=0.2))
    before, _ = rows_of(store.with_name("copy"), reader)
    manifest = compress(store, reader, Compression(ratio=0.2, lossless=True))
    after, _ = rows_of(store, reader)
    assert np.array_equal(after, before)
    assert manifest.compression["lossless"] is True
    assert verify(store).ok


def test_bits_that_can_be_foreseen_take_less_room() -> None:
    draw = np.random.default_rng(8)
    ids, d = 50, 64
    chance = draw.beta(0.5, 0.5, (ids, d))
    ranks = draw.integers(0, ids, 3000)
    bits = (draw.random((3000, d)) < chance[ranks]).astype(np.uint8)
    positive = np.zeros((ids, d), np.int64)
    np.add.at(positive, ranks, bits)
    classes = class_of(positive, np.bincount(ranks, minlength=ids), bits.mean(0))
    counted = np.zeros((CLASSES * DRIFTS, 2), np.int64)
    kernels().tally(bits, classes[ranks], counted, nominal())
    model = BitModel(np.arange(ids), classes, probabilities(counted))
    rows = np.packbits(bits, axis=1)
    coded = model.encode(rows, ranks)
    assert np.array_equal(model.decode([coded.data], [3000], ranks), rows)
    entropy = -(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance)).mean()
    # The classes were fitted to these very bits, so it may be a little less.
    assert 0.95 * entropy < 8 * len(coded) / bits.size < 1.05 * entropy


def test_all_ids_may_share(store: Path, reader: BertReader) -> None:
    manifest = compress(store, reader, Compression(ratio=0.3, top=10_000))
    rows, ids = rows_of(store, reader)
    assert len(np.unique(rows, axis=0)) <= len(np.unique(ids))
    assert manifest.compression["merged_vectors"] == 0


def test_what_cannot_be_compressed_is_refused(
    tmp_path: Path, store: Path, reader: BertReader, tokenizer: PreTrainedTokenizerBase,
    embedder: Embedder,
) -> None:  # fmt: skip
    for wrong in (Compression(ratio=0.6), Compression(ratio=-1), Compression(top=-1)):
        with pytest.raises(UsageError, match="out of range"):
            compress(store, reader, wrong)
    other = make_reader(tmp_path / "other", tokenizer, "btr", 2, seed=9)
    with pytest.raises(IncompatibleError, match="another reader"):
        compress(store, other, Compression())
    decomposed = make_reader(tmp_path / "decomposed", tokenizer, "decomposed", 2)
    build_index([tmp_path / "in.jsonl"], tmp_path / "f", decomposed, embedder=embedder)
    with pytest.raises(UsageError, match="only bits"):
        compress(tmp_path / "f", decomposed, Compression())
    assert not list(tmp_path.glob("*.building"))


@pytest.mark.parametrize(
    ("token", "shared"),
    [
        ("the", True), ("▁The", True), ("Ġof", True), (",", True), ("##.", True), ("##s", False),
        ("river", False), ("▁", False), ("[CLS]", False), ("</s>", False), ("$", True), ("a", True),
        ("##a", False), ("--", True), ("1", False),
    ],
)  # fmt: skip
def test_stop_words_and_punctuation_share(token: str, shared: bool) -> None:
    assert is_shared(token) is shared
