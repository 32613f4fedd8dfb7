"""Training files to span examples, and held-out questions with what it takes to score them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from btr.data.passages import Passage
from btr.data.questions import Question, asked
from btr.errors import InputError
from btr.train.sources import (
    DataSettings,
    Rejects,
    Source,
    answering,
    find_answers,
    name_of,
    read_sources,
)
from btr.train.span_examples import SpanData, SpanDataBuilder, SpanExample

NEGATIVES = 4
"""Passages without the answer that are kept for a question to choose from."""


@dataclass(frozen=True)
class SpanDataSettings(DataSettings):
    """What is read, and what is made of it.

    Attributes:
        passage_budget: Most tokens of a passage.
        positives: Most passages of a question that it is trained on: those that hold an answer.
        negative_share: Chance that a question comes a second time, with a passage that does not
            answer it.
        labels: The classes, in a task of classes; then every passage of a question is read for its
            class, and the three settings above do not count.
    """

    passage_budget: int = 256
    positives: int = 1
    negative_share: float = 0.12
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class DevQuestion:
    """A held-out question with what it takes to turn a span into text."""

    example: SpanExample
    text: str
    offsets: list[tuple[int, int]]
    text_start: int
    answers: Sequence[str]


@dataclass
class DevSet:
    """Held-out questions by file, over their own data and passages."""

    data: SpanData
    passages: list[Passage]
    questions: dict[str, list[DevQuestion]] = field(default_factory=dict)


def load_span_data(
    settings: SpanDataSettings,
    tokenizer: PreTrainedTokenizerBase,
    query_budget: int,
    rejects: Rejects,
) -> tuple[SpanDataBuilder, DevSet]:
    """Examples to train on and questions to look at.

    Of several passages those with an answer are positives and the others negatives. Where all have
    one, a question's best distractor is another passage of the same article.

    Raises:
        InputError: A line is bad, or nothing is left.
    """
    train = SpanDataBuilder(tokenizer, query_budget, settings.passage_budget)
    looked_at = SpanDataBuilder(tokenizer, query_budget, settings.passage_budget)
    dev = DevSet(looked_at.data, looked_at.passages)
    chooser = random.Random(settings.seed)  # noqa: S311 -- a sample, not a secret
    siblings: dict[tuple[str, str], set[int]] = {}
    gold: list[tuple[int, tuple[str, str], int]] = []
    for name, question, is_dev in read_sources(
        settings, rejects, chooses=lambda _: bool(settings.labels)
    ):
        if settings.labels:
            builder = looked_at if is_dev else train
            examples = _add_class(builder, name, question, settings.labels)
            if is_dev:
                dev.questions.setdefault(name, []).extend(
                    DevQuestion(example, "", [], 0, question.answers) for example in examples
                )
            continue
        if is_dev:
            if row := _dev_question(looked_at, question):
                dev.questions.setdefault(name, []).append(row)
            else:
                rejects.without_answer_in_passage += 1
            continue
        number = train.question(asked(question), name_of(name, question))
        added, misses = 0, []
        for passage in question.contexts:
            if not find_answers(passage.text, question.answers):
                misses.append(passage)
            elif added < settings.positives:
                added += train.add(number, passage, question.answers)
        if not added:
            rejects.without_answer_in_passage += 1
        elif misses:
            chosen = [train.passage(p)[0] for p in misses[:NEGATIVES]]
            train.data.negatives[number] = chosen
        else:
            first = question.contexts[0]
            key, here = (name, first.title), train.passage(first)[0]
            siblings.setdefault(key, set()).add(here)
            gold.append((number, key, here))
    for number, key, here in gold:
        others = sorted(siblings[key] - {here})
        if others:
            train.data.negatives[number] = chooser.sample(others, min(NEGATIVES, len(others)))
    unseen = [path for path in settings.dev if Source(path).name not in dev.questions]
    for missing, what, files in (
        (not train.data.examples, "to train on", settings.files),
        (unseen or not dev.questions, "to look at", unseen or settings.files),
    ):
        if missing:
            raise InputError(f"no passage {what} holds an answer", found=str(rejects),
                             where=", ".join(map(str, files)),
                             todo="give passages in which the answers stand")  # fmt: skip
    return train, dev


def _add_class(
    builder: SpanDataBuilder, name: str, question: Question, labels: tuple[str, ...]
) -> list[SpanExample]:
    """Add a question of the file ``name`` over each of its passages, with its class's number.

    Raises:
        InputError: It is none of the labels.
    """
    right = question.label or question.answers[0]
    if right not in labels:
        raise InputError("a class that no training file has",
                         where=name_of(name, question), expected=", ".join(labels),
                         found=right[:80], todo="correct the answer")  # fmt: skip
    label = labels.index(right)
    number = builder.question(asked(question), name_of(name, question))
    examples = [
        SpanExample(number, builder.passage(passage)[0], (), label) for passage in question.contexts
    ]
    builder.data.examples += examples
    return examples


def _dev_question(builder: SpanDataBuilder, question: Question) -> DevQuestion | None:
    """A question over its first passage that holds an answer, if one does."""
    passage = next(answering(question), None)
    if passage is None:
        return None
    number = builder.question(asked(question))
    if not builder.add(number, passage, question.answers):
        return None
    _, offsets, text_start = builder.passage(passage)
    example = builder.data.examples[-1]
    return DevQuestion(example, passage.text, offsets, text_start, question.answers)
