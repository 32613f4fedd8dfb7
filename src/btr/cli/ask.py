"""``btr ask``: an answer with its source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from btr.cli.output import (
    DtypeOption,
    JsonOption,
    ModeOption,
    StoreArgument,
    console,
    highlighted,
    place,
    printable,
    source_sentence,
    write_json,
)
from btr.cli.reading import (
    BeamsOption,
    CrossOption,
    EveryOption,
    Int8Option,
    IntraOption,
    SearchOption,
    read_options,
)

if TYPE_CHECKING:
    from rich.console import Console

    from btr.answering import Reply
    from btr.readers.base import Answer


CITED = 3
"""Passages shown for an answer that stands in none of them."""


def ask(
    store: StoreArgument,
    question: Annotated[str, typer.Argument(help="What you want to know.", show_default=False)],
    passages: Annotated[
        int, typer.Option(min=1, max=1000, help="How many passages to retrieve and read.")
    ] = 20,
    reader: Annotated[
        str,
        typer.Option(
            "--reader", help="A reader that was adapted from the store's own, if not that one."
        ),
    ] = "",
    mode: ModeOption = None,
    top: Annotated[int, typer.Option(min=1, max=50, help="How many candidates to show.")] = 3,
    search: SearchOption = "greedy",
    beams: BeamsOption = 4,
    intra: IntraOption = 0.0,
    cross: CrossOption = 0.0,
    every: EveryOption = 3,
    int8: Int8Option = False,
    dtype: DtypeOption = None,
    json: JsonOption = "",
) -> None:
    """Answer a question from a store, with the sentence and the document it comes from."""
    if not question.strip():
        raise typer.BadParameter("the question is empty")
    from btr.answering import Answerer

    options = read_options(search, beams, intra, cross, every, int8)
    answerer = Answerer.open(store, reader=reader, mode=mode, dtype=dtype)
    reply = answerer.ask(question, passages=passages, top=top, options=options)
    show(reply, console(json))
    write_json(json, as_json(reply))


def show(reply: Reply, out: Console) -> None:
    """Print a reply: answer, source sentence, document, other candidates, timings."""
    from rich.text import Text

    answers = reply.reading.answers
    best = answers[0] if answers else None
    if reply.abstained:
        out.print(Text("not answered by these passages", "bold"),
                  f" (probability {reply.reading.no_answer:.2f})", sep="")  # fmt: skip
        if best:
            out.print(f"best guess, likely wrong: {printable(best.text)} "
                      f"(confidence {best.probability:.2f})")  # fmt: skip
    elif best:
        out.print(Text(printable(best.text), "bold green"),
                  f" (confidence {best.probability:.2f})", sep="")  # fmt: skip
    if best:
        out.print()
        show_source(best, out)
    if answers[1:]:
        out.print("\nother candidates")
        for other in answers[1:]:
            out.print(f"  {other.probability:.2f}  {printable(other.text)}  ({place(other)})")
    if reply.reading.question_cut:
        out.print("\nthe question was longer than the reader's budget; it saw only the beginning")
    if reply.reading.truncated:
        out.print(f"\n{reply.reading.truncated} passages were longer than the reader's budget; "
                  "it saw only their beginning")  # fmt: skip
    stages = ", ".join(f"{name} {ms:.1f}" for name, ms in reply.stages_ms.items())
    out.print(f"\n{sum(reply.stages_ms.values()):.1f} ms: {stages}", style="dim")


def show_source(answer: Answer, out: Console) -> None:
    """Print the sentence an answer stands in and where that is, or what it draws on."""
    from rich.padding import Padding

    if answer.start is None:
        out.print("  stands in no passage; drawn most from", style="dim")
        for cited in answer.citations[:CITED]:
            name = printable(cited.passage.document or cited.passage.id)
            out.print(
                f"  {cited.weight:.2f}  {name}, from character {cited.passage.start}", style="dim"
            )
        return
    out.print(Padding(highlighted(answer, colour=out.is_terminal), (0, 0, 0, 2)), soft_wrap=False)
    out.print(f"  {place(answer)}", style="dim")


def as_json(reply: Reply) -> dict[str, Any]:
    """A reply for ``--json``; ``answer`` is null where the reader abstains."""
    answers = reply.reading.answers
    return {
        "question": reply.question,
        "answer": reply.answer.text if reply.answer else None,
        "abstained": reply.abstained,
        "confidence": answers[0].probability if answers else 0.0,
        "no_answer_probability": reply.reading.no_answer,
        "candidates": [_candidate(a) for a in answers],
        "passages_read": len(reply.hits),
        "truncated_passages": reply.reading.truncated,
        "question_cut": reply.reading.question_cut,
        "stages_ms": {name: round(ms, 3) for name, ms in reply.stages_ms.items()},
    }


def _candidate(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "confidence": answer.probability,
        "sentence": "".join(source_sentence(answer)) if answer.start is not None else None,
        "document": answer.passage.document,
        "start": answer.document_start,
        "end": answer.document_end,
        "passage": {
            "id": answer.passage.id,
            "title": answer.passage.title,
            "text": answer.passage.text,
            "start": answer.passage.start,
        },
        "citations": [
            {"passage": c.passage.id, "weight": round(c.weight, 4), "start": c.start, "end": c.end}
            for c in answer.citations
        ],
    }
