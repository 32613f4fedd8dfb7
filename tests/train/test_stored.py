"""States that a reader is adapted with are those that a store keeps, or would keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from btr.compressing import Compression, compress
from btr.data.passages import Passage
from btr.errors import IncompatibleError
from btr.indexing import build_index
from btr.readers.bert import BertReader
from btr.store.reader import TokenStore
from btr.train.stored import StoredStates
from tiny_readers import make_reader

TEXT = "The bridge number {n} was built by king Harald, over the wide lake of the north."
INSIDE = [Passage(f"p{n}", TEXT.format(n=n), "Bridge") for n in range(20)]
OUTSIDE = [Passage("p0", "Another text of the same id, and by the same king.", "Bridge")]
OUTSIDE += [Passage("new", "Birds of the north and of the lake.", "Birds")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, reader: BertReader) -> Path:
    folder = tmp_path_factory.mktemp("store")
    lines = (f'{{"id": "{p.id}", "title": "{p.title}", "text": "{p.text}"}}\n' for p in INSIDE)
    (folder / "in.jsonl").write_text("".join(lines))
    build_index([folder / "in.jsonl"], folder / "s", reader)
    compress(folder / "s", reader, Compression())
    return folder / "s"


def test_without_a_store_states_are_whole(reader: BertReader) -> None:
    stored = StoredStates(reader, INSIDE, None)
    joined = stored.rows(range(3))
    assert joined.guesses is None
    whole = [state.rows for state in reader.encode(INSIDE)[:3]]
    assert joined.rows.tobytes() == b"".join(rows.tobytes() for rows in whole)


def test_what_the_store_has_is_taken_from_it_and_the_rest_is_like_it(
    reader: BertReader, store: Path
) -> None:
    stored = StoredStates(reader, [*INSIDE, *OUTSIDE], store)
    with TokenStore.open(store) as opened:
        kept = opened.states(range(len(INSIDE)))
    for mine, theirs in zip(stored.of(INSIDE), kept, strict=True):
        assert mine.rows.tobytes() == theirs.rows.tobytes()
        assert mine.guesses is not None
        assert theirs.guesses is not None
        assert mine.guesses.levels.tobytes() == theirs.guesses.levels.tobytes()
    for state, ids in zip(stored.of(OUTSIDE), reader.token_ids(OUTSIDE), strict=True):
        assert len(state.rows) == len(ids)
        assert state.guesses is not None
        assert len(state.guesses.places)


def test_a_share_of_the_batches_is_whole(reader: BertReader, store: Path) -> None:
    every = [*INSIDE, *OUTSIDE]
    numbers = range(len(INSIDE), len(every))
    whole = np.concatenate([state.rows for state in reader.encode(OUTSIDE)])
    always = StoredStates(reader, every, store, whole=1.0).rows(numbers)
    assert always.guesses is None
    assert always.rows.tobytes() == whole.tobytes()
    sometimes = StoredStates(reader, every, store, whole=0.5)
    assert {sometimes.rows(numbers).guesses is None for _ in range(50)} == {True, False}
    # Of those in the store nothing else is known.
    assert StoredStates(reader, every, store, whole=1.0).rows([0]).guesses is not None


def test_another_readers_store_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, store: Path
) -> None:
    other = make_reader(tmp_path / "btr", tokenizer, "btr", 1)
    with pytest.raises(IncompatibleError):
        StoredStates(other, INSIDE, store)
