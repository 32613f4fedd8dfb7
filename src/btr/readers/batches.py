"""Texts by length, encoded in batches and read longest first; a clock for a reading's stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from btr.data.passages import Passage
from btr.store.format import Guesses, PassageState

ENCODE_TOKENS = 4096
"""Packed tokens of one encoding batch: enough for full matrix speed, 25 MB of activations."""


def by_length(lengths: Sequence[int], tokens: int = ENCODE_TOKENS) -> Iterator[list[int]]:
    """Group texts, longest first, until a group has ``tokens`` tokens; yields their numbers.

    Groups depend on the lengths alone, so the same texts make the same groups.
    """
    batch: list[int] = []
    total = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        batch.append(i)
        total += lengths[i]
        if total >= tokens:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def encode_by_length(
    lengths: Sequence[int], encode: Callable[[list[int]], NDArray[np.uint8]]
) -> list[NDArray[np.uint8]]:
    """Rows of every text, ``[tokens, row bytes]``, encoded in the batches of :func:`by_length`.

    Args:
        lengths: Tokens of every text.
        encode: From the numbers of some texts to their packed rows, one text after the other.
    """
    rows: list[NDArray[np.uint8]] = [np.empty((0, 0), np.uint8)] * len(lengths)
    for batch in by_length(lengths):
        ends = np.cumsum([lengths[i] for i in batch])[:-1]
        for i, part in zip(batch, np.split(encode(batch), ends), strict=True):
            rows[i] = part
    return rows


def reading_order(lengths: Sequence[int], passages: Sequence[Passage]) -> list[int]:
    """Numbers of passages, longest first, whatever order they came in."""
    return sorted(range(len(passages)), key=lambda i: (-lengths[i], passages[i].id))


def joined_guesses(states: Sequence[PassageState]) -> Guesses | None:
    """What is guessed of the tokens of states, one after the other; None if nothing is."""
    starts = np.cumsum([0, *(len(state.rows) for state in states)])
    given = [
        (start, state.guesses)
        for start, state in zip(starts.tolist(), states, strict=False)
        if state.guesses is not None
    ]
    if not given:
        return None
    return Guesses(
        np.concatenate([start + guesses.places for start, guesses in given]),
        np.concatenate([guesses.levels for _, guesses in given]),
    )


class Clock:
    """Wall milliseconds between laps, by stage."""

    def __init__(self) -> None:
        self.stages_ms: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap to ``stage``."""
        # What was started on a GPU must be done to be timed.
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.stages_ms[stage] = self.stages_ms.get(stage, 0.0) + 1e3 * (now - self._last)
        self._last = now
