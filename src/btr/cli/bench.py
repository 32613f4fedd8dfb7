"""``btr bench``: readers timed against each other in one run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from btr.cli.output import JsonOption, ReaderOption, console, progress, write_json
from btr.errors import InputError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from btr.bench.readers import Workload


def bench(
    data: Annotated[
        Path, typer.Option("--data", help="Questions: jsonl or jsonl.gz.", show_default=False)
    ],
    reader: ReaderOption = "minilm",
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="Retrieve the passages from a store; without one they are "
            "the question file's own, filled up with those of other questions.",
        ),
    ] = None,
    passages: Annotated[int, typer.Option(min=1, max=1000, help="Passages a question.")] = 20,
    questions: Annotated[int, typer.Option(min=1, help="How many of the first questions.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds; medians are reported.")] = 7,
    dtype: Annotated[str, typer.Option(help="bf16, fp32, or both with a comma.")] = "bf16,fp32",
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", help="A further checkpoint in the race; may be repeated."),
    ] = None,
    json: JsonOption = "",
) -> None:
    """Time plain, decomposed and btr turn by turn on the same questions and passages."""
    from btr.bench.readers import Contender, prepare, race, report
    from btr.machine import DTYPES
    from btr.models import reader_modes
    from btr.readers.base import MODES
    from btr.readers.bert import BertReader
    from btr.readers.load import load_reader

    dtypes = dtype.split(",")
    for name in dtypes:
        if name not in DTYPES:
            raise UsageError("unknown value of --dtype", expected=" or ".join(DTYPES),
                             found=repr(name), todo="give one or both, with a comma")  # fmt: skip
    modes = [mode for mode in MODES if mode in reader_modes(reader)]
    if "plain" not in modes:
        raise InputError(f"reader {reader} has no plain checkpoint to compare with",
                         found=", ".join(modes), todo="use a reader with all three")  # fmt: skip
    work = _work(data, store, questions, passages)
    reports: list[dict[str, Any]] = []
    for name in dtypes:
        contenders: list[Contender] = []
        for mode in modes:
            loaded = load_reader(reader, mode, dtype=DTYPES[name])
            contenders.append(prepare(f"{Path(reader).name} {mode} {name}", loaded, work))
        for folder in checkpoint or []:
            extra = BertReader.from_pretrained(folder, dtype=DTYPES[name])
            contenders.append(prepare(f"{folder.name} {name}", extra, work))
        with progress() as bar:
            task = bar.add_task(f"rounds, {name}", total=rounds + 1)
            race(contenders, work, rounds=rounds,
                 progress=lambda n: bar.update(task, completed=n + 1))  # noqa: B023  # fmt: skip
        settings = {"data": data.name, "source": "store" if store else "data"}
        reports.append(report(contenders, work, settings=settings))
        for row in reports[-1]["rows"]:
            row["dtype"] = name
    merged = reports[0] | {"rows": [row for one in reports for row in one["rows"]]}
    _print(merged, console(json))
    write_json(json, merged)


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
    table.add_column("reader")
    for heading in ("ms a question", "a second", "times plain", "range", "CPU times plain"):
        table.add_column(heading, justify="right")
    for row in report["rows"]:
        low, high = row["ratio_range"]
        table.add_row(
            row["shape"], f"{row['ms_per_query']:.1f}", f"{row['queries_per_s']:.1f}",
            f"{row['ratio_to_plain']:.2f}", f"{low:.2f} to {high:.2f}",
            f"{row['cpu_ratio_to_plain']:.2f}",
        )  # fmt: skip
    out.print(table)
    for row in report["rows"]:
        stages = ", ".join(f"{name} {ms:.2f}" for name, ms in row["stages_ms"].items())
        out.print(f"{row['shape']}: ms by stage: {stages}")
