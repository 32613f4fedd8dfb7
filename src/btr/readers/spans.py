"""Spans from start and end logits, as pure functions.

``B`` passages, ``S`` positions of the padded sequence, ``L`` most tokens in a span.
"""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST_ANSWER = 30
"""Most tokens in an answer; DPR and BERT readers use 10 to 30."""


def span_scores(start: Tensor, end: Tensor, allowed: Tensor, longest: int) -> Tensor:
    """Every span's ``start[i] + end[j]`` with ``i <= j < i + longest``.

    Args:
        start: ``[B, S]`` float32 start logits.
        end: ``[B, S]`` float32 end logits.
        allowed: ``[B, S]`` bool; a span begins and ends on allowed positions.
        longest: ``L``.

    Returns:
        ``[B, S, L]``: entry ``(b, i, l)`` is the span ``i .. i + l``; ``-inf`` where not allowed.
    """
    never = -torch.inf
    start = start.masked_fill(~allowed, never)
    end = torch.nn.functional.pad(end.masked_fill(~allowed, never), (0, longest - 1), value=never)
    return start[:, :, None] + end.unfold(1, longest, 1)


def top_spans(scores: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best spans of each row.

    Args:
        scores: ``[B, S, L]`` from :func:`span_scores`.
        top: How many a row, at most ``S * L``.

    Returns:
        ``[B, top]`` scores (descending, ``-inf`` where there are fewer), first and last positions.
    """
    longest = scores.shape[2]
    values, index = scores.flatten(1).topk(min(top, scores[0].numel()), dim=1)
    first = index // longest
    return values, first, first + index % longest
