"""``btr eval``: a reader's accuracy and cost on a question file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from btr.cli.output import DtypeOption, JsonOption, ReaderOption, console, progress, write_json
from btr.cli.reading import (
    BeamsOption,
    CrossOption,
    EveryOption,
    Int8Option,
    IntraOption,
    SearchOption,
    read_options,
)
from btr.errors import InputError, UsageError

if TYPE_CHECKING:
    from btr.data.questions import Question
    from btr.evaluate.predictions import Prediction
    from btr.evaluate.run import Found
    from btr.readers.base import Mode
    from btr.store.reader import TokenStore


def evaluate(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Questions: jsonl or jsonl.gz in FiD, Atlas or our format, or hub:NAME:SPLIT.",
            show_default=False,
        ),
    ],
    reader: ReaderOption = "minilm",
    store: Annotated[
        Path | None, typer.Option("--store", help="Take passages and their states from a store.")
    ] = None,
    mode: Annotated[
        Literal["plain", "decomposed", "btr"],
        typer.Option("--mode", help="Which of the reader's checkpoints."),
    ] = "btr",
    task: Annotated[
        str, typer.Option("--task", help="Name in the report; the data file's if not given.")
    ] = "",
    passages: Annotated[
        int, typer.Option("--passages", min=1, max=1000, help="Passages a question, at most.")
    ] = 20,
    retrieved: Annotated[
        Path | None,
        typer.Option(
            "--retrieved",
            metavar="RUN",
            help="Read the passages that a retrieval run "
            "lists: jsonl of {id, ctx_ids}; needs --store.",
        ),
    ] = None,
    retrieve: Annotated[
        bool, typer.Option("--retrieve", help="Read what the store's own retrieval finds.")
    ] = False,
    batch: Annotated[
        int,
        typer.Option(
            "--batch",
            min=1,
            help="Questions read together by a generative reader; "
            "more of them a second, each a little later.",
        ),
    ] = 1,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="Only the first questions; 0 for all.")
    ] = 0,
    classes: Annotated[
        bool,
        typer.Option(
            "--classes",
            help="Every answer is one of the file's classes (FEVER): choose "
            "the likeliest. The options of a multiple choice need no flag.",
        ),
    ] = False,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Write every answer here, as jsonl.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from what --predictions has.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="REPORT",
            help="A --json report of the same questions, "
            "usually plain's: also say how much of it is kept.",
        ),
    ] = None,
    ablation: Annotated[
        bool,
        typer.Option(
            "--ablation",
            help="Read without each technique in turn, and print the paper's figures beside.",
        ),
    ] = False,
    without_recovery: Annotated[
        str,
        typer.Option(
            "--without-recovery",
            metavar="READER",
            help="For --ablation: the same reader, trained with --recovery-weight 0.",
        ),
    ] = "",
    without_distillation: Annotated[
        str,
        typer.Option(
            "--without-distillation",
            metavar="READER",
            help="For --ablation: the "
            "same reader, trained with --state-weight 0 and --answer-weight 0.",
        ),
    ] = "",
    search: SearchOption = "greedy",
    beams: BeamsOption = 4,
    intra: IntraOption = 0.0,
    cross: CrossOption = 0.0,
    every: EveryOption = 3,
    int8: Int8Option = False,
    dtype: DtypeOption = None,
    json: JsonOption = "",
) -> None:
    """Score a reader on questions: exact match, F1, questions a second, CPU time.

    The passages are the question file's own, unless --retrieved or --retrieve says otherwise.
    With --store, a decomposed or btr reader works from the stored states.
    """
    others = {"recovery": without_recovery, "distillation": without_distillation}
    others = {what: name for what, name in others.items() if name}
    if others and not ablation:
        raise UsageError("--without-... are rows of --ablation", todo="add --ablation")
    refused = {
        "--mode": mode != "btr", "--predictions": predictions, "--resume": resume,
        "--against": against, "--batch": batch != 1, "--intra": intra, "--cross": cross,
    }  # fmt: skip
    if ablation and (given := [flag for flag, value in refused.items() if value]):
        raise UsageError("--ablation reads rows of its own, question by question",
                         found=", ".join(given), todo="leave it out")  # fmt: skip
    if (retrieved or retrieve) and store is None:
        raise UsageError("--retrieved and --retrieve need a store", todo="add --store")
    if retrieved and retrieve:
        raise UsageError("--retrieved and --retrieve exclude each other", todo="give one of them")
    if resume and predictions is None:
        raise UsageError("--resume goes on from --predictions", todo="name that file")
    baseline = read_report(against) if against else None
    from btr.data.hub import questions_of, task_of
    from btr.evaluate.predictions import open_predictions
    from btr.evaluate.run import evaluate as run
    from btr.evaluate.run import labels_in
    from btr.machine import DTYPES, default_dtype
    from btr.readers.load import load_reader
    from btr.store.reader import TokenStore

    options = read_options(search, beams, intra, cross, every, int8)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(TokenStore.open(store)) if store else None
        stored = opened is not None and opened.manifest.spec.settings.get("mode") == mode
        find = _finder(opened, passages, states=stored, listed=retrieved, retrieve=retrieve)
        if ablation:
            from btr.cli.ablation import ablation as run_ablation

            run_ablation(
                data, reader, find, store=opened if stored else None, others=others,
                task=task or task_of(data), passages=passages, classes=classes, limit=limit,
                options=options, dtype=dtype, json=json,
            )  # fmt: skip
            return
        chosen = dtype or default_dtype()
        loaded = load_reader(reader, mode, dtype=DTYPES[chosen])
        if opened is not None and stored:
            opened.require(loaded.fingerprint)
        settings = {
            "data": Path(data).name,
            "dtype": chosen,
            "passages": passages,
            "batch": batch,
            "source": "retrieved" if retrieved else "retrieval" if retrieve else "data",
            "search": search,
            "beams": beams if search == "beam" else None,
            "int8": int8,
            "merging": {"intra": intra, "cross": cross, "every": every} if intra or cross else None,
            "states": "stored" if stored else "none" if mode == "plain" else "encoded now",
        }
        labels = labels_in(questions_of(data)) if classes else ()
        done: list[Prediction] = []
        write: Callable[[Prediction], None] = lambda _: None  # noqa: E731
        if predictions is not None:
            made_with = {
                "mode": mode,
                **settings,
                "labels": labels,
                "store": None if opened is None else opened.manifest.spec.store_id,
                "generation": None if opened is None else opened.manifest.generation,
                **_contents(data, retrieved, loaded.name, mode),
            }
            done, write = stack.enter_context(
                open_predictions(predictions, made_with, resume=resume)
            )
        bar = stack.enter_context(progress())
        work = bar.add_task("questions", total=limit or None)
        report = run(
            loaded, islice(questions_of(data), limit or None), find,
            use_states=stored, options=options,
            labels=labels, batch=batch, done=done, write=write,
            progress=lambda n: bar.update(work, completed=n),
        )  # fmt: skip
    main = "accuracy" if report["accuracy"] is not None else "f1"
    if baseline is not None:
        if baseline.get("n") != report["n"] or not baseline.get(main):
            raise UsageError("the reports are not of the same questions", where=str(against),
                             expected=f"{report['n']} with {main}",
                             found=f"{baseline.get('n')}")  # fmt: skip
        report["kept"] = round(100 * report[main] / baseline[main], 2)
    report = {
        "task": task or task_of(data),
        **report,
        "settings": settings,
    }
    write_json(json, report)
    scores = f"EM {report['em']}, F1 {report['f1']}"
    if main == "accuracy":
        scores = f"accuracy {report['accuracy']}"
    kept = f" ({report['kept']} % of {against})" if "kept" in report else ""
    skipped = report["skipped_without_passages"]
    left_out = f" ({skipped} without passages or answers left out)" if skipped else ""
    latency = report["latency_ms"]
    out = console(json)
    out.print(
        f"{report['task']}, {report['reader']} {report['mode']}: {scores}{kept} on {report['n']} "
        f"questions{left_out}; {report['queries_per_s']} a second, {latency['median']} ms a "
        f"question (95 % within {latency['p95']}), {report['cpu_s_per_correct']} CPU-seconds for a "
        "right answer"
    )
    for name, share in report.get("subjects", {}).items():
        low, high = report["subject_intervals"][name]
        out.print(f"  {name}: {share} ({low} to {high})")


def _finder(
    store: TokenStore | None, most: int, *, states: bool, listed: Path | None, retrieve: bool
) -> Callable[[Question], Found]:
    """Where a question's passages come from, with the store's states of them."""
    from btr.evaluate.run import gold_passages, listed_passages, read_run, retrieved_passages

    if store is not None and listed:
        return listed_passages(store, read_run(listed), most)
    if store is None or not retrieve:
        return gold_passages(store if states else None, most)
    from btr.answering import open_retriever

    retriever = open_retriever(store)
    return retrieved_passages(
        store, lambda q, k: [hit.ordinal for hit in retriever.search(q, k)], most
    )


def read_report(path: Path) -> dict[str, Any]:
    """An earlier report.

    Raises:
        InputError: There is none.
    """
    import json

    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("a report cannot be read", where=str(path), found=str(error)[:200],
                         todo="name what --json wrote") from error  # fmt: skip
    return dict(report)


def _contents(data: str, retrieved: Path | None, reader: str, mode: Mode) -> dict[str, object]:
    """Digests of all that predictions are made of, by what it is; not by its place."""
    from btr.data.hub import SCHEME
    from btr.evaluate.resuming import file_digests, weight_files
    from btr.models import reader_folder

    folder = reader_folder(reader)
    folder = folder / mode if (folder / mode).is_dir() else folder
    files = {
        "reader": [folder / "config.json", *weight_files(folder)],
        "questions": [] if data.startswith(SCHEME) else [Path(data)],
        "retrieval run": [] if retrieved is None else [retrieved],
    }
    return {f"{what} sha256": list(file_digests(paths).values()) for what, paths in files.items()}
