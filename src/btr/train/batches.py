"""Training batches of similar length within a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor


class Asked(Protocol):
    """An example of any family."""

    @property
    def question(self) -> int:
        """Number of its question."""


Item = TypeVar("Item")
Batch = TypeVar("Batch")

NAMED = 3
"""Examples of a batch that an error names."""

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
    if current:
        batches.append(current)
    return [batches[i] for i in random.permutation(len(batches))]


def first_origins(origins: Sequence[str], examples: Sequence[Asked]) -> str:
    """Where the first examples of a batch come from.

    Args:
        origins: By number of the question.
        examples: Of the batch.
    """
    return ", ".join(origins[example.question] for example in examples[:NAMED])


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A dataclass with its tensors on another device; what else it holds stays as it is."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}  # type: ignore[arg-type]
    moved: dict[str, Any] = {
        name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
    }
    return replace(batch, **moved)  # type: ignore[type-var]


def padded(packed: Tensor, mask: Tensor) -> Tensor:
    """Packed ``[N, d]`` to ``[U, P, d]``: a row where the ``[U, P]`` mask is True, else zeros."""
    zeros = packed.new_zeros((*mask.shape, packed.shape[1]))
    return zeros.masked_scatter(mask[..., None], packed)
