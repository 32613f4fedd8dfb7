"""The demonstration: two stores from the bundled corpus, ten questions, three readers compared.

Everything is made with the same calls that a user's own folder takes; nothing is prepared.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from btr.answering import Answerer, Reply, open_retriever
from btr.bench.race import Contender, race
from btr.bench.readers import Workload, contender
from btr.data.questions import Question, read_questions
from btr.errors import InputError
from btr.evaluate.metrics import exact_match, normalize_answer
from btr.indexing import IndexProgress, build_index
from btr.machine import DTYPES
from btr.models import reader_modes
from btr.readers.base import MODES, Mode, Reader
from btr.readers.load import load_reader
from btr.retrieval.dense import Embedder
from btr.store.reader import TokenStore
from btr.store.sizes import store_sizes

CORPUS = Path(__file__).parent / "corpus"
QUESTIONS = Path(__file__).parent / "questions.jsonl"
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One reader in the table.

    Attributes:
        mode: Its mode.
        seconds: To read the passages of one question, the median of the rounds.
        bytes_per_token: Of its store; None for plain, which stores nothing.
        agreements: Questions with the same outcome as the plain reader's; None without one.
        correct: Questions answered rightly, a rightful "not answered" among them.
    """

    mode: Mode
    seconds: float
    bytes_per_token: float | None
    agreements: int | None
    correct: int


@dataclass(frozen=True, slots=True)
class Told:
    """A question of the demonstration and what btr answered."""

    question: Question
    reply: Reply

    @property
    def correct(self) -> bool:
        """Whether the answer is one of those expected, or is withheld where none is."""
        answer, expected = self.reply.answer, self.question.answers
        if answer is None or not expected:
            return answer is None and not expected
        return bool(exact_match(answer.text, expected))


class Story:
    """The demonstration over a folder.

    Args:
        folder: Where the stores go; it exists.
        reader: The reader's name.
        dtype: Of the arithmetic, "bf16" or "fp32".
        passages: Read for each question.
    """

    def __init__(self, folder: Path, reader: str, dtype: str, passages: int = 20) -> None:
        self.folder, self.reader, self.dtype, self.passages = folder, reader, dtype, passages
        present = reader_modes(reader)
        if "btr" not in present:
            raise InputError(f"reader {reader} has no btr checkpoint", todo="choose another")
        self.modes: tuple[Mode, ...] = tuple(m for m in MODES if m in present)
        self._embedder = Embedder()
        self._readers: dict[Mode, Reader] = {}
        self._replies: dict[Mode, list[Reply]] = {}
        self._questions = list(read_questions(QUESTIONS))

    def store_path(self, mode: Mode) -> Path:
        """Where a mode's store is, or will be."""
        return self.folder / f"demo.{mode}"

    def build(self, progress: Callable[[Mode, IndexProgress], None]) -> int:
        """Build the store of every mode that has one; returns the number of passages."""
        count = 0
        for mode in self.modes:
            self._readers[mode] = load_reader(self.reader, mode, dtype=DTYPES[self.dtype])
            if mode != "plain":
                manifest = build_index(
                    [CORPUS], self.store_path(mode), self._readers[mode], embedder=self._embedder,
                    progress=lambda state, mode=mode: progress(mode, state),  # type: ignore[misc]
                )  # fmt: skip
                count = manifest.passages
        return count

    def ask(self, mode: Mode = "btr") -> Iterator[Told]:
        """Ask one reader all questions, one at a time."""
        replies = []
        with TokenStore.open(self.store_path("btr" if mode == "plain" else mode)) as store:
            retriever = open_retriever(store, self._embedder)
            answerer = Answerer(store, self._readers[mode], retriever)
            for question in self._questions:
                replies.append(answerer.ask(question.question, passages=self.passages, top=3))
                yield Told(question, replies[-1])
        self._replies[mode] = replies

    def compare(self, progress: Callable[[int], None] = lambda _: None) -> list[Row]:
        """Ask the other readers too, and time all of them turn by turn on the same passages.

        Args:
            progress: Called after every round, with its number from 0 to ``ROUNDS``.
        """
        for mode in self.modes:
            if mode not in self._replies:
                list(self.ask(mode))
        hits = [[hit.ordinal for hit in reply.hits] for reply in self._replies["btr"]]
        with TokenStore.open(self.store_path("btr")) as store:
            work = [
                Workload(q.question, store.passages(numbers))
                for q, numbers in zip(self._questions, hits, strict=True)
            ]
        contenders: list[Contender] = []
        sizes: dict[Mode, float] = {}
        for mode in self.modes:
            states = None
            if mode != "plain":
                with TokenStore.open(self.store_path(mode)) as store:
                    states = [store.states(numbers) for numbers in hits]
                    sizes[mode] = store_sizes(store.path, store.manifest).state_bytes_per_token
            contenders.append(contender(mode, self._readers[mode], work, states=states))
        race(contenders, len(work), rounds=ROUNDS, progress=progress)
        return [
            self._row(mode, statistics.median(c.wall_s), sizes.get(mode))
            for mode, c in zip(self.modes, contenders, strict=True)
        ]

    def _row(self, mode: Mode, seconds: float, bytes_per_token: float | None) -> Row:
        replies, plain = self._replies[mode], self._replies.get("plain")
        told = [Told(q, r) for q, r in zip(self._questions, replies, strict=True)]
        return Row(
            mode,
            seconds,
            bytes_per_token,
            sum(map(agree, replies, plain)) if plain else None,
            sum(t.correct for t in told),
        )


def agree(one: Reply, other: Reply) -> bool:
    """Whether two replies come to the same: the same answer, or both none."""
    if one.answer is None or other.answer is None:
        return one.answer is other.answer
    return normalize_answer(one.answer.text) == normalize_answer(other.answer.text)
