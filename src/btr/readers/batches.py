"""Batches of texts by length, and a clock for the stages of a reading."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch

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
