"""The most probable spans of passages under a decoder, exactly, without scoring them all.

This is exact-extract of "How Optimal is Greedy Decoding for Extractive Question Answering?"
(https://arxiv.org/abs/2108.05857): of all spans, the one with the highest probability of its
tokens and the end token. The paper scores every span; this is a best-first branch and bound. A
path's probability is at least that of anything it continues to, so the search may stop once its
best spans beat all open paths. It knows no model: a function gives the probabilities.

``N`` tokens in all passages, with one end token behind each. ``V`` vocabulary. A place is where in
these ``N`` an occurrence begins.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-3
"""How far above 0 a log-probability may be by rounding; logits are further off."""

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class SpanAnswer:
    """A span's text with all its occurrences.

    Attributes:
        tokens: Ids, at least one.
        log_probability: Of the tokens and the end token.
        places: Passage number and first token of every occurrence that may begin and end there, in
            the order of the passages.
    """

    tokens: tuple[int, ...]
    log_probability: float
    places: tuple[tuple[int, int], ...]


def search_spans(
    passages: Sequence[Sequence[int]],
    starts: Sequence[Sequence[bool]],
    ends: Sequence[Sequence[bool]],
    score: Callable[[Sequence[tuple[int, ...]]], NDArray[np.float32]],
    *,
    end_token: int,
    longest: int,
    top: int = 1,
    batch: int = 16,
    says: Callable[[int, int, int], Hashable] | None = None,
) -> tuple[list[SpanAnswer], int]:
    """The ``top`` most probable spans of all passages.

    A span lies in one passage and holds no end token. Equal spans are one answer. The result does
    not depend on ``batch`` as far as ``score`` does not; equally probable spans are in the order of
    their first occurrence, the shorter of two that begin there first.

    Args:
        passages: Token ids of each passage; it may be empty, and there may be none.
        starts: For each token of each passage: may a span begin with it?
        ends: The same for a span's last token.
        score: The decoder: from ``n`` prefixes, 1 to ``batch`` of 0 to ``longest`` tokens, to
            ``[n, V]`` float32 log-probabilities of the token that follows each. It is never asked
            twice for a prefix.
        end_token: What follows the last token of an answer.
        longest: Most tokens of a span, without the end token.
        top: How many answers at most.
        batch: Most prefixes a call of ``score``. It gets the best open paths, of which those after
            the first may turn out to be needless: they are for a decoder that takes as long for
            one.
        says: From a passage's number, a span's first token and its last one to what the span says.
            A text may be tokenised in several ways; of spans that say the same where they first
            occur only the most probable is an answer. None: other tokens say something else.

    Returns:
        The answers, most probable first, fewer than ``top`` if there are no more; and how often
        ``score`` was called, 0 if no span is allowed.

    Raises:
        ValueError: ``starts`` or ``ends`` do not have the lengths of ``passages``; a token id is
            negative; ``longest``, ``top`` or ``batch`` is below 1; what ``score`` returns is not
            ``[n, V]`` with all ids of the passages below ``V``, or has a NaN or a value above 0.
    """
    if min(longest, top, batch) < 1:
        raise ValueError(
            f"longest, top and batch must be at least 1, not {longest}, {top} and {batch}"
        )
    text = _join(passages, starts, ends, end_token)

    def said(path: _Path) -> Hashable:
        number, first = text.place(path.first)
        return path.tokens if says is None else says(number, first, first + path.length - 1)

    vocabulary = int(text.tokens.max(initial=end_token)) + 1
    opened, found, calls = _roots(text, longest), list[_Path](), 0
    while paths := _take_best(opened, found, top, batch):
        costs = _costs(score([path.tokens for path in paths]), len(paths), vocabulary)
        calls += 1
        # All ends before all continuations, of which the new bound leaves fewer.
        for path, row in zip(paths, costs, strict=True):
            if (whole := _ended(path, text, float(row[end_token]))) is not None:
                _keep(found, whole, said)
        del found[top:]
        bound = found[-1].cost if len(found) == top else np.inf
        for path, row in zip(paths, costs, strict=True):
            for longer in _continued(path, text, row, longest, bound):
                heappush(opened, longer)
    return [_answer(path, text) for path in found], calls


class _Text(NamedTuple):
    """All passages in one row, an end token behind each.

    So one rule keeps a span in its passage and free of end tokens: it stops before an end token.
    """

    tokens: NDArray[np.int64]
    """``[N]``."""
    begins: NDArray[np.bool_]
    """``[N]``: where a span may begin."""
    close: NDArray[np.int64]
    """``[N]``: the nearest token, itself or later, that a span from here may end with, or never."""
    offsets: NDArray[np.int64]
    """``[passages]``: where each begins."""

    def place(self, token: int) -> tuple[int, int]:
        """Passage number of a token, and its number in there."""
        # Offsets grow strictly, for an empty passage has its end token.
        number = int(np.searchsorted(self.offsets, token, side="right")) - 1
        return number, token - int(self.offsets[number])


class _Path(NamedTuple):
    """A prefix, open or with its end token. Compared as tuples, the better of two is less.

    Cost, first place and length never shrink along a path, so what beats a path beats all its
    continuations, ties included. Of two open paths (or two ended ones) the first three fields
    differ, for place and length fix the tokens; an open and an ended one with equal three would be
    the same prefix, which is open no more. Hence no comparison gets to the arrays.
    """

    cost: float
    """Minus the log-probability."""
    first: int
    """``places[0]``."""
    length: int
    tokens: tuple[int, ...]
    places: NDArray[np.int64]
    """Ascending, at least one. Of an open path: from where a span can still end in time."""


def _join(
    passages: Sequence[Sequence[int]],
    starts: Sequence[Sequence[bool]],
    ends: Sequence[Sequence[bool]],
    end_token: int,
) -> _Text:
    lengths = [len(passage) for passage in passages]
    for name, flags in (("starts", starts), ("ends", ends)):
        if [len(row) for row in flags] != lengths:
            raise ValueError(f"{name} must have one flag for each token of each passage")
    stops = np.cumsum([length + 1 for length in lengths], dtype=np.int64)
    offsets = stops - np.array(lengths, dtype=np.int64) - 1
    count = int(stops[-1]) if lengths else 0
    tokens = np.full(count, end_token, dtype=np.int64)
    begins, closes = np.zeros((2, count), dtype=bool)
    for i, offset in enumerate(offsets.tolist()):
        part = slice(offset, offset + lengths[i])
        tokens[part], begins[part], closes[part] = passages[i], starts[i], ends[i]
    if tokens.min(initial=end_token) < 0:
        raise ValueError("token ids must not be negative")
    breaks = tokens == end_token
    closes &= ~breaks
    # The nearest end or break from each token on; the last token is a break, so there is one.
    index = np.where(closes | breaks, np.arange(count), _NEVER)
    nearest = np.minimum.accumulate(index[::-1])[::-1]
    return _Text(tokens, begins, np.where(closes[nearest], nearest, _NEVER), offsets)


def _roots(text: _Text, longest: int) -> list[_Path]:
    """The empty prefix as the one open path, if there is any span."""
    places = np.flatnonzero(text.begins & (text.close < np.arange(len(text.close)) + longest))
    return [_Path(0.0, int(places[0]), 0, (), places)] if places.size else []


def _take_best(opened: list[_Path], found: list[_Path], top: int, batch: int) -> list[_Path]:
    """Take up to ``batch`` of the best open paths off the heap, none that is already beaten."""
    taken: list[_Path] = []
    while opened and len(taken) < batch and (len(found) < top or opened[0] < found[-1]):
        taken.append(heappop(opened))
    return taken


def _keep(found: list[_Path], whole: _Path, said: Callable[[_Path], Hashable]) -> None:
    """Put an answer in its place, unless a better one says the same; a worse one gives way."""
    for i, other in enumerate(found):
        if said(other) == said(whole):
            if other < whole:
                return
            del found[i]
            break
    insort(found, whole)


def _costs(scores: NDArray[np.float32], count: int, vocabulary: int) -> NDArray[np.float32]:
    """``[count, V]``: minus the log-probabilities, none below 0, on which the bound rests."""
    if scores.ndim != 2 or len(scores) != count or scores.shape[1] < vocabulary:
        raise ValueError(
            f"scores must be [{count}, at least {vocabulary}], not {list(scores.shape)}"
        )
    if not (scores <= _ROUNDING).all():  # false for a NaN too
        raise ValueError("scores must be log-probabilities, but hold a NaN or a value above 0")
    return np.maximum(-scores, 0)


def _ended(path: _Path, text: _Text, cost: float) -> _Path | None:
    """The path with its end token, or None if no occurrence may end there."""
    if not path.length:
        return None
    last = path.places + (path.length - 1)
    places = path.places[text.close[last] == last]
    if not places.size:
        return None
    return path._replace(cost=path.cost + cost, first=int(places[0]), places=places)


def _continued(
    path: _Path, text: _Text, costs: NDArray[np.float32], longest: int, bound: float
) -> Iterator[_Path]:
    """The path with each next token after which a span can still end in time.

    Args:
        path: An open path.
        text: What it is a path of.
        costs: ``[V]`` of the next token.
        longest: Most tokens of a span.
        bound: Paths that cost more are left out.
    """
    following = path.places + path.length
    places = path.places[text.close[following] < path.places + longest]
    tokens = text.tokens[places + path.length]
    order = np.argsort(tokens, kind="stable")  # keeps each token's places ascending
    tokens, places = tokens[order], places[order]
    cuts = np.flatnonzero(np.diff(tokens, prepend=-1))  # no token is -1
    sums = path.cost + costs[tokens[cuts]].astype(np.float64)
    edges = [*cuts.tolist(), len(tokens)]
    for i in np.flatnonzero(sums <= bound).tolist():
        part = places[edges[i] : edges[i + 1]]
        longer = (*path.tokens, int(tokens[edges[i]]))
        yield _Path(float(sums[i]), int(part[0]), len(longer), longer, part)


def _answer(path: _Path, text: _Text) -> SpanAnswer:
    places = tuple(text.place(place) for place in path.places.tolist())
    return SpanAnswer(path.tokens, -path.cost, places)
