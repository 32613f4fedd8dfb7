"""Readers timed against each other: rounds interleaved in one process, medians of per-round ratios.

Everything that a mode could be given beforehand is given to all: stored states to the split
readers, token ids to the plain one. So a ratio says what the reading costs, nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from btr.data.passages import Passage
from btr.machine import machine_card, peak_rss_mb
from btr.readers.base import Reader, Reading
from btr.store.format import PassageState


@dataclass(frozen=True, slots=True)
class Workload:
    """A question with its passages."""

    question: str
    passages: Sequence[Passage]


@dataclass(slots=True)
class Contender:
    """A reader in the race, with the states of every workload's passages (None for plain)."""

    label: str
    reader: Reader
    states: Sequence[Sequence[PassageState]] | None
    rounds_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)


def prepare(label: str, reader: Reader, work: Sequence[Workload]) -> Contender:
    """Encode a contender's states beforehand, as a store would hold them."""
    if reader.mode == "plain":
        return Contender(label, reader, None)
    return Contender(label, reader, [reader.encode(w.passages) for w in work])


def race(
    contenders: Sequence[Contender],
    work: Sequence[Workload],
    *,
    rounds: int = 7,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Time every contender on every workload, ``rounds`` times, turn by turn.

    A round that is not counted comes first. A reading's tokenizing of passages is left out of its
    time: a plain reader could keep token ids.
    """
    for number in range(rounds + 1):
        for contender in contenders:
            wall = cpu = 0.0
            for i, task in enumerate(work):
                states = None if contender.states is None else contender.states[i]
                started, cpu_started = time.perf_counter(), time.process_time()
                reading: Reading = contender.reader.read(task.question, task.passages, states)
                spent = time.perf_counter() - started
                tokenizing = reading.stages_ms.get("tokenize", 0.0) / 1e3
                wall += spent - tokenizing
                cpu += time.process_time() - cpu_started - tokenizing
                if number:
                    for stage, ms in reading.stages_ms.items():
                        contender.stages_ms.setdefault(stage, []).append(ms)
            if number:
                contender.rounds_s.append(wall / len(work))
                contender.cpu_s.append(cpu / len(work))
        progress(number)


def report(
    contenders: Sequence[Contender], work: Sequence[Workload], *, settings: dict[str, Any]
) -> dict[str, Any]:
    """The race as a bench report; ratios are to the first contender, round by round."""
    base = contenders[0]
    rows = []
    for c in contenders:
        ratios = [a / b for a, b in zip(base.rounds_s, c.rounds_s, strict=True)]
        cpu_ratios = [a / b for a, b in zip(base.cpu_s, c.cpu_s, strict=True)]
        rows.append(
            {
                "family": c.reader.family,
                "shape": c.label,
                "mode": c.reader.mode,
                "techniques": ["decomposition", "bits"][: ("plain", "decomposed", "btr").index(
                    c.reader.mode)],
                "ms_per_query": round(1e3 * statistics.median(c.rounds_s), 2),
                "queries_per_s": round(1 / statistics.median(c.rounds_s), 2),
                "ratio_to_plain": round(statistics.median(ratios), 3),
                "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
                "cpu_ratio_to_plain": round(statistics.median(cpu_ratios), 3),
                "stages_ms": {k: round(statistics.median(v), 3) for k, v in c.stages_ms.items()},
                "peak_rss_mb": round(peak_rss_mb()),
            }
        )  # fmt: skip
    settings = {
        **settings,
        "rounds": len(base.rounds_s),
        "questions": len(work),
        "passages_per_question": len(work[0].passages),
    }
    return {"machine": machine_card(), "settings": settings, "rows": rows}
