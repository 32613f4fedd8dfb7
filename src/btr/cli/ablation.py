"""``btr eval --ablation``: what a reader is without each technique, beside the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from btr.cli.output import console, write_json
from btr.cli.sweep import load_readers, read_all


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
    dtype: Literal["bf16", "fp32"] | None,
    json: str,
) -> None:
    """Read the same questions with and without each technique; the paper's figures stand beside."""
    from rich.table import Table

    from btr.data.hub import task_of
    from btr.evaluate.ablation import ablation_rows, as_table

    readers = load_readers([(reader, "btr")], dtype)
    others = {"recovery": without_recovery, "distillation": without_distillation}
    rows = ablation_rows(
        reader, passages, merges=readers[reader, "btr"].family != "bert",
        others={what: name for what, name in others.items() if name},
    )  # fmt: skip
    settings = [row.setting for row in rows]
    needed = [(setting.reader, setting.mode) for setting in settings]
    readers |= load_readers([key for key in needed if key not in readers], dtype)
    points = read_all(
        readers, settings, data, store=store, most=passages, classes=classes, limit=limit
    )
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
