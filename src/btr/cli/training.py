"""Options and output that the commands that train share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from btr.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

TrainedReaderOption = Annotated[
    Path,
    typer.Option("-o", "--reader", help="The reader's folder, which gets the checkpoint.",
                 show_default=False),
]  # fmt: skip
LayoutOption = Annotated[
    str,
    typer.Option("--layout", metavar="LOWER+JOINT",
                 help="Encoder layers below the cut and joint ones, where a reader is split."),
]  # fmt: skip
RelativeRateOption = Annotated[
    bool,
    typer.Option("--relative-lr", help="The rate is relative to each matrix's size, as "
                 "Adafactor's: for T5, then about 1e-3."),
]  # fmt: skip
AverageOption = Annotated[
    float,
    typer.Option("--average", min=0, max=1,
                 help="Keep the mean of the weights over this last share of the steps."),
]  # fmt: skip
PatienceOption = Annotated[
    int,
    typer.Option("--patience", min=0,
                 help="Looks at dev without a better score after which to stop; 0: never."),
]  # fmt: skip
WarmupOption = Annotated[int, typer.Option("--warmup", min=0, help="Steps of warm-up.")]
AccumulateOption = Annotated[
    int, typer.Option("--accumulate", min=1, help="Batches of a process that make a step.")
]
EvaluateEveryOption = Annotated[
    int,
    typer.Option("--evaluate-every", min=0,
                 help="Steps between two looks at what is held out; 0: after every epoch."),
]  # fmt: skip
DropoutOption = Annotated[
    float, typer.Option("--dropout", min=0, max=0.9, help="Of hidden states.")
]
PrecisionOption = Annotated[
    Literal["bf16", "fp32"], typer.Option("--precision", help="Of the arithmetic.")
]
RecomputeOption = Annotated[
    bool, typer.Option("--recompute", help="Gradient checkpointing: less memory, more time.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of all randomness.")]


def parse_layout(text: str) -> tuple[int, int]:
    """``4+3`` to (4, 3).

    Raises:
        UsageError: It is not of that form.
    """
    lower, plus, joint = text.partition("+")
    if not (plus and lower.isdecimal() and joint.isdecimal()):
        raise UsageError("bad layout", expected="LOWER+JOINT, as 4+3", found=text)
    return int(lower), int(joint)


def show_figures(out: Console, checkpoint: Path, figures: Mapping[str, float]) -> None:
    """Print where a checkpoint is and how good it was."""
    out.print(f"{checkpoint}: " + ", ".join(f"{name} {x}" for name, x in figures.items()))
