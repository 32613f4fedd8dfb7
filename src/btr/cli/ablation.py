"""``btr eval --ablation``: what a reader is without each technique, beside the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from btr.cli.output import console, write_json
from btr.cli.sweep import load_readers, read_all

if TYPE_CHECKING:
    from btr.data.questions import Question
    from btr.evaluate.run import Found
    from btr.readers.base import ReadOptions
    from btr.store.reader import TokenStore


def ablation(
    data: str,
    reader: str,
    find: Callable[[Question], Found],
    *,
    store: TokenStore | None,
    others: Mapping[str, str],
    task: str,
    passages: int,
    classes: bool,
    limit: int,
    options: ReadOptions,
    dtype: Literal["bf16", "fp32"] | None,
    json: str,
) -> None:
    """Read the same questions with and without each technique; the paper's figures stand beside.

    Of a store, the reader's own, its btr rows read what is kept there.
    """
    from rich.table import Table

    from btr.evaluate.ablation import ablation_rows, as_table

    readers = load_readers([(reader, "btr")], dtype)
    loaded, name = readers[reader, "btr"], ""
    if store is not None:
        store.require(loaded.fingerprint)
        name = str(store.path)
    rows = ablation_rows(
        reader, passages, merges=loaded.family != "bert", others=others, store=name,
        compressed=store is not None and bool(store.manifest.compression),
    )  # fmt: skip
    settings = [row.setting for row in rows]
    needed = [(setting.reader, setting.mode) for setting in settings]
    readers |= load_readers([key for key in needed if key not in readers], dtype)
    points = read_all(
        readers, settings, data, find, classes=classes, limit=limit, metric="em", options=options,
        stores={} if store is None else {name: store},
    )  # fmt: skip
    lines = as_table(rows, points)
    write_json(json, {"task": task, "reader": reader, "rows": lines})
    table = Table(box=None)
    measured = {"em": "EM", "accuracy": "accuracy"}[points[0].metric]
    for name in ("", measured, "95 %", "questions/s", "bytes/token", "paper: EM", "q/s", "GB"):
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
