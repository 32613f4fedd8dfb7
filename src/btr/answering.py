"""Ask a store: retrieve passages, fetch their states, read them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from btr.errors import IncompatibleError, UsageError
from btr.machine import DTYPES, default_dtype
from btr.readers.base import DEFAULT_OPTIONS, Answer, Mode, Reader, Reading, ReadOptions
from btr.readers.load import load_reader
from btr.retrieval.dense import Embedder
from btr.retrieval.hybrid import Hit, HybridRetriever
from btr.states import StateSource
from btr.store.reader import TokenStore


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a question over a store.

    Attributes:
        question: As asked.
        reading: Answers with their sources, and the probability that there is none.
        hits: The retrieved passages' numbers in the store, best first.
        stages_ms: Wall milliseconds by stage, retrieval included.
    """

    question: str
    reading: Reading
    hits: tuple[Hit, ...]
    stages_ms: Mapping[str, float]

    @property
    def answer(self) -> Answer | None:
        """The best span, or None where "no answer" is more probable than any answer."""
        best = self.reading.answers[:1]
        return best[0] if best and not self.abstained else None

    @property
    def abstained(self) -> bool:
        """Whether the reader says that these passages do not answer the question."""
        return not self.reading.answers or self.reading.no_answer > 0.5


def open_retriever(store: TokenStore, embedder: Embedder | None = None) -> HybridRetriever:
    """Retrieval over a store, with the embedder that made its vectors.

    Args:
        store: An open store.
        embedder: None loads the default one.

    Raises:
        IncompatibleError: The store's vectors were made by another embedder.
    """
    embedder = embedder or Embedder()
    for name, value in embedder.fingerprint.items():
        found = store.manifest.spec.settings.get(name)
        if found != value:
            raise IncompatibleError(
                f"this store's vectors were made by another sentence encoder: {name} differs",
                where=str(store.path), expected=value, found=str(found),
                todo="build the store again",
            )  # fmt: skip
    return HybridRetriever(store, embedder)


class Answerer:
    """A store with its reader and retriever, open for questions.

    Args:
        store: The open store.
        reader: A reader; for ``btr`` and ``decomposed`` the one whose states the store holds, or
            another that encodes passages when asked.
        retriever: Over the same store.
    """

    def __init__(self, store: TokenStore, reader: Reader, retriever: HybridRetriever) -> None:
        self.store, self.reader, self.retriever = store, reader, retriever
        stored = dict(store.manifest.spec.fingerprint) == reader.fingerprint
        self.states = StateSource(store, reader) if stored else None

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        reader: str = "",
        mode: Mode | None = None,
        dtype: str | None = None,
    ) -> Answerer:
        """Open a store with the reader that made it, or one that was adapted from it.

        Args:
            path: The store's folder.
            reader: Name, folder or Hub id of another reader; "" for the store's own.
            mode: ``None`` for the mode whose states are stored. ``plain`` reads the passages' text
                with the plain reader; the mode that is not stored encodes passages when asked.
            dtype: "bf16" or "fp32"; None for the faster one here.

        Raises:
            IncompatibleError: The reader's stored states would be others than the store's.
        """
        store = TokenStore.open(path)
        settings = store.manifest.spec.settings
        stored_mode = settings["mode"]
        wanted = mode or stored_mode
        chosen = DTYPES[dtype or default_dtype()]
        loaded = load_reader(reader or str(settings["reader"]), wanted, dtype=chosen)
        if wanted == stored_mode:
            store.require(loaded.fingerprint)
        return cls(store, loaded, open_retriever(store))

    def ask(
        self,
        question: str,
        *,
        passages: int = 20,
        top: int = 5,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Reply:
        """Answer a question from the best ``passages`` passages.

        Raises:
            UsageError: The question is empty.
        """
        if not question.strip():
            raise UsageError("the question is empty", todo="ask something")
        started = time.perf_counter()
        hits = self.retriever.search(question, passages)
        found = time.perf_counter()
        numbers = [hit.ordinal for hit in hits]
        texts = self.store.passages(numbers)
        states = self.states.states(numbers, texts) if self.states else None
        fetched = time.perf_counter()
        reading = self.reader.read(question, texts, states, top=top, options=options)
        stages = {"retrieve": 1e3 * (found - started), "fetch": 1e3 * (fetched - found)}
        stages |= reading.stages_ms
        return Reply(question, replace(reading, stages_ms=stages), tuple(hits), stages)
