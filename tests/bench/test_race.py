"""The race by a clock that only contenders move: turns, what is counted, ratios round by round."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from btr.bench import race as race_module
from btr.bench import t5
from btr.bench.race import Contender, Race, race, rows


class Clock:
    """Wall and CPU seconds; two threads work at all times."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return 2 * self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(race_module, "time", clock)
    return clock


def contender(clock: Clock, log: list[tuple[str, int]], name: str, seconds: list[float],
              untimed: float = 0.0) -> Contender:  # fmt: skip
    """Takes these seconds for each of its tasks, and says so of its stage."""
    left: Iterator[float] = iter(seconds)

    def run(task: int) -> dict[str, float]:
        log.append((name, task))
        took = next(left)
        clock.now += took + untimed
        return {"tokenize": 1e3 * untimed, "read": 1e3 * took}

    return Contender(name, "t5", "plain", [], run)


def test_every_round_has_all_contenders_in_turn_with_the_same_tasks(clock: Clock) -> None:
    log: list[tuple[str, int]] = []
    field = [contender(clock, log, name, [1.0] * 6) for name in "ab"]
    seen: list[int] = []
    race(field, 2, rounds=2, progress=seen.append)
    turn = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert log == turn * 3
    assert seen == [0, 1, 2]


def test_figures_are_medians_of_rounds_and_ratios_are_taken_within_a_round(clock: Clock) -> None:
    log: list[tuple[str, int]] = []
    # The first round, which does not count, then a machine that gets three times as slow.
    plain = contender(clock, log, "plain", [90.0, 2.0, 4.0, 6.0])
    quick = contender(clock, log, "quick", [70.0, 1.0, 1.0, 4.0], untimed=0.5)
    slow = contender(clock, log, "slow", [80.0, 4.0, 12.0, 6.0])
    race([plain, quick, slow], 1, rounds=3)
    assert quick.wall_s == pytest.approx([1.0, 1.0, 4.0])
    first, second, third = rows(Race([plain, quick, slow], plain, slow))
    assert [r["shape"] for r in (first, second, third)] == ["plain", "quick", "slow"]
    assert (first["ms_per_query"], first["queries_per_s"]) == (4000, 0.25)
    assert (first["ratio_to_plain"], first["ratio_range"]) == (1, [1, 1])
    # Ratios of 2, 4 and 1.5; that of the medians would be 4.
    assert (second["ms_per_query"], second["ratio_to_plain"]) == (1000, 2)
    assert second["ratio_range"] == [1.5, 4]
    assert (second["ratio_to_unmodified"], second["unmodified_range"]) == (4, [1.5, 12])
    assert (third["ratio_to_plain"], third["ratio_range"]) == (0.5, [0.333, 1])
    assert (third["ratio_to_unmodified"], third["unmodified_range"]) == (1, [1, 1])
    # The CPU's seconds are twice the clock's, less what was not timed.
    assert second["cpu_ms_per_query"] == 2000 + 500
    assert second["stages_ms"] == {"tokenize": 500, "read": 1000}
    assert "ratio_to_unmodified" not in rows(Race([plain], plain))[0]


def test_seconds_are_those_of_one_task(clock: Clock) -> None:
    log: list[tuple[str, int]] = []
    one = contender(clock, log, "one", [5.0, 5.0, 5.0, 1.0, 2.0, 6.0])
    race([one], 3, rounds=1)
    (row,) = rows(Race([one], one))
    assert (row["ms_per_query"], row["stages_ms"]["read"]) == (3000, 2000)


def test_memory_is_the_peak_of_the_round_that_does_not_count(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = 0.0

    def reset() -> None:
        nonlocal peak
        peak = 0.0

    def using(megabytes: float) -> Contender:
        def run(task: int) -> dict[str, float]:
            nonlocal peak
            peak = max(peak, megabytes)
            clock.now += 1
            return {}

        return Contender(str(megabytes), "t5", "plain", [], run)

    monkeypatch.setattr(race_module, "reset_peak_rss", reset)
    monkeypatch.setattr(race_module, "peak_rss_mb", lambda: peak)
    field = [using(300.0), using(200.0)]
    race(field, 1, rounds=2)
    assert [r["peak_rss_mb"] for r in rows(Race(field, field[0]))] == [300, 200]


def test_floors_are_made_of_the_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([300.0, 100.0, 200.0])

    class Laps:
        def __init__(self) -> None:
            self.stages_ms: dict[str, float] = {}

        def lap(self, stage: str) -> None:
            self.stages_ms[stage] = next(times)

    monkeypatch.setattr(t5, "Clock", Laps)
    calls: list[int] = []
    assert t5._least_seconds(lambda: calls.append(1), 0.55) == pytest.approx(0.1)
    assert len(calls) == 4  # the first one is not timed
