"""Contenders timed against each other: rounds interleaved in one process, ratios round by round.

The rules: every contender runs the same tasks in every round, turn by turn; a round that is not
counted comes first; a ratio is the median over rounds of the ratio within a round, with its least
and greatest value. So what slows the machine for a while slows all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from btr.machine import peak_rss_mb, reset_peak_rss

UNTIMED = "tokenize"
"""A stage that is left out of a contender's time: its result could be kept."""


@dataclass(slots=True)
class Contender:
    """Something in the race.

    Attributes:
        label: Its name in the report.
        family: Reader family.
        mode: Reader mode.
        techniques: What is switched on.
        run: Does task ``i`` and returns its stages in milliseconds.
        extra: Further fields of its row, known beforehand.
    """

    label: str
    family: str
    mode: str
    techniques: Sequence[str]
    run: Callable[[int], Mapping[str, float]]
    extra: Mapping[str, Any] = field(default_factory=dict)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    peak_rss_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Race:
    """Who races, and against whom.

    Attributes:
        contenders: In the order of their turns.
        plain: The one that ratios are to.
        unmodified: The software that btr stands in for, as it is published, if it takes part:
            ratios to it are reported as well.
    """

    contenders: Sequence[Contender]
    plain: Contender
    unmodified: Contender | None = None


def race(
    contenders: Sequence[Contender],
    tasks: int,
    *,
    rounds: int = 7,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Let every contender do all tasks, ``rounds`` times; seconds are those of one task."""
    for number in range(rounds + 1):
        for contender in contenders:
            if not number:
                reset_peak_rss()
            wall = cpu = 0.0
            for task in range(tasks):
                started, cpu_started = time.perf_counter(), time.process_time()
                stages = contender.run(task)
                untimed = stages.get(UNTIMED, 0.0) / 1e3
                wall += time.perf_counter() - started - untimed
                cpu += time.process_time() - cpu_started - untimed
                if number:
                    for stage, ms in stages.items():
                        contender.stages_ms.setdefault(stage, []).append(ms)
            if number:
                contender.wall_s.append(wall / tasks)
                contender.cpu_s.append(cpu / tasks)
            else:
                contender.peak_rss_mb = peak_rss_mb()
        progress(number)


def rows(run: Race) -> list[dict[str, Any]]:
    """The rows of a bench report after :func:`race`; ratios are above 1 for what is faster."""
    plain, unmodified = run.plain, run.unmodified
    return [
        {
            "family": c.family,
            "shape": c.label,
            "mode": c.mode,
            "techniques": list(c.techniques),
            "ms_per_query": round(1e3 * statistics.median(c.wall_s), 2),
            "cpu_ms_per_query": round(1e3 * statistics.median(c.cpu_s), 2),
            "queries_per_s": round(1 / statistics.median(c.wall_s), 2),
            **_ratios("ratio_to_plain", "ratio_range", plain.wall_s, c.wall_s),
            **_ratios("cpu_ratio_to_plain", "cpu_ratio_range", plain.cpu_s, c.cpu_s),
            **(
                _ratios("ratio_to_unmodified", "unmodified_range", unmodified.wall_s, c.wall_s)
                if unmodified
                else {}
            ),
            "stages_ms": {k: round(statistics.median(v), 3) for k, v in c.stages_ms.items()},
            "peak_rss_mb": round(c.peak_rss_mb),
            **c.extra,
        }
        for c in run.contenders
    ]


def _ratios(median: str, span: str, base: Sequence[float], mine: Sequence[float]) -> dict[str, Any]:
    """Median and range of the ratios round by round, under these names."""
    ratios = [a / b for a, b in zip(base, mine, strict=True)]
    return {
        median: round(statistics.median(ratios), 3),
        span: [round(min(ratios), 3), round(max(ratios), 3)],
    }
