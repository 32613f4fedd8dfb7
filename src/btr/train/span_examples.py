"""Questions with answer strings to tokenised span examples, and those to batches.

Data comes without answer offsets, so every place in the passage where an answer string stands is a
target and the loss sums over them. A question may also be paired with a passage that does not
answer it: its target is the ``[CLS]`` token, "not answered here".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from btr.data.passages import Passage
from btr.readers.bert_text import tokenize_passage, tokenize_query
from btr.train.batches import length_batches, on_device
from btr.train.sources import find_answers
from btr.train.stored import StoredRows, StoredStates

MAX_TARGETS = 8
"""Places of an answer in one passage that count as targets; further ones are rare and dropped."""


@dataclass(frozen=True, slots=True)
class SpanExample:
    """A question over a passage; ``spans`` are passage token positions, empty for "not here".

    In a task of classes, ``label`` is the number of the right one, and there are no spans.
    """

    question: int
    passage: int
    spans: tuple[tuple[int, int], ...]
    label: int = -1


@dataclass
class SpanData:
    """Tokenised questions and passages with the examples that pair them.

    ``origins`` says of each question where it comes from, ``negatives`` which passages do not
    answer it. Where a reader is adapted, ``stored`` holds the passages' stored states.
    """

    questions: list[np.ndarray] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    passages: list[np.ndarray] = field(default_factory=list)
    examples: list[SpanExample] = field(default_factory=list)
    negatives: dict[int, list[int]] = field(default_factory=dict)
    stored: StoredStates | None = None


class SpanDataBuilder:
    """Tokenises each distinct question and passage once.

    Args:
        tokenizer: A fast BERT tokenizer.
        query_budget: Most query tokens with ``[CLS]`` and ``[SEP]``.
        passage_budget: Most passage tokens; later ones are cut in training.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, query_budget: int, passage_budget: int
    ) -> None:
        self.tokenizer, self.data = tokenizer, SpanData()
        self.query_budget, self.passage_budget = query_budget, passage_budget
        self.passages: list[Passage] = []
        self._known: dict[tuple[str, str], tuple[int, list[tuple[int, int]], int]] = {}

    def passage(self, passage: Passage) -> tuple[int, list[tuple[int, int]], int]:
        """Number of the passage, character offsets of its text tokens, and where those start."""
        title, text = passage.title, passage.text
        known = self._known.get((title, text))
        if known is None:
            ids, text_start, _, offsets = tokenize_passage(
                self.tokenizer, title, text, self.passage_budget
            )
            known = (len(self.passages), offsets, text_start)
            self._known[title, text] = known
            self.passages.append(passage)
            self.data.passages.append(np.asarray(ids, np.int32))
        return known

    def question(self, question: str, origin: str = "") -> int:
        """Add a question, and where it comes from; returns its number."""
        ids = tokenize_query(self.tokenizer, question, self.query_budget)
        self.data.questions.append(np.asarray(ids, np.int32))
        self.data.origins.append(origin)
        return len(self.data.questions) - 1

    def add(self, question: int, passage: Passage, answers: Sequence[str]) -> bool:
        """Pair a question with a passage that answers it; False if no answer is found in it."""
        number, offsets, text_start = self.passage(passage)
        spans = []
        for first, last in find_answers(passage.text, answers):
            inside = [i for i, (a, b) in enumerate(offsets) if b > first and a < last]
            if inside and offsets[inside[-1]][1] >= last:
                spans.append((text_start + inside[0], text_start + inside[-1]))
        if spans:
            example = SpanExample(question, number, tuple(sorted(set(spans))[:MAX_TARGETS]))
            self.data.examples.append(example)
        return bool(spans)


@dataclass
class SpanBatch:
    """Padded tensors of one batch.

    ``query_ids`` ``[B, Q]`` and ``passage_ids`` ``[U, P]`` int64 with bool masks; ``passage_of``
    ``[B]`` maps a question to its passage; ``spans`` ``[B, M, 2]`` are the targets' first and last
    positions, 0 being "not answered here" and ``1 + i`` the passage's token ``i``; -1 fills up;
    ``labels`` ``[B]`` int64 are the right classes, -1 outside of such a task; ``stored`` are
    stored states of the ``U`` passages, or None where they are to be made.
    """

    query_ids: Tensor
    query_mask: Tensor
    passage_ids: Tensor
    passage_mask: Tensor
    passage_of: Tensor
    spans: Tensor
    labels: Tensor
    stored: StoredRows | None = None

    def to(self, device: torch.device) -> SpanBatch:
        """The same batch on another device."""
        return on_device(self, device)


def pad(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Ragged id rows to ``[n, longest]`` int64 ids (0 where padded) and a bool mask."""
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.bool_)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def collate(data: SpanData, examples: Sequence[SpanExample]) -> SpanBatch:
    """Examples to one batch; a passage that several share appears once."""
    distinct = sorted({e.passage for e in examples})
    row = {number: i for i, number in enumerate(distinct)}
    query_ids, query_mask = pad([data.questions[e.question] for e in examples])
    passage_ids, passage_mask = pad([data.passages[number] for number in distinct])
    spans = torch.full((len(examples), MAX_TARGETS, 2), -1)
    for i, example in enumerate(examples):
        places = [(1 + first, 1 + last) for first, last in example.spans] or [(0, 0)]
        spans[i, : len(places)] = torch.tensor(places)
    passage_of = torch.tensor([row[e.passage] for e in examples])
    stored = None if data.stored is None else data.stored.rows(distinct)
    labels = torch.tensor([e.label for e in examples])
    return SpanBatch(
        query_ids, query_mask, passage_ids, passage_mask, passage_of, spans, labels, stored
    )


def epoch_batches(
    data: SpanData,
    *,
    seed: int,
    epoch: int,
    token_budget: int,
    negative_share: float,
    questions_per_passage: int = 4,
) -> list[list[SpanExample]]:
    """The batches of one epoch, the same for the same arguments.

    Up to ``questions_per_passage`` questions on one passage stay together, so that its lower layers
    run once for them; groups of similar length share a batch, so that little is padding.

    Args:
        data: Tokenised examples.
        seed: With ``epoch``, all of the randomness.
        epoch: Number of the pass.
        token_budget: Most padded tokens (query and passage of every example) in a batch.
        negative_share: Chance that a question comes a second time, with a passage that does not
            answer it.
        questions_per_passage: Size of a group.
    """
    random = np.random.default_rng([seed, epoch])
    groups: dict[int, list[SpanExample]] = {}
    for i in random.permutation(len(data.examples)):
        example = data.examples[i]
        groups.setdefault(example.passage, []).append(example)
        others = data.negatives.get(example.question, ())
        if others and random.random() < negative_share:
            other = others[random.integers(len(others))]
            negative = SpanExample(example.question, other, ())
            groups.setdefault(other, []).append(negative)
    chunks = [
        group[i : i + questions_per_passage]
        for group in groups.values()
        for i in range(0, len(group), questions_per_passage)
    ]

    def cost(examples: Sequence[SpanExample]) -> int:
        passage = max(len(data.passages[e.passage]) for e in examples)
        return len(examples) * (passage + max(len(data.questions[e.question]) for e in examples))

    lengths = [len(data.passages[chunk[0].passage]) for chunk in chunks]
    return length_batches(chunks, lengths, random, cost=cost, token_budget=token_budget)
