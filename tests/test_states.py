"""A store with states for a part of its corpus gives the answers of one that has them all."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from btr.answering import Answerer
from btr.choosing import choose_passages, parse_choice
from btr.compressing import Compression, compress
from btr.data.passages import Passage
from btr.errors import IncompatibleError, InputError, UsageError
from btr.indexing import build_index
from btr.readers.base import Reader
from btr.readers.load import load_reader
from btr.retrieval.dense import Embedder
from btr.retrieval.hybrid import build_indexes
from btr.states import PROBE, StateSource
from btr.store.change import compact, remove_passages
from btr.store.check import verify
from btr.store.format import PassageState
from btr.store.reader import TokenStore
from tiny_readers import make_reader

QUESTIONS = ["who built the stone bridge?", "where does the river end?", "when was it built"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    make_reader(folder / "btr", tokenizer, "btr", 2)
    return folder


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return load_reader(str(folder), "btr")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("the river ends at a lake", "a stone bridge", "king harald built it", "birds rest")
    file = tmp_path_factory.mktemp("corpus") / "in.jsonl"
    file.write_text("".join(
        f'{{"id": "p{i}", "text": "In {i}, {words[i % 4]} and {words[(i * 3 + 1) % 4]}."}}\n'
        for i in range(30)
    ))  # fmt: skip
    return file


@pytest.fixture
def stores(tmp_path: Path, sources: Path, reader: Reader, embedder: Embedder) -> tuple[Path, Path]:
    """With all states, and with those of 8 passages."""
    some = np.zeros(30, np.bool_)
    some[[0, 3, 4, 11, 17, 20, 28, 29]] = True
    build_index([sources], tmp_path / "all", reader, embedder=embedder, shard_passages=7)
    build_index([sources], tmp_path / "some", reader, embedder=embedder, shard_passages=7,
                stateful=some)  # fmt: skip
    return tmp_path / "all", tmp_path / "some"


def replies(store: Path) -> list[object]:
    answerer = Answerer.open(store, dtype="fp32")
    found = []
    for question in QUESTIONS * 2:  # the second time from the cache
        reply = answerer.ask(question, passages=12)
        found.append([(a.text, a.probability, a.passage) for a in reply.reading.answers])
    return found


def test_the_answers_are_the_same(stores: tuple[Path, Path]) -> None:
    whole, part = stores
    assert verify(part).ok
    assert replies(part) == replies(whole)
    with TokenStore.open(whole) as one, TokenStore.open(part) as other:
        assert other.manifest.tokens < one.manifest.tokens / 2
        assert other.manifest.parts["states"] < one.manifest.parts["states"] / 2
        held = other.held_states(range(30))
        assert [i for i, state in enumerate(held) if state] == [0, 3, 4, 11, 17, 20, 28, 29]
        with pytest.raises(InputError, match="no state"):
            other.states([1])


def test_a_program_that_ends_without_closing_ends_quietly(stores: tuple[Path, Path]) -> None:
    program = "import sys, btr; answerer = btr.Answerer.open(sys.argv[1]); answerer.ask('who?')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, stores[0]], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stderr == ""


def test_states_are_made_in_the_dtype_of_the_store(stores: tuple[Path, Path]) -> None:
    whole, part = (Answerer.open(store, dtype="bf16") for store in stores)
    assert part.states is not None
    passages = whole.store.passages(range(30))
    stored = whole.store.states(range(30))
    made = part.states.states(range(30), passages)
    assert [s.rows.tobytes() for s in made] == [s.rows.tobytes() for s in stored]


def test_such_a_store_is_changed_like_any_other(stores: tuple[Path, Path], reader: Reader) -> None:
    whole, part = stores
    for store in stores:
        remove_passages(store, [0, 1])
        compact(store, build_indexes)
    assert replies(part) == replies(whole)
    compress(part, reader, Compression(ratio=0, top=0))
    assert verify(part).ok
    with TokenStore.open(part) as store:
        held = store.held_states(range(28))
    assert [i + 2 for i, state in enumerate(held) if state] == [3, 4, 11, 17, 20, 28, 29]


def test_a_build_goes_on_with_the_choice_that_it_was_begun_with(
    tmp_path: Path, sources: Path, reader: Reader, embedder: Embedder
) -> None:
    def stop(state: object) -> None:
        if getattr(state, "passages", 0) > 3:
            raise KeyboardInterrupt

    every = np.ones(30, np.bool_)
    with pytest.raises(KeyboardInterrupt):
        build_index([sources], tmp_path / "s", reader, embedder=embedder, shard_passages=2,
                    stateful=every, progress=stop)  # fmt: skip
    with pytest.raises(IncompatibleError, match="sources_digest"):
        build_index([sources], tmp_path / "s", reader, embedder=embedder, shard_passages=2,
                    stateful=~every, resume=True)  # fmt: skip


def test_the_most_asked_for_passages_are_chosen_then_beginnings() -> None:
    passages = [Passage(str(i), f"word{i % 5} text", start=100 * (i % 3)) for i in range(12)]
    assert choose_passages(passages, ["word3?", "word3", "word4"], 3).nonzero()[0].tolist() == [
        3, 8, 9,
    ]  # fmt: skip
    assert choose_passages(passages, [], 5).nonzero()[0].tolist() == [0, 1, 3, 6, 9]
    assert choose_passages(passages, ["zebra"], 99).all()
    assert parse_choice("top:12") == 12
    for wrong in ("12", "top:", "top:0", "best:3", "top:-1"):
        with pytest.raises(UsageError, match="top:N"):
            parse_choice(wrong)


class Slow:
    """A store and a reader that take as long as they are told, and count."""

    coding: object = None
    dtype = torch.float32
    manifest = SimpleNamespace(spec=SimpleNamespace(settings={"dtype": "float32"}))

    def __init__(self, load_s: float, make_s: float) -> None:
        self.load_s, self.make_s, self.loads, self.makes = load_s, make_s, 0, 0

    def held_states(self, ordinals: Sequence[int]) -> list[PassageState | None]:
        time.sleep(self.load_s * len(ordinals))
        self.loads += len(ordinals)
        return [None if o >= 100 else self.state(o) for o in ordinals]

    def encode(self, passages: Sequence[Passage]) -> list[PassageState]:
        time.sleep(self.make_s * len(passages))
        self.makes += len(passages)
        return [self.state(int(p.id)) for p in passages]

    @staticmethod
    def state(number: int) -> PassageState:
        return PassageState(np.full((5, 4), number % 256, np.uint8), 0, False)


def ask(source: StateSource, ordinals: Sequence[int]) -> list[int]:
    passages = [Passage(str(o), "text") for o in ordinals]
    return [int(state.rows[0, 0]) for state in source.states(ordinals, passages)]


def test_what_is_slower_is_left_alone() -> None:
    disk = Slow(load_s=0.004, make_s=0.0005)
    source = StateSource(disk, disk)  # type: ignore[arg-type]
    assert ask(source, [1, 100, 2]) == [1, 100, 2]  # both ways were measured
    loads = disk.loads
    for i in range(10, 40):
        assert ask(source, [i]) == [i]
    assert disk.loads == loads  # making is quicker here
    for i in range(40, 40 + PROBE):
        assert ask(source, [i % 100]) == [i % 100]
    assert disk.loads <= loads + 1

    full = Slow(load_s=0.004, make_s=0.0005)
    source = StateSource(full, full)  # type: ignore[arg-type]
    for i in range(0, 40, 4):
        assert ask(source, list(range(i, i + 4))) == list(range(i, i + 4))
    assert full.loads == 4 + 3  # one was made to learn what that takes, then all

    coded = Slow(load_s=0.004, make_s=0.0005)
    coded.coding = "tables"
    source = StateSource(coded, coded)  # type: ignore[arg-type]
    for i in range(5):
        assert ask(source, [i, 100, 50 + i]) == [i, 100, 50 + i]
    assert coded.loads >= 10  # what is made now would be another
    assert coded.makes == 1

    memory = Slow(load_s=0.0, make_s=0.002)
    source = StateSource(memory, memory)  # type: ignore[arg-type]
    for i in range(30):
        assert ask(source, [i, 100 + i, i]) == [i, 100 + i, i]
    assert memory.makes == 30  # only those that are not stored


def test_what_was_made_is_kept_within_bounds() -> None:
    slow = Slow(0, 0)
    source = StateSource(slow, slow, cache_bytes=20 * 10)  # type: ignore[arg-type]
    for _ in range(3):
        assert ask(source, list(range(100, 110))) == list(range(100, 110))
    assert slow.makes == 10
    ask(source, list(range(110, 115)))
    assert slow.makes == 15
    ask(source, list(range(105, 115)))
    assert slow.makes == 15
    ask(source, [100])
    assert slow.makes == 16
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for i in range(300):
                assert ask(source, [100 + i % 20, i % 50]) == [100 + i % 20, i % 50]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
