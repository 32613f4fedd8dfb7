"""``btr demo``: the whole story on the bundled corpus."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from btr.cli.ask import show_source
from btr.cli.output import (
    DtypeOption,
    JsonOption,
    ReaderOption,
    console,
    note,
    printable,
    progress,
    write_json,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from btr.demo.story import Row, Told

NEXT = """
Your own documents next:

  btr index FOLDER -o my.btr
  btr ask my.btr "your question"
"""


def demo(
    reader: ReaderOption = "minilm",
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="DIR", help="Keep the stores here, in a folder of yours."),
    ] = None,
    dtype: DtypeOption = None,
    json: JsonOption = "",
) -> None:
    """Index a bundled corpus, ask ten questions, and compare the three readers."""
    from btr.demo.story import ROUNDS, Story
    from btr.machine import default_dtype

    out = console(json)
    started = time.perf_counter()
    with _folder(keep) as folder:
        story = Story(folder, reader, dtype or default_dtype())
        with progress() as bar:
            task = bar.add_task("building stores", total=None)
            count = story.build(
                lambda mode, state: bar.update(
                    task, description=f"{mode} store: {state.stage}", completed=state.passages
                )
            )
        out.print(f"{count} passages from the bundled corpus indexed "
                  f"in {time.perf_counter() - started:.0f} s\n")  # fmt: skip
        told = []
        for one in story.ask():
            told.append(one)
            _show(one, out)
        with progress() as bar:
            task = bar.add_task("comparing readers", total=ROUNDS + 1)
            rows = story.compare(lambda n: bar.update(task, completed=n + 1))
    out.print(_table(rows, len(told)))
    if rows[0].mode != "plain":
        note("the plain reader's weights are not in this installation; they are in the repository")
    if keep:
        out.print(f"\nThe stores are in {keep}.")
    out.print(NEXT)
    write_json(json, _report(count, rows, told, time.perf_counter() - started))


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="btr-demo-") as folder:
            yield Path(folder)
    else:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(f"--keep {keep}: {error.strerror}") from error
        yield keep


def _show(told: Told, out: Console) -> None:
    """One question with its answer and source."""
    from rich.text import Text

    reply = told.reply
    out.print(Text(told.question.question, "bold"))
    if reply.answer:
        out.print(f"  {printable(reply.answer.text)} (confidence {reply.answer.probability:.2f})")
        show_source(reply.answer, out)
    else:
        out.print(f"  not answered by these passages (probability {reply.reading.no_answer:.2f})")
    out.print()


def _table(rows: Sequence[Row], questions: int) -> Table:
    from rich.table import Table

    table = Table(title=f"{questions} questions, one run, readers in turn", title_justify="left")
    table.add_column("reader")
    headings = ("seconds a question", "times faster", "bytes a token", "same as plain", "right")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.mode,
            f"{row.seconds:.4f}",
            f"{rows[0].seconds / row.seconds:.2f}" if rows[0].mode == "plain" else "-",
            f"{row.bytes_per_token:.1f}" if row.bytes_per_token else "-",
            "-" if row.agreements is None else f"{row.agreements} of {questions}",
            f"{row.correct} of {questions}",
        )
    return table


def _report(
    passages: int, rows: Sequence[Row], told: Sequence[Told], seconds: float
) -> dict[str, object]:
    return {
        "passages": passages,
        "seconds": round(seconds, 1),
        "answers": [
            {
                "question": t.question.question,
                "expected": list(t.question.answers),
                "answer": t.reply.answer.text if t.reply.answer else None,
                "document": t.reply.answer.passage.document if t.reply.answer else None,
                "correct": t.correct,
            }
            for t in told
        ],
        "rows": [
            {
                "mode": r.mode,
                "seconds_per_question": round(r.seconds, 5),
                "bytes_per_token": r.bytes_per_token and round(r.bytes_per_token, 3),
                "agreement_with_plain": None if r.agreements is None else r.agreements / len(told),
                "correct": r.correct,
            }
            for r in rows
        ],
    }
