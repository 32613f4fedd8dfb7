"""``btr pretrain``: a T5 pretrained with the split and the binarizer in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from btr.cli.output import JsonOption, console, write_json
from btr.cli.training import (
    AccumulateOption,
    AverageOption,
    DropoutOption,
    EvaluateEveryOption,
    LayoutOption,
    PatienceOption,
    PrecisionOption,
    RecomputeOption,
    RelativeRateOption,
    SeedOption,
    TrainedReaderOption,
    WarmupOption,
    parse_layout,
    show_figures,
)


def pretrain(
    sources: Annotated[
        list[Path], typer.Argument(help="Files and folders of text, as btr index takes them.",
                                   show_default=False)
    ],
    reader: TrainedReaderOption,
    start: Annotated[
        str, typer.Option("--from", help="A T5: a folder or a Hub id.", show_default=False)
    ],
    mode: Annotated[
        Literal["plain", "decomposed", "btr"],
        typer.Option("--mode", help="What the network is from the start; plain is T5's own."),
    ] = "btr",
    layout: LayoutOption = "",
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Take shape and tokenizer alone, draw new weights.")
    ] = False,
    query_budget: Annotated[
        int, typer.Option("--query-budget", min=2, help="Tokens of a window read as the query.")
    ] = 40,
    passage_budget: Annotated[
        int, typer.Option("--passage-budget", min=2, help="Tokens of a window read as the passage.")
    ] = 280,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the text.")] = 1,
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="Stop after so many steps; 0: after the passes.")
    ] = 0,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 5e-4,
    relative_lr: RelativeRateOption = False,
    average: AverageOption = 0.0,
    warmup: WarmupOption = 500,
    token_budget: Annotated[
        int, typer.Option("--token-budget", min=1, help="Most padded tokens of a batch.")
    ] = 6000,
    accumulate: AccumulateOption = 1,
    evaluate_every: EvaluateEveryOption = 0,
    patience: PatienceOption = 0,
    dev_share: Annotated[
        float, typer.Option("--dev-share", min=0, max=0.5, help="Share of documents held out.")
    ] = 0.01,
    dropout: DropoutOption = 0.0,
    precision: PrecisionOption = "bf16",
    recompute: RecomputeOption = False,
    seed: SeedOption = 1,
    json: JsonOption = "",
) -> None:  # fmt: skip
    """Pretrain a T5 by span corruption, as the reader it is to be; run again, it goes on.

    Fine-tune the result with btr train: --stage reader from a plain one, --stage binarize from a
    btr one.
    """
    from btr.models import reader_folder
    from btr.readers.t5_checkpoint import T5ReaderConfig
    from btr.train.loop import LoopSettings
    from btr.train.pretrain import pretrain as run
    from btr.train.stage import Places, StageSettings

    places = Places(reader_folder(start), reader / mode, reader / "training" / "pretrain")
    loop = LoopSettings(
        epochs, lr, steps=steps, accumulate=accumulate, evaluate_every=evaluate_every,
        patience=patience, warmup=warmup, seed=seed, relative=relative_lr, average=average,
    )  # fmt: skip
    figures = run(
        StageSettings("reader", loop, token_budget, dropout=dropout, precision=precision),
        sources,
        places,
        mode=mode,
        layout=parse_layout(layout) if layout else None,
        config=T5ReaderConfig(query_budget=query_budget, passage_budget=passage_budget),
        scratch=scratch,
        dev_share=dev_share,
        recompute=recompute,
    )
    write_json(json, {"stage": "pretrain", "checkpoint": str(places.checkpoint), "dev": figures})
    show_figures(console(json), places.checkpoint, figures)
