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
        title: Place in ``passage`` of the title's first token.
        text: Place in ``passage`` of the text's first token.
    """

    query: Ids
    passage: Ids
    asked: int
    title: int
    text: int


@dataclass(frozen=True, slots=True)
class AlignedPair:
    """The same pair twice.

    Attributes:
        bert: As an extractive reader sees it.
        t5: As a Fusion-in-Decoder reader does.
        asked: Tokens of the question that both hold.
        title: Tokens of the title that both hold.
        text: Tokens of the text that both hold.
    """

    bert: View
    t5: View
    asked: int
    title: int
    text: int


def counterparts(pair: AlignedPair, query_width: int) -> NDArray[np.int64]:
    """Where the extractive reader has what each token of the other stands for.

    Tokens of both stand for themselves, those of a template for the mark at that place: ``[CLS]``
    before the question, ``[SEP]`` behind question, title and text.

    Args:
        pair: The pair.
        query_width: Padded length of the extractive reader's questions.

    Returns:
        int64 ``[len(t5.query) + len(t5.passage)]`` places in its padded ``[question; passage]``.
    """
    bert, t5 = pair.bert, pair.t5
    query = np.full(len(t5.query), len(bert.query) - 1)
    query[: t5.asked] = 0
    query[t5.asked : t5.asked + pair.asked] = bert.asked + np.arange(pair.asked)
    passage = np.full(len(t5.passage), query_width + len(bert.passage) - 1)
    passage[: t5.text] = query_width + bert.text - 1 if bert.text else len(bert.query) - 1
    passage[: t5.title] = len(bert.query) - 1
    for mine, theirs, count in (
        (t5.title, bert.title, pair.title), (t5.text, bert.text, pair.text),
    ):  # fmt: skip
        passage[mine : mine + count] = query_width + theirs + np.arange(count)
    return np.concatenate([query, passage])


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
        names = [field for field, _ in text.passage_parts]
        # Literals between a title and the text; all before the text where titles are not shown.
        self.titled = "title" in names
        after = names.index("title") + 1 if self.titled else 0
        self.between = sum(len(ids) for _, ids in text.passage_parts[after:])

    def pair(self, question: str, passage: Passage) -> AlignedPair:
        """A question with a passage."""
        budget = self.config.passage_budget
        theirs = tokenize_query(self.tokenizer, question, self.query_budget)
        ids, start, _, offsets = tokenize_passage(
            self.tokenizer, passage.title, passage.text, budget
        )
        bert = View(np.asarray(theirs, np.int32), np.asarray(ids, np.int32), 1, 0, start)
        mine, _ = self.text.query(question, self.config.query_budget)
        tokens = self.text.passage(passage.title, passage.text, budget)
        title = max(0, start - 1) if self.titled else 0
        t5 = View(np.asarray(mine, np.int32), np.asarray(tokens.ids, np.int32), self.before,
                  tokens.text_start - self.between - title, tokens.text_start)  # fmt: skip
        asked = min(len(theirs) - 2, len(mine) - self.around)
        return AlignedPair(bert, t5, asked, title, min(len(offsets), len(tokens.offsets)))


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
class PaddedPairs:
    """A batch of pairs, and where the tokens that both readers have stand in it.

    ``n`` such tokens, first the texts', pair by pair, then the questions'; of texts ``t``.

    Attributes:
        bert: As the extractive reader sees them.
        t5: As the other does.
        of: ``[n]`` int64, a token's pair.
        bert_place: ``[n]`` int64, its place in that reader's padded ``[question; passage]``.
        t5_place: ``[n]`` int64, in the other's.
        place: ``[t]`` int64, its number in its text.
        tokens: ``[t]`` int64, what it is.
        before: ``[t]`` int64, what stands before it for the other reader.
    """

    bert: PaddedView
    t5: PaddedView
    of: Tensor
    bert_place: Tensor
    t5_place: Tensor
    place: Tensor
    tokens: Tensor
    before: Tensor

    @property
    def texts(self) -> slice:
        """Those of the ``n`` that belong to texts."""
        return slice(len(self.place))


def pad_pairs(pairs: Sequence[AlignedPair], device: torch.device) -> PaddedPairs:
    """Pad pairs and align their tokens."""
    bert = PaddedView.of([pair.bert for pair in pairs], device)
    t5 = PaddedView.of([pair.t5 for pair in pairs], device)
    texts = [np.arange(pair.text) for pair in pairs]
    questions = [np.arange(pair.asked) for pair in pairs]
    counts = [len(part) for part in (*texts, *questions)]
    of = torch.from_numpy(np.repeat(np.tile(np.arange(len(pairs)), 2), counts)).to(device)

    def places(views: Sequence[View], query: int) -> Tensor:
        found = [text + query + view.text for text, view in zip(texts, views, strict=True)]
        found += [asked + view.asked for asked, view in zip(questions, views, strict=True)]
        return torch.from_numpy(np.concatenate(found)).to(device)

    query = t5.query_ids.shape[1]
    bert_place = places([pair.bert for pair in pairs], bert.query_ids.shape[1])
    t5_place = places([pair.t5 for pair in pairs], query)
    place = torch.from_numpy(np.concatenate(texts)).to(device)
    tokens, before = (
        t5.passage_ids[of[: len(place)], t5_place[: len(place)] - query - back] for back in (0, 1)
    )
    return PaddedPairs(bert, t5, of, bert_place, t5_place, place, tokens, before)


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
