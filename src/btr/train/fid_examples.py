"""Questions to tokenised Fusion-in-Decoder examples, and those to padded batches.

``B`` questions of a batch, ``m`` most passages of one of them, ``U`` passages of all of them,
``Q``, ``P`` and ``T`` padded tokens of a question, a passage and an answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btr.data.passages import Passage
from btr.data.questions import Question, asked
from btr.errors import InputError, UsageError
from btr.readers.t5_checkpoint import T5ReaderConfig
from btr.readers.t5_text import FidText
from btr.train.batches import length_batches, on_device
from btr.train.sources import (
    DataSettings,
    Rejects,
    answering,
    find_answers,
    name_of,
    read_sources,
)
from btr.train.span_examples import pad
from btr.train.stored import StoredRows, StoredStates

IGNORED = -100
"""Label of padding, which no loss counts."""

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class FidDataSettings(DataSettings):
    """What is read.

    Attributes:
        passages: Most passages of a question (paper: 40).
        distractors: Passages without the answer, of the same file and title, that are added to a
            question that has fewer than ``passages``.
    """

    passages: int = 20
    distractors: int = 0


@dataclass(frozen=True, slots=True)
class FidExample:
    """A question, its passages and its right answers, as rows of :class:`FidData`."""

    question: int
    passages: tuple[int, ...]
    answers: tuple[int, ...]


@dataclass
class FidData:
    """Tokenised questions, distinct passages and answers, and the examples that join them.

    ``origins`` says of each question where it comes from. Where a reader is adapted, ``stored``
    holds the passages' stored states.
    """

    questions: list[Ids] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    passages: list[Ids] = field(default_factory=list)
    answers: list[Ids] = field(default_factory=list)
    examples: list[FidExample] = field(default_factory=list)
    stored: StoredStates | None = None


class FidDataBuilder:
    """Tokenises questions as a reader with this configuration would see them.

    Args:
        text: The reader's input format.
        config: Its budgets and what its answers begin with.

    Raises:
        UsageError: The answer budget is too small for what answers begin with, a token of the
            answer and the end token.
    """

    def __init__(self, text: FidText, config: T5ReaderConfig) -> None:
        self.text, self.config = text, config
        self.prompt = text.literal(config.answer_prompt)
        self.answer_room = config.answer_budget - len(self.prompt) - 1
        if self.answer_room < 1:
            raise UsageError("the answer budget leaves no room for an answer",
                             expected=f"at least {len(self.prompt) + 2}",
                             found=str(config.answer_budget),
                             todo="give a larger --answer-budget")  # fmt: skip
        self.data = FidData()
        self.passages: list[Passage] = []
        self._known: dict[tuple[str, str], int] = {}

    def passage(self, passage: Passage) -> int:
        """Number of a passage, tokenised when it is first met."""
        key = (passage.title, passage.text)
        if key not in self._known:
            tokens = self.text.passage(passage.title, passage.text, self.config.passage_budget)
            self._known[key] = len(self.passages)
            self.passages.append(passage)
            self.data.passages.append(np.asarray(tokens.ids, np.int32))
        return self._known[key]

    def answer(self, text: str) -> int:
        """Number of an answer as the decoder is to write it, cut to the budget."""
        ids = [*self.prompt, *self.text.encode(text)[0][: self.answer_room], self.text.end_token]
        self.data.answers.append(np.asarray(ids, np.int32))
        return len(self.data.answers) - 1

    def add(self, question: Question, origin: str = "") -> None:
        """Take in a question with its passages, and where it comes from."""
        ids, _ = self.text.query(asked(question), self.config.query_budget)
        self.data.questions.append(np.asarray(ids, np.int32))
        self.data.origins.append(origin)
        passages = tuple(self.passage(p) for p in question.contexts)
        answers = tuple(self.answer(a) for a in dict.fromkeys(question.answers) if a.strip())
        self.data.examples.append(FidExample(len(self.data.questions) - 1, passages, answers))


def load_fid_data(
    settings: FidDataSettings,
    text: FidText,
    config: T5ReaderConfig,
    rejects: Rejects,
) -> tuple[FidDataBuilder, dict[str, list[Question]]]:
    """Files to training examples and, by file, the questions held out.

    Raises:
        InputError: A line is bad, or nothing is left to train on.
    """
    builder = FidDataBuilder(text, config)
    train: list[tuple[str, Question]] = []
    dev: dict[str, list[Question]] = {}
    for name, question, is_dev in read_sources(settings, rejects, chooses=lambda q: bool(q.label)):
        if is_dev:
            dev.setdefault(name, []).append(question)
        elif question.contexts:
            train.append((name, question))
    if not train:
        raise InputError("no question to train on", where=", ".join(map(str, settings.files)),
                         found="every passage was held out", todo="lower --dev-share")  # fmt: skip
    for (name, _), question in zip(train, add_distractors(train, settings), strict=True):
        builder.add(grounded(question, settings.passages), name_of(name, question))
    return builder, dev


def add_distractors(
    questions: Sequence[tuple[str, Question]], settings: FidDataSettings
) -> Iterator[Question]:
    """Questions, each with its file's name, to the same with passages that do not answer them."""
    chooser = random.Random(settings.seed)  # noqa: S311 -- a sample, not a secret
    siblings: dict[tuple[str, str], dict[str, Passage]] = {}
    for name, question in questions if settings.distractors else ():
        for passage in question.contexts:
            siblings.setdefault((name, passage.title), {})[passage.text] = passage
    for name, question in questions:
        room = min(settings.distractors, settings.passages - len(question.contexts))
        if room > 0:
            own = {passage.text for passage in question.contexts}
            drawn = _drawn(
                [
                    passage
                    for title in dict.fromkeys(p.title for p in question.contexts)
                    for passage in siblings[name, title].values()
                ],
                chooser,
            )
            others = (
                passage
                for passage in drawn
                if passage.text not in own and not find_answers(passage.text, question.answers)
            )
            added = islice(others, room)
            question = replace(question, contexts=(*question.contexts, *added))
        yield question


def _drawn(passages: list[Passage], chooser: random.Random) -> Iterator[Passage]:
    """All of a list in random order, each drawn when it is asked for; the list is used up.

    A title may have thousands of passages, and few have to be looked at.
    """
    while passages:
        at = chooser.randrange(len(passages))
        passages[at], passages[-1] = passages[-1], passages[at]
        yield passages.pop()


def grounded(question: Question, most: int) -> Question:
    """A question as it is trained on: with its first ``most`` passages and answers that they hold.

    If none of them holds an answer, the first later one that does takes the last one's place: of
    retrieved passages few hold one, and who is taught answers that stand nowhere learns to guess.
    Classes and letters stand nowhere and stay, as do answers that no passage holds.
    """
    chosen = question.contexts[:most]
    if question.label:
        return replace(question, contexts=chosen)
    first = next(answering(question), chosen[0])
    if first not in chosen:
        chosen = (*chosen[:-1], first)
    standing = tuple(
        answer
        for answer in question.answers
        if any(find_answers(passage.text, (answer,)) for passage in chosen)
    )
    return replace(question, contexts=chosen, answers=standing or question.answers)


@dataclass
class FidBatch:
    """Padded tensors of one batch.

    Attributes:
        query_ids: ``[B, Q]`` int64.
        query_mask: ``[B, Q]`` bool.
        passage_ids: ``[U, P]`` int64.
        passage_mask: ``[U, P]`` bool.
        question_of: ``[U]`` int64, the question that a passage belongs to.
        slots: ``[B, m]`` int64, each question's passages as rows of ``passage_ids``; -1 fills up.
        labels: ``[B, T]`` int64 answer tokens; :data:`IGNORED` fills up.
        stored: Stored states of the ``U`` passages, or None where they are to be made.
    """

    query_ids: Tensor
    query_mask: Tensor
    passage_ids: Tensor
    passage_mask: Tensor
    question_of: Tensor
    slots: Tensor
    labels: Tensor
    stored: StoredRows | None = None

    def to(self, device: torch.device) -> FidBatch:
        """The same batch on another device."""
        return on_device(self, device)


def collate(data: FidData, examples: Sequence[FidExample]) -> FidBatch:
    """Examples to one batch; each is taught its first answer."""
    query_ids, query_mask = pad([data.questions[e.question] for e in examples])
    chosen = [p for e in examples for p in e.passages]
    passage_ids, passage_mask = pad([data.passages[p] for p in chosen])
    counts = torch.tensor([len(e.passages) for e in examples])
    slots = torch.full((len(examples), int(counts.max())), -1)
    first = 0
    for i, count in enumerate(counts.tolist()):
        slots[i, :count] = torch.arange(first, first + count)
        first += count
    labels, answer_mask = pad([data.answers[e.answers[0]] for e in examples])
    return FidBatch(
        query_ids, query_mask, passage_ids, passage_mask,
        torch.repeat_interleave(torch.arange(len(examples)), counts), slots,
        labels.masked_fill(~answer_mask, IGNORED),
        None if data.stored is None else data.stored.rows(chosen),
    )  # fmt: skip


def epoch_batches(
    data: FidData, *, seed: int, epoch: int, token_budget: int
) -> list[list[FidExample]]:
    """The batches of one epoch, the same for the same arguments.

    An example with several right answers is taught one of them, another in another epoch. Questions
    whose passages are of similar length share a batch, so that little of it is padding.

    Args:
        data: Tokenised examples.
        seed: With ``epoch``, all of the randomness.
        epoch: Number of the pass.
        token_budget: Most padded tokens of questions and passages in a batch; a single question may
            have more.
    """
    draw = np.random.default_rng([seed, epoch])
    examples = [
        FidExample(e.question, e.passages, (e.answers[int(draw.integers(len(e.answers)))],))
        for e in data.examples
    ]

    def cost(chosen: Sequence[FidExample]) -> int:
        passage = max(len(data.passages[p]) for e in chosen for p in e.passages)
        width = passage + max(len(data.questions[e.question]) for e in chosen)
        return sum(len(e.passages) for e in chosen) * width

    longest = [max(len(data.passages[p]) for p in e.passages) for e in examples]
    return length_batches(
        [[e] for e in examples], longest, draw, cost=cost, token_budget=token_budget
    )
