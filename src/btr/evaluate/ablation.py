"""The paper's ablation (method, section 7): what a reader is without each of its techniques."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from btr.evaluate.sweep import Point, Setting, short_names
from btr.readers.base import Mode

RATIO = 0.2
"""The paper's runtime compression, inside passages and across them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the ablation.

    Attributes:
        name: What is left out.
        setting: How it is read.
        paper: EM, questions a second and gigabytes of the paper's on NQ; None where it gives none.
    """

    name: str
    setting: Setting
    paper: tuple[float, float | None, float | None] | None


def ablation_rows(
    reader: str,
    passages: int,
    *,
    merges: bool,
    others: Mapping[str, str],
    store: str = "",
    compressed: bool = False,
) -> list[Row]:
    """The rows that can be read for a reader.

    Args:
        reader: Its name, with all three checkpoints.
        passages: A question.
        merges: Whether its family can merge tokens.
        others: "recovery" and "distillation" to readers trained without them. Their bits are not
            the reader's, so no store has them.
        store: Name of the store of the reader that btr rows read, if they do.
        compressed: Whether that store is compressed.
    """
    ratio = RATIO if merges else 0.0
    shown = short_names([reader, *others.values()])

    def setting(
        name: str = reader,
        mode: Mode = "btr",
        intra: float = ratio,
        cross: float = ratio,
        store: str = "",
    ) -> Setting:
        return Setting(name, mode, passages, intra, cross, store, shown[name])

    rows = [
        Row("plain reader", setting(mode="plain", intra=0, cross=0), (52.1, None, None)),
        Row("BTR", setting(store=store), (49.5, 31.5, 127)),
        Row("without binarization", setting(mode="decomposed"), (50.8, 32.3, 12_804)),
    ]
    if compressed:
        rows.append(Row("without offline compression", setting(), (49.8, 31.5, 159)))
    if merges:
        rows += [
            Row("without intra-passage merging", setting(intra=0, store=store),
                (50.0, 28.1, None)),
            Row("without cross-passage merging", setting(cross=0, store=store),
                (49.9, 24.6, None)),
        ]  # fmt: skip
    papers = {"recovery": (47.4, None, None), "distillation": (48.2, None, None)}
    rows += [Row(f"without {what}", setting(name), papers[what]) for what, name in others.items()]
    return rows


def as_table(rows: Sequence[Row], points: Sequence[Point]) -> list[dict[str, Any]]:
    """Rows with what was measured and what the paper has, for printing and JSON."""
    by_setting = {point.setting: point for point in points}
    return [
        {
            "name": row.name,
            **by_setting[row.setting].as_dict(),
            "paper": None if row.paper is None else dict(
                zip(("em", "queries_per_s", "gigabytes"), row.paper, strict=True)
            ),
        }
        for row in rows
    ]  # fmt: skip
