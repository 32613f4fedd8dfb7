"""``btr bench``: readers timed against each other in one run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from btr.cli.output import (
    JsonOption,
    ReaderOption,
    console,
    printable,
    progress,
    write_json,
)
from btr.errors import InputError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from btr.bench.race import Race
    from btr.bench.readers import Workload


def bench(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Questions for --reader: jsonl or jsonl.gz."),
    ] = None,
    reader: ReaderOption = "minilm",
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="Retrieve the passages from a store; without one they are "
            "the question file's own, filled up with those of other questions. Without --data: "
            "time the store itself.",
        ),
    ] = None,
    shape: Annotated[
        Literal["tiny", "small", "base", "large"] | None,
        typer.Option(
            "--shape",
            help="In place of a reader and data: a Fusion-in-Decoder T5 of this shape with random "
            "weights and texts, technique by technique.",
        ),
    ] = None,
    passages: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Passages a question; 20 with a reader, 40 with a shape."
        ),
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(min=1, help="How many of the first questions; 20, or 1 with a shape."),
    ] = None,
    query_tokens: Annotated[
        int, typer.Option(min=2, max=512, help="With a shape: tokens of a question.")
    ] = 40,
    passage_tokens: Annotated[
        int, typer.Option(min=8, max=2048, help="With a shape: mean tokens of a passage.")
    ] = 150,
    spread: Annotated[
        float, typer.Option(min=0, help="With a shape: standard deviation of passage tokens.")
    ] = 0.0,
    answer_tokens: Annotated[
        int, typer.Option(min=1, max=256, help="With a shape: tokens generated, exactly.")
    ] = 10,
    parts: Annotated[
        bool,
        typer.Option("--parts", help="With a shape: time the parts of a question as well."),
    ] = False,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of the arithmetic; 0 for as many as cores.")
    ] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds; medians are reported.")] = 7,
    dtype: Annotated[str, typer.Option(help="bf16, fp32, or both with a comma.")] = "bf16,fp32",
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", help="A further checkpoint in the race; may be repeated."),
    ] = None,
    json: JsonOption = "",
) -> None:
    """Time readers turn by turn on the same questions and passages."""
    import torch

    from btr.bench.race import race, rows
    from btr.machine import DTYPES, machine_card

    dtypes = dtype.split(",")
    for name in dtypes:
        if name not in DTYPES:
            raise UsageError("unknown value of --dtype", expected=" or ".join(DTYPES),
                             found=repr(name), todo="give one or both, with a comma")  # fmt: skip
    if shape is None and data is None:
        if store is None:
            raise UsageError("nothing to read", todo="give --data, --shape or --store")
        _time_store(store, passages or 40, rounds, json)
        return
    if parts and (shape is None or torch.cuda.is_available()):
        raise UsageError("--parts times the parts of a --shape on a CPU", todo="leave it off")
    if threads:
        torch.set_num_threads(threads)
    settings: dict[str, Any] = {
        "rounds": rounds,
        "questions": questions or (1 if shape else 20),
        "passages_per_question": passages or (40 if shape else 20),
    }
    if shape is not None:
        settings |= {
            "shape": shape, "query_tokens": query_tokens, "passage_tokens": passage_tokens,
            "spread": spread, "answer_tokens": answer_tokens,
        }  # fmt: skip
    elif data is not None:
        settings |= {"data": data.name, "source": "store" if store else "data"}
        work = _work(data, store, settings["questions"], settings["passages_per_question"])
        settings["questions"] = len(work)
    found: list[dict[str, Any]] = []
    for name in dtypes:
        if shape is not None:
            entered = _shape_race(settings, DTYPES[name])
        else:
            entered = _reader_race(reader, work, checkpoint or [], name)
        with progress() as bar:
            task = bar.add_task(f"rounds, {name}", total=rounds + 1)
            race(entered.contenders, settings["questions"], rounds=rounds,
                 progress=lambda n: bar.update(task, completed=n + 1))  # noqa: B023  # fmt: skip
        found += [row | {"dtype": name} for row in rows(entered)]
    report = {"machine": machine_card(), "settings": settings, "rows": found}
    if parts and shape:
        report["parts"] = _shape_parts(shape, dtypes, rounds)
    _print(report, console(json))
    write_json(json, report)


def _time_store(store: Path, passages: int, rounds: int, json: str) -> None:
    from rich.table import Table

    from btr.bench.store import store_rows
    from btr.machine import machine_card

    with progress() as bar:
        task = bar.add_task("rounds", total=rounds)
        found = store_rows(store, passages=passages, rounds=rounds,
                           progress=lambda n: bar.update(task, completed=n))  # fmt: skip
    settings = {"rounds": rounds, "passages_per_question": passages}
    report = {"machine": machine_card(), "settings": settings, "rows": found}
    table = Table(title=f"{printable(str(store))}: {passages} passages, {rounds} rounds",
                  title_justify="left")  # fmt: skip
    table.add_column("step", no_wrap=True)
    for heading in ("ms", "range"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found:
        low, high = row["range"]
        table.add_row(row["step"], f"{row['ms']:.3f}", f"{low:.3f} to {high:.3f}")
    console(json).print(table)
    write_json(json, report)


def _shape_race(settings: dict[str, Any], dtype: Any) -> Race:
    """T5 readers with random weights on random texts."""
    from btr.bench.t5 import contenders, make_workload
    from btr.bench.t5_shapes import SHAPES, random_t5

    work = make_workload(
        questions=settings["questions"], passages=settings["passages_per_question"],
        query=settings["query_tokens"], passage=settings["passage_tokens"],
        spread=settings["spread"], answer=settings["answer_tokens"],
    )  # fmt: skip
    return contenders(settings["shape"], random_t5(SHAPES[settings["shape"]], dtype), work)


def _shape_parts(shape: str, dtypes: list[str], rounds: int) -> list[dict[str, Any]]:
    """The parts of a question with a T5 of random weights."""
    from btr.bench.t5_parts import parts
    from btr.bench.t5_shapes import SHAPES, random_t5
    from btr.machine import DTYPES

    found = []
    for name in dtypes:
        with progress() as bar:
            task = bar.add_task(f"parts, {name}", total=None)
            rows = parts(SHAPES[shape], random_t5(SHAPES[shape], DTYPES[name]), rounds=rounds,
                         progress=lambda n: bar.update(task, completed=n + 1))  # noqa: B023  # fmt: skip
        found += [row | {"dtype": name} for row in rows]
    return found


def _reader_race(reader: str, work: list[Workload], checkpoints: list[Path], dtype: str) -> Race:
    """All modes of a reader, and further checkpoints."""
    from btr.bench.race import Race
    from btr.bench.readers import contender
    from btr.machine import DTYPES
    from btr.models import reader_modes
    from btr.readers.base import MODES
    from btr.readers.load import load_checkpoint, load_reader

    modes = [mode for mode in MODES if mode in reader_modes(reader)]
    if "plain" not in modes:
        raise InputError(f"reader {reader} has no plain checkpoint to compare with",
                         found=", ".join(modes), todo="use a reader with all three")  # fmt: skip
    field = [
        contender(f"{Path(reader).name} {mode} {dtype}",
                  load_reader(reader, mode, dtype=DTYPES[dtype]), work)
        for mode in modes
    ]  # fmt: skip
    field += [
        contender(
            f"{'/'.join(folder.parts[-2:])} {dtype}",
            load_checkpoint(folder, dtype=DTYPES[dtype]),
            work,
        )
        for folder in checkpoints
    ]
    return Race(field, field[0])


def _work(data: Path, store: Path | None, count: int, passages: int) -> list[Workload]:
    """The first questions, each with exactly ``passages`` passages."""
    from btr.bench.readers import Workload
    from btr.data.questions import read_questions

    asked = list(islice(read_questions(data), count))
    if store is not None:
        from btr.answering import open_retriever
        from btr.store.reader import TokenStore

        with TokenStore.open(store) as opened:
            retriever = open_retriever(opened)
            found = [[hit.ordinal for hit in retriever.search(q.question, passages)] for q in asked]
            texts = [opened.passages(ordinals) for ordinals in found]
        return [Workload(q.question, given) for q, given in zip(asked, texts, strict=True)]
    # Speed depends on the passages' number and length, not on what they say.
    others = {p.id: p for q in read_questions(data) for p in q.contexts[:1]}
    work = []
    for q in asked:
        chosen = {p.id: p for p in q.contexts[:passages]}
        for key, passage in others.items():
            if len(chosen) == passages:
                break
            chosen.setdefault(key, passage)
        if len(chosen) < passages:
            raise InputError("the question file has too few passages", where=str(data),
                             expected=f"{passages} different ones", found=str(len(chosen)),
                             todo="give --store, or fewer --passages")  # fmt: skip
        work.append(Workload(q.question, list(chosen.values())))
    return work


def _print(report: dict[str, Any], out: Console) -> None:
    from rich.table import Table

    machine, settings = report["machine"], report["settings"]
    table = Table(
        title=f"{settings['questions']} questions, {settings['passages_per_question']} passages "
        f"each, {settings['rounds']} rounds; {machine['cpu']}, {machine['threads']} threads",
        title_justify="left",
    )
    shapes = "floor_ms" in report["rows"][0]
    table.add_column("reader", no_wrap=True)
    headings = ["ms a question", "times plain", "range", "peak MB"]
    if shapes:
        headings += ["times B0", "range", "GFLOP", "floor ms", "paper"]
    else:
        headings += ["a second", "CPU times plain"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["rows"]:
        low, high = row["ratio_range"]
        if shapes:
            least, most = row["unmodified_range"]
            rest = [
                f"{row['ratio_to_unmodified']:.2f}", f"{least:.2f} to {most:.2f}",
                f"{row['gflop']:.0f}", f"{row['floor_ms']:.0f}", str(row["paper_ratio"] or ""),
            ]  # fmt: skip
        else:
            rest = [f"{row['queries_per_s']:.1f}", f"{row['cpu_ratio_to_plain']:.2f}"]
        table.add_row(
            row["shape"], f"{row['ms_per_query']:.1f}", f"{row['ratio_to_plain']:.2f}",
            f"{low:.2f} to {high:.2f}", f"{row['peak_rss_mb']}", *rest,
        )  # fmt: skip
    out.print(table)
    for row in report["rows"]:
        stages = ", ".join(f"{name} {ms:.2f}" for name, ms in row["stages_ms"].items())
        out.print(f"{row['shape']}: ms by stage: {stages}")
    if "parts" not in report:
        return
    table = Table(title="parts", title_justify="left")
    table.add_column("part")
    for heading in ("ms", "against", "ms", "ratio", "range", "goal"):
        table.add_column(heading, justify="right")
    for row in report["parts"]:
        low, high = row["ratio_range"]
        table.add_row(
            row["part"], f"{row['ms']:.2f}", row["against"], f"{row['against_ms']:.2f}",
            f"{row['ratio']:.3f}", f"{low:.3f} to {high:.3f}", f"{row['goal']}",
        )  # fmt: skip
    out.print(table)
