"""Training batches of similar length within a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

JITTER = 6
"""Tokens by which lengths are blurred, so that not every epoch has the same neighbours."""


def length_batches(
    groups: Sequence[Sequence[Item]],
    lengths: Sequence[int],
    random: np.random.Generator,
    *,
    cost: Callable[[Sequence[Item]], int],
    token_budget: int,
) -> list[list[Item]]:
    """Cut groups into batches, in random order; little of a batch is padding.

    Args:
        groups: Items that stay together.
        lengths: Of the groups, in tokens.
        random: Draws jitter and order.
        cost: Padded tokens of a batch.
        token_budget: Most of them; a single group may have more.
    """
    order = np.argsort(np.asarray(lengths) + random.uniform(0, JITTER, len(groups)), kind="stable")
    batches: list[list[Item]] = []
    current: list[Item] = []
    for i in order:
        grown = [*current, *groups[i]]
        if current and cost(grown) > token_budget:
            batches.append(current)
            grown = list(groups[i])
        current = grown
    batches.append(current)
    return [batches[i] for i in random.permutation(len(batches))]
