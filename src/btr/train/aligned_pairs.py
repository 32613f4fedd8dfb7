"""A question and a passage as two readers see them, of one vocabulary but with other templates.

So that one can be taught the other's states, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from btr.data.passages import Passage
from btr.readers.bert_text import tokenize_passage, tokenize_query
from btr.readers.t5_checkpoint import T5ReaderConfig
from btr.readers.t5_text import FidText
from btr.train.batches import length_batches
from btr.train.span_examples import pad

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class View:
    """A pair as one reader sees it.

    Attributes:
        query: Token ids of the question in its template.
        passage: Token ids of the passage in its template.
        asked: Place in ``query`` of the question's first own token.
        text: Place in ``passage`` of the text's first token.
    """

    query: Ids
    passage: Ids
    asked: int
    text: int


@dataclass(frozen=True, slots=True)
class AlignedPair:
    """The same pair twice.

    Attributes:
        bert: As an extractive reader sees it.
        t5: As a Fusion-in-Decoder reader does.
        asked: Tokens of the question that both hold.
        text: Tokens of the text that both hold.
    """

    bert: View
    t5: View
    asked: int
    text: int


class PairTokenizer:
    """Tokenises pairs for both readers.

    Args:
        tokenizer: Of both, a fast BERT one.
        text: The generative reader's input format.
        config: Its budgets, which the other's passages are cut to as well.
        query_budget: Most tokens of a question of the extractive reader.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: FidText,
        config: T5ReaderConfig,
        query_budget: int,
    ) -> None:
        self.tokenizer, self.text, self.config = tokenizer, text, config
        self.query_budget = query_budget
        parts = [ids for _, ids in text.query_parts]
        place = [bool(field) for field, _ in text.query_parts].index(True)
        self.before = sum(len(ids) for ids in parts[:place])
        self.around = sum(len(ids) for ids in parts)

    def pair(self, question: str, passage: Passage) -> AlignedPair:
        """A question with a passage."""
        budget = self.config.passage_budget
        theirs = tokenize_query(self.tokenizer, question, self.query_budget)
        ids, start, _, offsets = tokenize_passage(
            self.tokenizer, passage.title, passage.text, budget
        )
        bert = View(np.asarray(theirs, np.int32), np.asarray(ids, np.int32), 1, start)
        mine, _ = self.text.query(question, self.config.query_budget)
        tokens = self.text.passage(passage.title, passage.text, budget)
        t5 = View(np.asarray(mine, np.int32), np.asarray(tokens.ids, np.int32), self.before,
                  tokens.text_start)  # fmt: skip
        asked = min(len(theirs) - 2, len(mine) - self.around)
        return AlignedPair(bert, t5, asked, min(len(offsets), len(tokens.offsets)))


@dataclass
class PaddedView:
    """Views of a batch, padded: ``[B, Q]`` and ``[B, P]`` ids with their masks."""

    query_ids: Tensor
    query_mask: Tensor
    passage_ids: Tensor
    passage_mask: Tensor

    @staticmethod
    def of(views: Sequence[View], device: torch.device) -> PaddedView:
        """Pad views."""
        query, passage = pad([v.query for v in views]), pad([v.passage for v in views])
        return PaddedView(*(x.to(device) for x in (*query, *passage)))


@dataclass
class Alignment:
    """Where the tokens that both readers have stand in padded ``[question; passage]`` sequences.

    ``n`` such tokens of a batch, first the texts', pair by pair, then the questions'.

    Attributes:
        of: ``[n]`` int64, their pair.
        bert: ``[n]`` int64, their place in the extractive reader's sequence.
        t5: ``[n]`` int64, in the other's.
        texts: How many belong to texts.
        place: ``[texts]`` int64, their number in their text.
    """

    of: Tensor
    bert: Tensor
    t5: Tensor
    texts: int
    place: Tensor


def align(pairs: Sequence[AlignedPair], bert_query: int, t5_query: int) -> Alignment:
    """Align pairs whose questions are padded to these lengths."""
    texts = [np.arange(pair.text) for pair in pairs]
    questions = [np.arange(pair.asked) for pair in pairs]
    bert = [t + bert_query + p.bert.text for t, p in zip(texts, pairs, strict=True)]
    bert += [q + p.bert.asked for q, p in zip(questions, pairs, strict=True)]
    t5 = [t + t5_query + p.t5.text for t, p in zip(texts, pairs, strict=True)]
    t5 += [q + p.t5.asked for q, p in zip(questions, pairs, strict=True)]
    counts = [len(part) for part in (*texts, *questions)]
    of = np.repeat(np.tile(np.arange(len(pairs)), 2), counts)
    place = np.concatenate(texts)
    found = (torch.from_numpy(x) for x in (of, np.concatenate(bert), np.concatenate(t5), place))
    numbers, theirs, mine, places = found
    return Alignment(numbers, theirs, mine, len(place), places)


def pair_batches(
    pairs: Sequence[AlignedPair], *, seed: int, epoch: int, token_budget: int
) -> list[list[AlignedPair]]:
    """The batches of one epoch; pairs of similar length share one."""
    draw = np.random.default_rng([seed, epoch])
    lengths = [len(pair.t5.query) + len(pair.t5.passage) for pair in pairs]

    def cost(chosen: Sequence[AlignedPair]) -> int:
        query, passage = (
            max(len(ids) for ids in part)
            for part in ([p.t5.query for p in chosen], [p.t5.passage for p in chosen])
        )
        return len(chosen) * (query + passage)

    return length_batches(
        [[pair] for pair in pairs], lengths, draw, cost=cost, token_budget=token_budget
    )
