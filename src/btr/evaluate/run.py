"""Run a reader over a question file and score it: EM, F1, speed, CPU-seconds per correct answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from btr.data.lines import read_numbered_records
from btr.data.passages import Passage
from btr.data.questions import Question
from btr.errors import InputError
from btr.evaluate.metrics import bootstrap_interval, exact_match, f1_score
from btr.readers.base import DEFAULT_OPTIONS, Reader, ReadOptions
from btr.store.format import PassageState
from btr.store.reader import TokenStore

Found = tuple[list[Passage], list[PassageState] | None]
"""A question's passages and their stored states, or None where the reader encodes them now."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One scored question; ``em`` and ``f1`` are shares (0 .. 1) of the best span."""

    id: str
    question: str
    answer: str
    passage: str
    probability: float
    no_answer: float
    em: float
    f1: float


def gold_passages(store: TokenStore | None, limit: int) -> Callable[[Question], Found]:
    """Passages that the question file itself gives; states come from ``store`` if there is one."""

    def find(question: Question) -> Found:
        passages = list(question.contexts[:limit])
        if store is None or not passages:
            return passages, None
        return _stored(store, [store.ordinal(p.id) for p in passages])

    return find


def listed_passages(
    store: TokenStore, listed: Mapping[str, Sequence[str]], limit: int
) -> Callable[[Question], Found]:
    """Passages by their ids in a retrieval run, looked up in the store."""

    def find(question: Question) -> Found:
        if question.id not in listed:
            raise InputError("the retrieval run lacks a question", where=question.id,
                             todo="use the run made for this question file")  # fmt: skip
        return _stored(store, [store.ordinal(i) for i in listed[question.id][:limit]])

    return find


def retrieved_passages(
    store: TokenStore, search: Callable[[str, int], Sequence[int]], limit: int
) -> Callable[[Question], Found]:
    """Passages that the store's own retrieval finds."""
    return lambda question: _stored(store, search(question.question, limit))


def _stored(store: TokenStore, numbers: Sequence[int]) -> Found:
    return store.passages(numbers), store.states(numbers)


def evaluate(
    reader: Reader,
    questions: Iterable[Question],
    find: Callable[[Question], Found],
    *,
    use_states: bool,
    options: ReadOptions = DEFAULT_OPTIONS,
    write: Callable[[Prediction], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Answer every question that has passages and score the best span.

    Only reading is timed: finding passages is not, nor is encoding-to-store.

    Args:
        reader: In any mode.
        questions: With answers to compare with.
        find: Where a question's passages come from.
        use_states: Give the reader the stored states; False makes it work from the text.
        options: How answers are searched for and what is merged.
        write: Called with every scored question.
        progress: Called with the number of questions done.

    Returns:
        The figures of an eval report without its task and settings.

    Raises:
        InputError: No question had both answers and passages.
    """
    em: list[float] = []
    f1: list[float] = []
    abstained = without = given = 0
    wall = cpu = 0.0
    for question in questions:
        passages, states = find(question)
        if not passages or not question.answers:
            without += 1
            continue
        started, cpu_started = time.perf_counter(), time.process_time()
        given_states = states if use_states else None
        reading = reader.read(question.question, passages, given_states, options=options)
        wall += time.perf_counter() - started
        cpu += time.process_time() - cpu_started
        given += len(passages)
        best = reading.answers[0] if reading.answers else None
        text = best.text if best else ""
        em.append(exact_match(text, question.answers))
        f1.append(f1_score(text, question.answers))
        abstained += reading.no_answer > 0.5
        write(
            Prediction(
                question.id,
                question.question,
                text,
                best.passage.id if best else "",
                best.probability if best else 0.0,
                reading.no_answer,
                em[-1],
                f1[-1],
            )
        )
        progress(len(em))
    if not em:
        raise InputError("no question has both answers and passages", found=f"{without} without",
                         todo="give --store to retrieve passages")  # fmt: skip
    correct = sum(em)
    return {
        "reader": reader.name,
        "family": reader.family,
        "mode": reader.mode,
        "n": len(em),
        "skipped_without_passages": without,
        "em": round(100 * correct / len(em), 2),
        "em_interval": [round(100 * x, 2) for x in bootstrap_interval(em)],
        "f1": round(100 * sum(f1) / len(f1), 2),
        "f1_interval": [round(100 * x, 2) for x in bootstrap_interval(f1)],
        "accuracy": None,
        "abstained": round(100 * abstained / len(em), 2),
        "queries_per_s": round(len(em) / wall, 2),
        "cpu_s_per_correct": round(cpu / correct, 4) if correct else None,
        "passages_per_query": round(given / len(em), 2),
    }


def read_run(path: Path) -> dict[str, list[str]]:
    """A retrieval run: jsonl (or .gz) of ``{"id", "ctx_ids": [...]}`` to ids by question.

    Raises:
        InputError: A line is not such an object.
    """
    run: dict[str, list[str]] = {}
    for number, record in read_numbered_records(path):
        try:
            ids = record["ctx_ids"]
            if not isinstance(ids, list):
                raise TypeError
            run[str(record["id"])] = [str(i) for i in ids]
        except (KeyError, TypeError):
            raise InputError("bad line of a retrieval run", where=f"{path}, line {number}",
                             expected='"id" and an array "ctx_ids"',
                             found=", ".join(record)[:80],
                             todo="correct the line") from None  # fmt: skip
    return run


def prediction_line(prediction: Prediction) -> str:
    """A prediction as one JSON line."""
    fields = {name: getattr(prediction, name) for name in Prediction.__slots__}
    return json.dumps(fields, ensure_ascii=False) + "\n"
