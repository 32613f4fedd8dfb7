"""Span corruption, T5's pretraining task (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4).

A share of a text's tokens is cut out in spans; a sentinel stands where each was, and the target
lists every sentinel with what it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]

DENSITY = 0.15
"""Share of tokens that are cut out."""

MEAN_SPAN = 3.0
"""Mean tokens of a span."""


def corrupt(
    ids: Ids, random: np.random.Generator, sentinels: Sequence[int], end_token: int
) -> tuple[Ids, Ids]:
    """Cut spans out of a text.

    Args:
        ids: ``[n]`` tokens, at least two.
        random: Draws the spans.
        sentinels: Tokens that mark spans, in order; they bound the number of spans.
        end_token: Closes the target.

    Returns:
        The text with sentinels in place of spans, and the target.

    Raises:
        ValueError: Fewer than two tokens.
    """
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} tokens cannot be corrupted")
    noise = min(max(1, round(len(ids) * DENSITY)), len(ids) - 1)
    spans = min(max(1, round(noise / MEAN_SPAN)), len(ids) - noise, len(sentinels))
    cut = _parts(noise, spans, random)
    kept = _parts(len(ids) - noise, spans, random)
    source: list[Ids] = []
    target: list[Ids] = []
    at = 0
    for number, (before, length) in enumerate(zip(kept, cut, strict=True)):
        sentinel = np.array([sentinels[number]], np.int32)
        source += [ids[at : at + before], sentinel]
        at += before
        target += [sentinel, ids[at : at + length]]
        at += length
    return np.concatenate(source), np.concatenate([*target, np.array([end_token], np.int32)])


def _parts(total: int, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """``total`` as a sum of ``count`` positive numbers, every such sum equally likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
