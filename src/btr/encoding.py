"""From passages to the states of a shard, the same in every process that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from btr.data.passages import Passage
from btr.readers.base import Reader
from btr.store.format import PassageState

GROUP_PASSAGES = 256
"""Passages given to the reader at once. Part of the result, as rounding may depend on it."""


def shard_states(
    reader: Reader,
    passages: Sequence[Passage],
    encoded: Callable[[int, int], None] = lambda passages, tokens: None,
) -> list[PassageState]:
    """The states of a shard's passages.

    Args:
        reader: Makes them.
        passages: Of one shard.
        encoded: Called with the passages and tokens of every group that is done.
    """
    states: list[PassageState] = []
    for group in batches(iter(passages), GROUP_PASSAGES):
        made = reader.encode(group)
        encoded(len(group), sum(len(state.rows) for state in made))
        states += made
    return states


def completed(
    reader: Reader, passages: Sequence[Passage], states: Sequence[PassageState | None]
) -> list[PassageState]:
    """States of which those that are not stored are made now.

    Args:
        reader: The one that made the others, or one with the same lower layers.
        passages: One a state.
        states: None where one is to be made.
    """
    missing = [i for i, state in enumerate(states) if state is None]
    made = iter(reader.encode([passages[i] for i in missing]) if missing else [])
    return [next(made) if state is None else state for state in states]


def batches(items: Iterator[Passage], size: int) -> Iterator[list[Passage]]:
    """Passages in lists of ``size``, the last one shorter."""
    while batch := list(islice(items, size)):
        yield batch
