"""What all commands share in printing: consoles, JSON, progress, highlighted sentences."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from btr.errors import ResourceError, UsageError
from btr.files import explain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.text import Text

    from btr.readers.base import Answer


PIPE_WIDTH = 120
"""Columns where stdout is no terminal."""


def _json_place(value: str) -> str:
    """Refuse a place that cannot be written before any work is done."""
    if value and value != "-" and not Path(value).parent.is_dir():
        raise typer.BadParameter(f"the folder {Path(value).parent} does not exist")
    if value and Path(value).is_dir():
        raise typer.BadParameter(f"{value} is a folder")
    return value


JsonOption = Annotated[
    str,
    typer.Option("--json", metavar="FILE", callback=_json_place,
                 help="Also write the figures as JSON to FILE; '-' writes them, alone, to stdout."),
]  # fmt: skip
ReaderOption = Annotated[
    str, typer.Option("--reader", help="A reader that ships, a folder, or a Hugging Face Hub id.")
]
# The names are those of btr.readers.base.MODES and btr.machine.DTYPES, which are slow to import.
ModeOption = Annotated[
    Literal["plain", "decomposed", "btr"] | None,
    typer.Option("--mode", help="Which of the reader's checkpoints; the stored one if not given."),
]
DtypeOption = Annotated[
    Literal["bf16", "fp32"] | None,
    typer.Option("--dtype", help="Of the arithmetic; the faster one here if not given."),
]
StoreArgument = Annotated[Path, typer.Argument(help="The store's folder.", show_default=False)]


def write_json(target: str, value: Any) -> None:
    """Write a report.

    Args:
        target: A file, "-" for stdout, or "" for nowhere.
        value: Anything JSON can hold.

    Raises:
        UsageError: The file may not be written.
        ResourceError: The disk is full.
    """
    if not target:
        return
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        Path(target).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        found = explain(error, target)
        if isinstance(found, ResourceError | UsageError):
            raise found from error
        raise UsageError("the report cannot be written", where=target,
                         found=str(error.strerror)) from error  # fmt: skip


def console(json_target: str = "") -> Console:
    """Where a command prints for people: stdout, unless that is for JSON alone."""
    from rich.console import Console

    # Markup and highlighting are off: documents may hold anything that looks like markup.
    piped = not sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        # rich ignores a width without a height.
        width=PIPE_WIDTH if piped else None,
        height=PIPE_WIDTH if piped else None,
        quiet=json_target == "-",
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=True,
    )


def note(text: str) -> None:
    """A line for people beside the command's output."""
    print(printable(text), file=sys.stderr)


def progress(unit: str = "") -> Progress:
    """A progress bar on stderr with rate and time left; nothing where stderr is no terminal.

    Args:
        unit: What a task's ``rate`` field counts per second, as "passages"; "" for no such column.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    err = Console(file=sys.stderr, markup=False, highlight=False, emoji=False)
    amount: ProgressColumn = DownloadColumn() if unit else MofNCompleteColumn()
    rate = [TextColumn("{task.fields[rate]} " + unit + "/s")] if unit else []
    return Progress(
        TextColumn("{task.description}"), BarColumn(), amount, *rate, TimeRemainingColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    )  # fmt: skip


def printable(text: str) -> str:
    """A document's text without characters by which it could drive a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "�" for c in text)


def source_sentence(answer: Answer) -> tuple[str, str, str]:
    """The sentence a verbatim answer stands in: before the answer, the answer, after it."""
    from btr.data.sentences import sentence_ends

    text, start, end = answer.passage.text, answer.start or 0, answer.end or 0
    ends = [0, *sentence_ends(text, 0, len(text)), len(text)]
    first = max(e for e in ends if e <= start)
    last = min(e for e in ends if e >= end)
    return text[first:start].lstrip(), answer.text, text[end:last].rstrip()


def highlighted(answer: Answer, *, colour: bool) -> Text:
    """The source sentence on one line, the answer in it bold, or between ``**`` without colour."""
    from rich.text import Text

    before, span, after = (printable(part).replace("\n", " ") for part in source_sentence(answer))
    if not colour:
        return Text(f"{before}**{span}**{after}")
    return Text.assemble(before, (span, "bold black on yellow"), after)


def place(answer: Answer) -> str:
    """Document and character offsets of an answer."""
    name = answer.passage.document or answer.passage.id
    if answer.start is None:
        return printable(f"{name}, not verbatim")
    return printable(f"{name}, characters {answer.document_start} to {answer.document_end}")


def bytes_text(count: float) -> str:
    """Bytes for people: "1.2 MB", in powers of ten."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
