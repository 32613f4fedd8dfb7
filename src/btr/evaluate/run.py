"""Run a reader over a question file and score it: EM, F1 or accuracy, speed, cost, recall."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from btr.data.lines import read_numbered_records
from btr.data.passages import Passage
from btr.data.questions import Question, asked
from btr.encoding import completed
from btr.errors import InputError
from btr.evaluate.metrics import bootstrap_interval, exact_match, f1_score, holds_answer
from btr.evaluate.predictions import Prediction
from btr.readers.base import DEFAULT_OPTIONS, Reader, Reading, ReadOptions
from btr.store.format import PassageState
from btr.store.reader import TokenStore

Found = tuple[list[Passage], Sequence[PassageState | None] | None]
"""A question's passages and their stored states, or None where the reader encodes them now."""


NO_PASSAGE = Passage("", "")
"""What a question of a choice that has no passages is read with: nothing but its end token."""

MOST_LABELS = 20
"""Classes that a task may have."""

RECALL_AT = (1, 5, 20)
"""Numbers of first passages that retrieval is judged by."""


def gold_passages(store: TokenStore | None, limit: int) -> Callable[[Question], Found]:
    """Passages that the question file itself gives; states come from ``store`` if there is one."""

    def find(question: Question) -> Found:
        passages = list(question.contexts[:limit])
        if store is None or not passages:
            return passages, None
        return _stored(store, _ordinals(store, [p.id for p in passages]))

    return find


def _ordinals(store: TokenStore, ids: Sequence[str]) -> list[int]:
    """Passages by id; where the store had to cut one (``record_passages``), its pieces.

    Raises:
        InputError: The store has no such passage.
    """
    ordinals: list[int] = []
    for passage_id in ids:
        pieces: list[int] = []
        if store.find(passage_id) is None:
            while (piece := store.find(f"{passage_id}:{len(pieces)}")) is not None:
                pieces.append(piece)
        ordinals += pieces or [store.ordinal(passage_id)]
    return ordinals


def listed_passages(
    store: TokenStore, listed: Mapping[str, Sequence[str]], limit: int
) -> Callable[[Question], Found]:
    """Passages by their ids in a retrieval run, looked up in the store."""

    def find(question: Question) -> Found:
        if question.id not in listed:
            raise InputError("the retrieval run lacks a question", where=question.id,
                             todo="use the run made for this question file")  # fmt: skip
        return _stored(store, _ordinals(store, listed[question.id][:limit]))

    return find


def retrieved_passages(
    store: TokenStore, search: Callable[[str, int], Sequence[int]], limit: int
) -> Callable[[Question], Found]:
    """Passages that the store's own retrieval finds."""
    return lambda question: _stored(store, search(question.question, limit))


def _stored(store: TokenStore, numbers: Sequence[int]) -> Found:
    return store.passages(numbers), store.held_states(numbers)


def choices_for(question: Question, labels: tuple[str, ...]) -> tuple[str, ...]:
    """What a question's answer is one of: the letters of its options, the task's labels, or ()."""
    return tuple(letter for letter, _ in question.options) or labels


def given_passages(found: Found, choices: tuple[str, ...]) -> Found:
    """What was found; where that is nothing, a choice can still be made by the question alone."""
    return found if found[0] or not choices else ([NO_PASSAGE], [None])


def predict(
    reader: Reader,
    questions: Sequence[Question],
    found: Sequence[Found],
    *,
    use_states: bool,
    labels: tuple[str, ...] = (),
    options: ReadOptions = DEFAULT_OPTIONS,
) -> list[Prediction]:
    """Answer questions together and score the best answer of each; only reading is timed.

    Args:
        reader: In any mode.
        questions: With answers to compare with; all or none of them choose, from the same choices.
        found: Each one's passages and their stored states.
        use_states: Give the reader the stored states; False makes it work from the text.
        labels: What every answer is one of, in a task of classes.
        options: How answers are searched for and what is merged.

    Returns:
        A prediction a question; each has its equal share of the time.
    """
    choices = choices_for(questions[0], labels)
    if choices:
        options = replace(options, choices=choices)
    started, cpu_started = time.perf_counter(), time.process_time()
    states = None
    if use_states:
        states = [completed(reader, passages, given or []) for passages, given in found]
    readings = reader.read_many(
        [asked(question) for question in questions], [passages for passages, _ in found], states,
        options=options,
    )  # fmt: skip
    latency, count = time.perf_counter() - started, len(questions)
    cpu = (time.process_time() - cpu_started) / count
    times = (latency / count, cpu, latency)
    return [
        _scored(question, passages, reading, times, choose=bool(choices))
        for question, (passages, _), reading in zip(questions, found, readings, strict=True)
    ]


def _scored(
    question: Question,
    passages: Sequence[Passage],
    reading: Reading,
    times: tuple[float, float, float],
    *,
    choose: bool,
) -> Prediction:
    best = reading.answers[0] if reading.answers else None
    text = best.text if best else ""
    if choose:
        # Not by normalised text, of which the letter A is an article and nothing.
        em = f1 = float(text in question.answers)
        place = 0
    else:
        em, f1 = exact_match(text, question.answers), f1_score(text, question.answers)
        places = (i for i, p in enumerate(passages, 1) if holds_answer(p.text, question.answers))
        place = next(places, 0)
    return Prediction(
        question.id,
        question.question,
        text,
        best.passage.id if best else "",
        best.probability if best else 0.0,
        reading.no_answer,
        em,
        f1,
        question.subject,
        len(passages),
        place,
        *times,
    )


def evaluate(
    reader: Reader,
    questions: Iterable[Question],
    find: Callable[[Question], Found],
    *,
    use_states: bool,
    labels: tuple[str, ...] = (),
    options: ReadOptions = DEFAULT_OPTIONS,
    batch: int = 1,
    done: Sequence[Prediction] = (),
    write: Callable[[Prediction], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Answer every question that has passages or choices, and score the best answer of each.

    Args:
        reader: In any mode.
        questions: With answers to compare with.
        find: Where a question's passages come from.
        use_states: Give the reader the stored states; False makes it work from the text.
        labels: What every answer is one of, in a task of classes.
        options: How answers are searched for and what is merged.
        batch: Questions read together, where the reader can.
        done: Questions scored before, which are not asked again.
        write: Called with every newly scored question.
        progress: Called with the number of questions done.

    Returns:
        The figures of an eval report without its task and settings.

    Raises:
        InputError: No question had both answers and passages or choices.
    """
    before = {prediction.id: prediction for prediction in done}
    scored: list[Prediction] = []
    waiting: list[tuple[Question, Found]] = []
    without = 0
    chosen = True

    def read() -> None:
        if not waiting:
            return
        asked_now, found_now = zip(*waiting, strict=True)
        made = predict(
            reader, asked_now, found_now, use_states=use_states, labels=labels, options=options
        )
        waiting.clear()
        for prediction in made:
            write(prediction)
        scored.extend(made)
        progress(len(scored))

    for question in questions:
        choices = choices_for(question, labels)
        chosen = chosen and bool(choices)
        if question.id in before:
            scored.append(before[question.id])
            continue
        found = given_passages(find(question), choices)
        if not found[0] or not question.answers:
            without += 1
            continue
        if waiting and choices_for(waiting[0][0], labels) != choices:
            read()
        waiting.append((question, found))
        if len(waiting) == batch:
            read()
    read()
    if not scored:
        raise InputError("no question has both answers and passages", found=f"{without} without",
                         todo="give --store to retrieve passages")  # fmt: skip
    return {
        "reader": reader.name,
        "family": reader.family,
        "mode": reader.mode,
        "n": len(scored),
        "skipped_without_passages": without,
        **figures(scored, choices=chosen),
    }


def figures(scored: Sequence[Prediction], *, choices: bool) -> dict[str, Any]:
    """The figures of scored questions.

    Args:
        scored: At least one.
        choices: Whether every answer was one of several given; then accuracy, overall and by
            subject, stands in place of EM and F1, and there is no recall.
    """
    count, right = len(scored), sum(p.em for p in scored)

    def percent(values: Sequence[float]) -> tuple[float, list[float]]:
        interval = [round(100 * x, 2) for x in bootstrap_interval(values)]
        return round(100 * sum(values) / len(values), 2), interval

    report: dict[str, Any] = {"em": None, "f1": None, "accuracy": None}
    if choices:
        report["accuracy"], report["accuracy_interval"] = percent([p.em for p in scored])
        subjects = {
            name: percent([p.em for p in scored if p.subject == name])
            for name in sorted({p.subject for p in scored} - {""})
        }
        if subjects:
            report["subjects"] = {name: share for name, (share, _) in subjects.items()}
            report["subject_intervals"] = {name: ends for name, (_, ends) in subjects.items()}
    else:
        report["em"], report["em_interval"] = percent([p.em for p in scored])
        report["f1"], report["f1_interval"] = percent([p.f1 for p in scored])
    wall, cpu = sum(p.wall for p in scored), sum(p.cpu for p in scored)
    median, p95 = 1000 * np.percentile([p.latency for p in scored], [50, 95])
    return report | {
        "abstained": round(100 * sum(p.no_answer > 0.5 for p in scored) / count, 2),
        "recall": None if choices else {
            str(k): round(100 * sum(0 < p.found <= k for p in scored) / count, 2)
            for k in RECALL_AT
        },
        "queries_per_s": round(count / wall, 2),
        "latency_ms": {"median": round(float(median), 2), "p95": round(float(p95), 2)},
        "cpu_s_per_correct": round(cpu / right, 4) if right else None,
        "passages_per_query": round(sum(p.passages for p in scored) / count, 2),
    }  # fmt: skip


def labels_in(questions: Iterable[Question]) -> tuple[str, ...]:
    """The classes of a task, as its questions name them; of a multiple choice, all letters.

    Raises:
        InputError: There are fewer than two, or so many that they are no classes.
    """
    named: set[str] = set()
    for question in questions:
        if question.answers:
            letters = (letter for letter, _ in question.options)
            named |= {question.label or question.answers[0], *letters}
    found = sorted(named)
    if not 2 <= len(found) <= MOST_LABELS:
        raise InputError("the answers are no classes", expected=f"2 to {MOST_LABELS} of them",
                         found=str(len(found)), todo="leave --classes out")  # fmt: skip
    return tuple(found)


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
