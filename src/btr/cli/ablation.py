"""``btr eval --ablation``: what a reader is without each technique, beside the paper."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from btr.cli.output import console, progress, write_json

if TYPE_CHECKING:
    from btr.readers.base import Mode, Reader


def ablation(
    data: str,
    reader: str,
    *,
    without_recovery: str,
    without_distillation: str,
    store: Path | None,
    passages: int,
    classes: bool,
    limit: int,
    dtype: str | None,
    json: str,
) -> None:
    """Read the same questions with and without each technique; the paper's figures stand beside."""
    from rich.table import Table

    from btr.cli.sweep import passages_from
    from btr.data.hub import questions_of, task_of
    from btr.evaluate.ablation import ablation_rows, as_table
    from btr.evaluate.run import labels_in
    from btr.evaluate.sweep import sweep
    from btr.machine import DTYPES, default_dtype
    from btr.readers.load import load_reader

    chosen = DTYPES[dtype or default_dtype()]
    btr = load_reader(reader, "btr", dtype=chosen)
    others = {"recovery": without_recovery, "distillation": without_distillation}
    rows = ablation_rows(
        reader, passages, merges=btr.family != "bert",
        others={what: name for what, name in others.items() if name},
    )  # fmt: skip
    readers: dict[tuple[str, Mode], Reader] = {(reader, "btr"): btr}
    for row in rows:
        key = (row.setting.reader, row.setting.mode)
        if key not in readers:
            readers[key] = load_reader(*key, dtype=chosen)
    with progress() as bar:
        work = bar.add_task("questions", total=limit or None)
        points = sweep(
            readers, [row.setting for row in rows], islice(questions_of(data), limit or None),
            passages_from(store, passages),
            labels=labels_in(questions_of(data)) if classes else (),
            progress=lambda n: bar.update(work, completed=n),
        )  # fmt: skip
    lines = as_table(rows, points)
    write_json(json, {"task": task_of(data), "reader": reader, "rows": lines})
    table = Table(box=None)
    for name in ("", "score", "95 %", "questions/s", "bytes/token", "paper: EM", "q/s", "GB"):
        table.add_column(name, justify="right" if name else "left")
    for line in lines:
        paper = line["paper"] or {}
        low, high = line["interval"]
        table.add_row(
            line["name"], f"{line['score']:.1f}", f"{low:.1f}-{high:.1f}",
            f"{line['queries_per_s']:.2f}", f"{line['bytes_per_token']:.1f}",
            *("" if paper.get(k) is None else f"{paper[k]:,}"
              for k in ("em", "queries_per_s", "gigabytes")),
        )  # fmt: skip
    out = console(json)
    out.print(table)
    out.print("paper: T5 base on NaturalQuestions, A100, 40 passages", style="dim")
