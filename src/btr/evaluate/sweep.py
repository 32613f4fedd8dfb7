"""Accuracy against speed against storage, over modes, passages and merging ratios.

Every question is read with all settings in turn, in an order that rotates, so that what the machine
does meanwhile falls on all of them alike. Stored states are made before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from btr.data.passages import Passage
from btr.data.questions import Question
from btr.errors import InputError
from btr.evaluate.predictions import Prediction
from btr.evaluate.run import choices_for, figures, given_passages, predict
from btr.readers.base import Merging, Mode, Reader, ReadOptions
from btr.store.format import PassageState


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to read.

    Attributes:
        reader: Its name.
        mode: Which of its checkpoints.
        passages: How many a question.
        intra: Ratio of merging inside passages.
        cross: Ratio of merging across passages.
    """

    reader: str
    mode: Mode
    passages: int
    intra: float = 0.0
    cross: float = 0.0

    @property
    def label(self) -> str:
        """For tables and plots."""
        merged = f", merging {self.intra:g}/{self.cross:g}" if self.intra or self.cross else ""
        return f"{self.reader} {self.mode}, {self.passages} passages{merged}"


@dataclass(frozen=True, slots=True)
class Point:
    """What a setting gave.

    Attributes:
        setting: The setting.
        score: F1 or accuracy, percent.
        interval: Its 95 % bootstrap interval.
        queries_per_s: Questions read a second.
        bytes_per_token: Of a stored state; 0 where nothing is stored.
        pareto: No other setting is as good in all three and better in one.
    """

    setting: Setting
    score: float
    interval: tuple[float, float]
    queries_per_s: float
    bytes_per_token: float
    pareto: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        setting: dict[str, Any] = values.pop("setting")
        return setting | values | {"label": self.setting.label}


def grid(
    readers: Iterable[tuple[str, Mode]],
    passages: Sequence[int],
    intra: Sequence[float],
    cross: Sequence[float],
    *,
    merges: Mapping[str, bool],
) -> list[Setting]:
    """All settings; merging is left out for readers that cannot, and for all modes but btr.

    Args:
        readers: Names with modes.
        passages: Numbers of passages.
        intra: Ratios.
        cross: Ratios.
        merges: By name, whether a reader can merge tokens.
    """
    settings = []
    for (name, mode), count in product(readers, passages):
        ratios = list(product(intra, cross)) if merges[name] and mode == "btr" else [(0.0, 0.0)]
        settings += [Setting(name, mode, count, a, b) for a, b in ratios]
    return settings


def sweep(
    readers: Mapping[tuple[str, Mode], Reader],
    settings: Sequence[Setting],
    questions: Iterable[Question],
    find: Callable[[Question], list[Passage]],
    *,
    labels: tuple[str, ...] = (),
    progress: Callable[[int], None] = lambda _: None,
) -> list[Point]:
    """Read every question with every setting.

    Args:
        readers: By name and mode.
        settings: What to try.
        questions: With answers to compare with.
        find: A question's passages, best first, as many as any setting wants.
        labels: What every answer is one of, in a task of classes.
        progress: Called with the number of questions done.

    Raises:
        InputError: No question had both answers and passages.
    """
    scored: list[list[Prediction]] = [[] for _ in settings]
    chosen, done, tokens = True, 0, 0
    stored = dict.fromkeys(readers, 0)
    for question in questions:
        choices = choices_for(question, labels)
        passages, _ = given_passages((find(question), None), choices)
        if not passages or not question.answers:
            continue
        chosen = chosen and bool(choices)
        states: dict[tuple[str, Mode], list[PassageState]] = {
            key: reader.encode(passages) for key, reader in readers.items() if key[1] != "plain"
        }
        for key, made in states.items():
            stored[key] += sum(state.rows.nbytes for state in made)
        tokens += max((sum(len(s.rows) for s in made) for made in states.values()), default=0)
        for i in range(len(settings)):
            number = (i + done) % len(settings)
            setting = settings[number]
            key = (setting.reader, setting.mode)
            count = setting.passages
            kept = states[key][:count] if key in states else None
            scored[number] += predict(
                readers[key], [question], [(passages[:count], kept)], labels=labels,
                use_states=kept is not None,
                options=ReadOptions(Merging(setting.intra, setting.cross)),
            )  # fmt: skip
        done += 1
        progress(done)
    if not done:
        raise InputError("no question has both answers and passages",
                         todo="give --store to retrieve passages")  # fmt: skip
    points = []
    for setting, predictions in zip(settings, scored, strict=True):
        report = figures(predictions, choices=chosen)
        name = "accuracy" if chosen else "f1"
        size = stored[setting.reader, setting.mode] / max(1, tokens)
        low, high = report[f"{name}_interval"]
        points.append(
            Point(setting, report[name], (low, high), report["queries_per_s"], round(size, 2))
        )
    return mark_pareto(points)


def mark_pareto(points: Sequence[Point]) -> list[Point]:
    """The same points with their ``pareto`` set."""

    def goods(point: Point) -> tuple[float, float, float]:
        return point.score, point.queries_per_s, -point.bytes_per_token

    marked = []
    for point in points:
        mine = goods(point)
        beaten = any(
            theirs != mine and all(a >= b for a, b in zip(theirs, mine, strict=True))
            for theirs in map(goods, points)
        )
        marked.append(
            Point(point.setting, point.score, point.interval, point.queries_per_s,
                  point.bytes_per_token, not beaten)
        )  # fmt: skip
    return marked
