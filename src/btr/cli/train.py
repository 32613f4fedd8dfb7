"""``btr train``: one of the three training steps of a reader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
from btr.errors import UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(
    stage: Annotated[
        Literal["reader", "decompose", "binarize", "adapt"],
        typer.Option("--stage", help="Which step.", show_default=False),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="FILE[=SHARE]",
            help="Questions with passages: jsonl in FiD, Atlas or our format; a share below 1 "
            "takes a sample. May be given several times.",
            show_default=False,
        ),
    ],
    reader: TrainedReaderOption,
    start: Annotated[
        str,
        typer.Option("--from", help="What to start from: a folder, a Hub id or a packaged model "
                     "(btr models); if not given, the reader's own step before."),
    ] = "",
    plain: Annotated[
        str, typer.Option("--plain", help="The teacher's checkpoint, if not the reader's own.")
    ] = "",
    layout: LayoutOption = "",
    store: Annotated[
        Path | None,
        typer.Option("--store", help="A store of the reader that is adapted: it learns to read "
                     "states as they are kept there."),
    ] = None,
    dev: Annotated[
        list[Path] | None,
        typer.Option("--dev", help="Look at this file between epochs, and hold nothing out."),
    ] = None,
    dev_share: Annotated[
        float, typer.Option("--dev-share", min=0, max=0.5, help="Share of passages held out.")
    ] = 0.04,
    score_on: Annotated[
        list[str] | None,
        typer.Option("--score-on", metavar="NAME",
                     help="Dev files whose F1 decides which checkpoint is best; all if not given."),
    ] = None,
    preset: Annotated[
        Literal["nq", "triviaqa", "webquestions", "fever", "mmlu"] | None,
        typer.Option("--preset", help="The paper's hyper-parameters for a task, which are those "
                     "of T5 base: generative readers."),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the data.")] = 3,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Stop after so many steps.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate [1e-4].")] = None,
    relative_lr: RelativeRateOption = False,
    average: AverageOption = 0.0,
    warmup: WarmupOption = 200,
    token_budget: Annotated[
        int | None,
        typer.Option("--token-budget", min=1, help="Most padded tokens of a batch [6000]."),
    ] = None,
    accumulate: AccumulateOption = 1,
    passages: Annotated[
        int | None,
        typer.Option("--passages", min=1, help="Passages of a question, generative readers [20]."),
    ] = None,
    distractors: Annotated[
        int | None,
        typer.Option("--distractors", min=0, help="Passages of the same title, without the answer, "
                     "that fill up a question's, generative readers [0]."),
    ] = None,
    query_budget: Annotated[
        int | None, typer.Option("--query-budget", help="Tokens of a question [40].")
    ] = None,
    passage_budget: Annotated[
        int | None, typer.Option("--passage-budget", help="Tokens of a passage.")
    ] = None,
    answer_budget: Annotated[
        int | None, typer.Option("--answer-budget", help="Tokens of an answer [32].")
    ] = None,
    query_template: Annotated[
        str | None, typer.Option("--query-template", help="Of generative readers.")
    ] = None,
    passage_template: Annotated[
        str | None, typer.Option("--passage-template", help="Of generative readers.")
    ] = None,
    positives: Annotated[
        int | None,
        typer.Option("--positives", min=1, help="Passages of a question that hold its answer and "
                     "are trained on, extractive readers [1]."),
    ] = None,
    negative_share: Annotated[
        float | None,
        typer.Option("--negative-share", min=0, max=1, help="Questions that come again with a "
                     "passage that does not answer them, extractive readers [0.12]."),
    ] = None,
    classes: Annotated[
        bool, typer.Option("--classes", help="Extractive readers: every answer is one of the "
                           "files' classes, as in FEVER; train a head that tells them.")
    ] = False,
    task_weight: Annotated[
        float, typer.Option("--task-weight", min=0, help="Of the task's own loss; 0: off.")
    ] = 1.0,
    state_weight: Annotated[
        float | None,
        typer.Option("--state-weight", min=0, help="Of query-aware distillation; 0: off [0.2; with "
                     "--preset as the paper: 1 in step decompose alone]."),
    ] = None,
    distil_share: Annotated[
        float, typer.Option("--distil-share", min=0, max=1, help="Tokens that it looks at.")
    ] = 0.5,
    answer_weight: Annotated[
        float | None,
        typer.Option("--answer-weight", min=0, help="Of the teacher's answers; 0: off [1; with "
                     "--preset 0]."),
    ] = None,
    recovery_weight: Annotated[
        float | None,
        typer.Option("--recovery-weight", min=0, help="Of the recovery loss; 0: off [0.1; with "
                     "--preset 1]."),
    ] = None,
    rule: Annotated[
        Literal["calibrated", "words", "raw", "norm", "tanh"],
        typer.Option("--rule", help="How states become bits, step binarize. words: as calibrated, "
                     "but of what tokens' words leave unsaid. The others are for comparison, and "
                     "of a T5 leave no checkpoint."),
    ] = "calibrated",
    dropout: DropoutOption = 0.1,
    precision: PrecisionOption = "bf16",
    evaluate_every: EvaluateEveryOption = 0,
    patience: PatienceOption = 0,
    recompute: RecomputeOption = False,
    track: Annotated[
        Literal["tensorboard", "wandb"] | None,
        typer.Option("--track", help="Also log there; the package must be installed."),
    ] = None,
    seed: SeedOption = 1,
    json: JsonOption = "",
) -> None:  # fmt: skip
    """Train one step of a reader; run again, it goes on where it was.

    Three steps make a reader: ``reader`` (the ordinary one), ``decompose`` (split and distilled),
    ``binarize`` (1-bit passage states). ``adapt`` trains a finished reader for another task above
    the cut only, so that its stores stay valid. Start it with torchrun to use several GPUs.
    """
    from btr.train.launch import PAPER_LOSSES, PRESETS, family_of, places_of
    from btr.train.launch import train as run
    from btr.train.loop import LoopSettings
    from btr.train.sources import labels_of, parse_source
    from btr.train.stage import StageSettings

    if layout and stage != "decompose":
        raise UsageError("--layout is for step decompose", todo="leave it out")
    split = parse_layout(layout) if layout else None
    weights = {"state_weight": 0.2, "answer_weight": 1.0, "recovery_weight": 0.1}
    if preset:
        weights |= PAPER_LOSSES.get(stage, {})
    asked = {"state_weight": state_weight, "answer_weight": answer_weight,
             "recovery_weight": recovery_weight}  # fmt: skip
    weights |= {name: weight for name, weight in asked.items() if weight is not None}
    if stage == "reader" or (stage == "adapt" and not plain):
        weights["state_weight"] = weights["answer_weight"] = 0.0
    if stage != "binarize":
        weights["recovery_weight"] = 0.0
    distils = bool(weights["state_weight"] or weights["answer_weight"])
    places = places_of(reader, stage, start=start, plain=plain, distils=distils)
    budgets: dict[str, Any] = {}
    if preset and family_of(places.start) == "bert":
        raise UsageError("--preset has the paper's settings of T5 base, for generative readers",
                         found=preset, todo="leave it out")  # fmt: skip
    if preset:
        chosen = PRESETS[preset]
        steps, lr = steps or chosen.steps, lr or chosen.lr
        passages = passages or chosen.passages
        token_budget = token_budget or chosen.batch * passages * chosen.input_budget
        # Enough passes for the steps, whatever the size of the data.
        epochs = max(epochs, steps)
        if stage == "reader":
            budgets = {
                "query_budget": chosen.query_budget,
                "passage_budget": chosen.input_budget - chosen.query_budget,
            }
    given = {
        "query_budget": query_budget, "passage_budget": passage_budget,
        "answer_budget": answer_budget, "query_template": query_template,
        "passage_template": passage_template,
    }  # fmt: skip
    budgets |= {name: value for name, value in given.items() if value is not None}
    if budgets and stage != "reader":
        raise UsageError("budgets and templates are those of step reader",
                         found=", ".join(budgets), todo="leave them out")  # fmt: skip
    own = {
        "passages": passages,
        "distractors": distractors,
        "positives": positives,
        "negative_share": negative_share,
    }
    if store is not None and stage != "adapt":
        raise UsageError("--store is for step adapt", todo="leave it out")
    settings = StageSettings(
        stage,
        LoopSettings(
            epochs, lr or 1e-4, steps=steps or 0, accumulate=accumulate,
            evaluate_every=evaluate_every, patience=patience, warmup=warmup, seed=seed,
            relative=relative_lr, average=average,
        ),
        token_budget=token_budget or 6000,
        task_weight=task_weight,
        distil_share=distil_share,
        **weights,
        dropout=dropout,
        precision=precision,
        rule=rule,
    )  # fmt: skip
    sources = tuple(parse_source(text) for text in data)
    figures = run(
        settings,
        places,
        {
            "sources": sources,
            "dev": tuple(dev or ()),
            "dev_share": dev_share,
            "score_on": tuple(score_on or ()),
            "seed": seed,
            **{name: value for name, value in own.items() if value is not None},
            **({"labels": labels_of(sources)} if classes else {}),
        },
        layout=split,
        budgets=budgets,
        store=store,
        start=start,
        recompute=recompute,
        accelerator=_accelerator(track, places.work),
    )
    write_json(json, {"stage": stage, "checkpoint": str(places.checkpoint), "dev": figures})
    show_figures(console(json), places.checkpoint, figures)


def _accelerator(track: str | None, folder: Path) -> Accelerator:
    """Devices and processes, with a tracker if one was asked for.

    Raises:
        UsageError: The tracker's package is not installed.
    """
    from accelerate import Accelerator

    if track is None:
        return Accelerator()
    try:
        accelerator = Accelerator(log_with=track, project_dir=folder)
        accelerator.init_trackers("btr")
    except (ImportError, ValueError) as error:
        raise UsageError(f"{track} cannot be used", found=str(error).split("\n")[0][:200],
                         todo=f"pip install {track}") from error  # fmt: skip
    return accelerator
