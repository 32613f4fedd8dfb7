"""Accuracy against speed against storage, over modes, passages, merging ratios and stores.

Every question is read with all settings in turn, in an order that rotates, so that what the machine
does meanwhile falls on all of them alike. States are made, or fetched, before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from btr.data.passages import Passage
from btr.data.questions import Question
from btr.encoding import completed
from btr.errors import InputError
from btr.evaluate.predictions import Prediction
from btr.evaluate.run import (
    NO_PASSAGE,
    Found,
    choices_for,
    figures,
    given_passages,
    predict,
)
from btr.readers.base import DEFAULT_OPTIONS, Mode, Reader, ReadOptions
from btr.store.format import PassageState
from btr.store.reader import TokenStore
from btr.store.sizes import store_sizes


def counted(count: int) -> str:
    """So many passages, in words."""
    return "1 passage" if count == 1 else f"{count} passages"


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to read.

    Attributes:
        reader: Its name.
        mode: Which of its checkpoints.
        passages: How many a question.
        intra: Ratio of merging inside passages.
        cross: Ratio of merging across passages.
        store: Which store's states it reads; without one they are made.
        shown: What tables and plots call the reader (:func:`short_names`); its name if not given.
    """

    reader: str
    mode: Mode
    passages: int
    intra: float = 0.0
    cross: float = 0.0
    store: str = ""
    shown: str = ""

    @property
    def label(self) -> str:
        """For tables and plots."""
        merged = f", merging {self.intra:g}/{self.cross:g}" if self.intra or self.cross else ""
        stored = f", {self.store}" if self.store else ""
        return f"{self.shown or self.reader} {self.mode}, {counted(self.passages)}{merged}{stored}"


@dataclass(frozen=True, slots=True)
class Point:
    """What a setting gave.

    Attributes:
        setting: The setting.
        score: In percent.
        interval: Its 95 % bootstrap interval.
        queries_per_s: Questions read a second.
        bytes_per_token: Of a stored state; 0 where nothing is stored.
        metric: What the score is: "em", "f1" or "accuracy".
        pareto: No other setting is as good in all three and better in one.
    """

    setting: Setting
    score: float
    interval: tuple[float, float]
    queries_per_s: float
    bytes_per_token: float
    metric: str = "f1"
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
    stores: Mapping[tuple[str, Mode], Sequence[str]],
) -> list[Setting]:
    """All settings; merging is left out for readers that cannot, and for all modes but btr.

    Args:
        readers: Names with modes.
        passages: Numbers of passages.
        intra: Ratios.
        cross: Ratios.
        merges: By name, whether a reader can merge tokens.
        stores: By name and mode, the stores whose states are read besides those made now.
    """
    settings = []
    readers = list(readers)
    shown = short_names(name for name, _ in readers)
    for (name, mode), count in product(readers, passages):
        ratios = list(product(intra, cross)) if merges[name] and mode == "btr" else [(0.0, 0.0)]
        settings += [
            Setting(name, mode, count, a, b, store, shown[name])
            for store in ("", *stores.get((name, mode), ()))
            for a, b in ratios
        ]
    return settings


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The shortest end of each path that no other ends in: whole paths would fill a line."""

    def end(name: str, parts: int) -> str:
        return str(Path(*Path(name).parts[-parts:]))

    names = list(dict.fromkeys(names))
    short = {}
    for name in names:
        ends = (
            end(name, parts)
            for parts in range(1, len(Path(name).parts) + 1)
            if all(end(other, parts) != end(name, parts) for other in names if other != name)
        )
        short[name] = next(ends, name)
    return short


def sweep(
    readers: Mapping[tuple[str, Mode], Reader],
    settings: Sequence[Setting],
    questions: Iterable[Question],
    find: Callable[[Question], Found],
    *,
    labels: tuple[str, ...] = (),
    metric: Literal["em", "f1"] = "f1",
    options: ReadOptions = DEFAULT_OPTIONS,
    stores: Mapping[str, TokenStore] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Point]:
    """Read every question with every setting.

    Args:
        readers: By name and mode.
        settings: What to try.
        questions: With answers to compare with.
        find: A question's passages, best first, as many as any setting wants.
        labels: What every answer is one of, in a task of classes.
        metric: What scores are, where answers are no choices; of choices it is the accuracy.
        options: How answers are searched for; ratios of merging are the settings' own.
        stores: Those that settings name, each with all passages.
        progress: Called with the number of questions done.

    Raises:
        InputError: No question had both answers and passages, or a store lacks a passage.
    """
    stores = stores or {}
    scored: list[list[Prediction]] = [[] for _ in settings]
    chosen, done = True, 0
    stored, tokens = dict.fromkeys(readers, 0), dict.fromkeys(readers, 0)
    for question in questions:
        choices = choices_for(question, labels)
        passages, _ = given_passages(find(question), choices)
        if not passages or not question.answers:
            continue
        chosen = chosen and bool(choices)
        states: dict[tuple[str, Mode], list[PassageState]] = {
            key: reader.encode(passages) for key, reader in readers.items() if key[1] != "plain"
        }
        for key, made in states.items():
            stored[key] += sum(state.rows.nbytes for state in made)
            tokens[key] += sum(len(state.rows) for state in made)
        from_store = {
            (key, name): completed(readers[key], passages, held_states(stores[name], passages))
            for key, name in {((s.reader, s.mode), s.store) for s in settings if s.store}
        }
        for i in range(len(settings)):
            number = (i + done) % len(settings)
            setting = settings[number]
            key = (setting.reader, setting.mode)
            count = setting.passages
            kept = from_store[key, setting.store] if setting.store else states.get(key)
            scored[number] += predict(
                readers[key], [question], [(passages[:count], kept and kept[:count])],
                labels=labels, use_states=kept is not None,
                options=replace(options, merging=replace(
                    options.merging, intra=setting.intra, cross=setting.cross
                )),
            )  # fmt: skip
        done += 1
        progress(done)
    if not done:
        raise InputError("no question has both answers and passages",
                         todo="give --store to retrieve passages")  # fmt: skip
    points, sizes = [], {name: store_sizes(s.path, s.manifest) for name, s in stores.items()}
    for setting, predictions in zip(settings, scored, strict=True):
        report = figures(predictions, choices=chosen)
        name, key = "accuracy" if chosen else metric, (setting.reader, setting.mode)
        size = stored[key] / max(1, tokens[key])
        if setting.store:
            size = sizes[setting.store].state_bytes_per_token
        low, high = report[f"{name}_interval"]
        points.append(
            Point(setting, report[name], (low, high), report["queries_per_s"], round(size, 2), name)
        )
    return mark_pareto(points)


def held_states(store: TokenStore, passages: Sequence[Passage]) -> Sequence[PassageState | None]:
    """What a store has of passages; None where there are no states.

    Raises:
        InputError: It lacks a passage.
    """
    if list(passages) == [NO_PASSAGE]:
        return [None]
    return store.held_states([store.ordinal(passage.id) for passage in passages])


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
        marked.append(replace(point, pareto=not beaten))
    return marked
