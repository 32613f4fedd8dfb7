"""``btr sweep``: accuracy against speed against storage, as data and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from btr.cli.output import DtypeOption, console, progress, write_json
from btr.errors import UsageError

if TYPE_CHECKING:
    from btr.data.questions import Question
    from btr.evaluate.run import Found
    from btr.evaluate.sweep import Point, Setting
    from btr.readers.base import Mode, Reader
    from btr.store.reader import TokenStore

COLOURS = {"plain": "#7f7f7f", "decomposed": "#d98c2b", "btr": "#1f6fb4"}
MARKS = "osD^vP*X"


def sweep(
    data: Annotated[
        str, typer.Option("--data", metavar="FILE", help="Questions, as for btr eval.",
                          show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder for sweep.json and sweep.png.",
                     show_default=False),
    ],
    reader: Annotated[
        list[str] | None,
        typer.Option("--reader", help="A reader; several compare splits [minilm]."),
    ] = None,
    modes: Annotated[str, typer.Option(help="Modes, with commas.")] = "plain,decomposed,btr",
    passages: Annotated[str, typer.Option(help="Numbers of passages, with commas.")] = "5,10,20",
    intra: Annotated[str, typer.Option(help="Ratios, with commas; generative readers.")] = "0,0.2",
    cross: Annotated[str, typer.Option(help="Ratios, with commas; generative readers.")] = "0,0.2",
    store: Annotated[
        Path | None, typer.Option("--store", help="Retrieve the passages from a store.")
    ] = None,
    states: Annotated[
        list[Path] | None,
        typer.Option("--states", help="A store of the same passages: read its states besides those "
                     "made now; several compare ways to compress."),
    ] = None,
    classes: Annotated[
        bool, typer.Option("--classes", help="Every answer is one of the file's classes.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Only the first questions; 0 for all.")
    ] = 200,
    dtype: DtypeOption = None,
) -> None:  # fmt: skip
    """Read questions with every combination of modes, passages, ratios and stores, and draw it.

    A point is on the front if no other is as accurate, as fast and as small.
    """
    from btr.data.hub import task_of
    from btr.evaluate.sweep import grid
    from btr.readers.base import MODES

    if output.exists() and not output.is_dir():
        raise UsageError("the output is no folder", where=str(output), todo="name a folder")
    wanted = [mode for mode in MODES if mode in modes.split(",")]
    if not wanted or set(modes.split(",")) - set(MODES):
        raise UsageError("no such mode", expected=", ".join(MODES), found=modes)
    counts = [int(x) for x in numbers(passages, "--passages", 1, 1000)]
    names = reader or ["minilm"]
    readers = load_readers([(name, mode) for name in names for mode in wanted], dtype)
    merges = {name: loaded.family != "bert" for (name, _), loaded in readers.items()}
    stores, read_by = stores_of(readers, states or [])
    settings = grid(
        readers, counts, numbers(intra, "--intra", 0, 0.5), numbers(cross, "--cross", 0, 0.5),
        merges=merges, stores=read_by,
    )  # fmt: skip
    points = read_all(
        readers, settings, data, passages_from(store, max(counts)), classes=classes, limit=limit,
        stores=stores,
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    task = task_of(data)
    report = {"task": task, "points": [point.as_dict() for point in points]}
    write_json(str(output / "sweep.json"), report)
    draw(points, output / "sweep.png", task)
    table(points)


def load_readers(
    wanted: Iterable[tuple[str, Mode]], dtype: Literal["bf16", "fp32"] | None
) -> dict[tuple[str, Mode], Reader]:
    """The checkpoints of readers by name and mode, each once."""
    from btr.machine import DTYPES, default_dtype
    from btr.readers.load import load_reader

    chosen = DTYPES[dtype or default_dtype()]
    return {key: load_reader(*key, dtype=chosen) for key in dict.fromkeys(wanted)}


def stores_of(
    readers: Mapping[tuple[str, Mode], Reader], paths: Sequence[Path]
) -> tuple[dict[str, TokenStore], dict[tuple[str, Mode], list[str]]]:
    """Stores by what tells them apart, and which of them each reader made.

    Raises:
        IncompatibleError: None of the readers made a store.
    """
    from btr.evaluate.sweep import short_names
    from btr.store.reader import TokenStore

    shown = short_names(str(path) for path in paths)
    stores = {shown[str(path)]: TokenStore.open(path) for path in paths}
    read_by: dict[tuple[str, Mode], list[str]] = {key: [] for key in readers}
    stored = [key for key in readers if key[1] != "plain"]
    if stores and not stored:
        raise UsageError("a plain reader reads no store's states", todo="leave --states out")
    for name, opened in stores.items():
        makers = [k for k in stored if readers[k].fingerprint == opened.manifest.spec.fingerprint]
        if not makers:
            opened.require(readers[stored[-1]].fingerprint)
        for key in makers:
            read_by[key].append(name)
    return stores, read_by


def read_all(
    readers: Mapping[tuple[str, Mode], Reader],
    settings: Sequence[Setting],
    data: str,
    find: Callable[[Question], Found],
    *,
    classes: bool,
    limit: int,
    **choices: Any,
) -> list[Point]:
    """Read the first ``limit`` questions in every setting; ``choices`` are those of a sweep."""
    from btr.data.hub import questions_of
    from btr.evaluate.run import labels_in
    from btr.evaluate.sweep import sweep as run

    with progress() as bar:
        work = bar.add_task("questions", total=limit or None)
        return run(
            readers, settings, islice(questions_of(data), limit or None), find,
            labels=labels_in(questions_of(data)) if classes else (),
            progress=lambda n: bar.update(work, completed=n), **choices,
        )  # fmt: skip


def passages_from(store: Path | None, most: int) -> Callable[[Question], Found]:
    """Where a question's passages come from: the question itself, or a store's retrieval."""
    if store is None:
        return lambda question: (list(question.contexts[:most]), None)
    from btr.answering import open_retriever
    from btr.store.reader import TokenStore

    opened = TokenStore.open(store)
    retriever = open_retriever(opened)

    def retrieved(question: Question) -> Found:
        hits = retriever.search(question.question, most)
        return opened.passages([hit.ordinal for hit in hits]), None

    return retrieved


def numbers(text: str, what: str, low: float, high: float) -> list[float]:
    """Numbers with commas between them.

    Raises:
        UsageError: One of them is none, or out of range.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [high + 1]
    if not all(low <= value <= high for value in values):
        raise UsageError(f"bad {what}", expected=f"numbers from {low:g} to {high:g}", found=text)
    return values


def table(points: Sequence[Point]) -> None:
    """Print all points, best first."""
    from rich.table import Table

    rows = Table(box=None)
    measured = {"f1": "F1", "accuracy": "accuracy"}[points[0].metric]
    for name in ("", "setting", measured, "95 %", "questions/s", "bytes/token"):
        rows.add_column(name, justify="left" if name == "setting" else "right")
    for p in sorted(points, key=lambda p: (-p.score, -p.queries_per_s)):
        low, high = p.interval
        rows.add_row("*" if p.pareto else "", p.setting.label, f"{p.score:.1f}",
                     f"{low:.1f}-{high:.1f}", f"{p.queries_per_s:.2f}",
                     f"{p.bytes_per_token:.1f}")  # fmt: skip
    out = console()
    out.print(rows)
    out.print("* on the front: no other is as accurate, as fast and as small", style="dim")


def draw(points: Sequence[Point], path: Path, task: str) -> None:
    """Accuracy over speed; colour is the mode, shape the number of passages, the front is ringed.

    Beside a point stand its ratios of merging, of several readers which one it is, and its store.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise UsageError("plots need matplotlib", todo="pip install matplotlib") from error
    from btr.evaluate.sweep import counted

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    counts = sorted({p.setting.passages for p in points})
    several = len({p.setting.reader for p in points}) > 1
    shapes = {count: MARKS[i % len(MARKS)] for i, count in enumerate(counts)}
    for p in points:
        low, high = p.interval
        axes.errorbar(p.queries_per_s, p.score, yerr=[[p.score - low], [high - p.score]],
                      color=COLOURS[p.setting.mode], alpha=0.25, linewidth=1)  # fmt: skip
        axes.plot(p.queries_per_s, p.score, shapes[p.setting.passages], markersize=8,
                  color=COLOURS[p.setting.mode], markeredgecolor="black" if p.pareto else "white",
                  markeredgewidth=1.4 if p.pareto else 0.5)  # fmt: skip
        merged = bool(p.setting.intra or p.setting.cross)
        said = [f"{p.setting.intra:g}/{p.setting.cross:g}"] * merged + [p.setting.shown] * several
        said += [f"{p.setting.store}, {p.bytes_per_token:.3g} B"] * bool(p.setting.store)
        axes.annotate(" ".join(said), (p.queries_per_s, p.score), xytext=(5, -9),
                      textcoords="offset points", fontsize=7)  # fmt: skip
    sizes: dict[str, dict[str, None]] = {}
    for p in (p for p in points if not p.setting.store):
        sizes.setdefault(p.setting.mode, {})[f"{p.bytes_per_token:g}"] = None
    handles = [
        Line2D([], [], color=COLOURS[mode], marker="o", linestyle="",
               label=mode if mode == "plain" else f"{mode}, {' or '.join(found)} bytes a token")
        for mode, found in sizes.items()
    ] + [
        Line2D([], [], color="#555555", marker=shapes[count], linestyle="",
               label=counted(count))
        for count in counts
    ]  # fmt: skip
    axes.legend(handles=handles, fontsize=8, loc="best")
    axes.set_xscale("log")
    axes.margins(x=0.1)
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which("{x:g}")
    axes.set_xlabel("questions a second")
    axes.set_ylabel({"f1": "F1, percent", "accuracy": "accuracy, percent"}[points[0].metric])
    axes.set_title(f"{task}: black rings are the front")
    axes.grid(alpha=0.25, which="both")
    figure.savefig(path, dpi=130)
