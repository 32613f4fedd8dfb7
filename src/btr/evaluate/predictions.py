"""Scored questions on disk: a line each, and beside them what they were made with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from btr.errors import InputError, UsageError
from btr.evaluate.resuming import as_recorded, require_same
from btr.files import write_file


@dataclass(frozen=True, slots=True)
class Prediction:
    """One scored question.

    Attributes:
        id: Of the question.
        question: Its text.
        answer: What the reader said; "" for nothing.
        passage: Id of the passage it comes from.
        probability: Of the answer.
        no_answer: That no passage answers.
        em: 0 or 1; of a choice, whether it is the right one.
        f1: Share of common words, 0 .. 1; of a choice as ``em``.
        subject: Of a multiple choice, or "".
        passages: How many were read.
        found: The place of the first passage that holds an answer, from 1; 0 for none. A choice
            has none: its letter or its class stands anywhere or nowhere, and says nothing.
        wall: Seconds of reading; of several questions read together, an equal share.
        cpu: CPU-seconds of reading, likewise.
        latency: Seconds until the answer was there; of several together, all of them.
    """

    id: str
    question: str
    answer: str
    passage: str
    probability: float
    no_answer: float
    em: float
    f1: float
    subject: str
    passages: int
    found: int
    wall: float
    cpu: float
    latency: float


@contextmanager
def open_predictions(
    path: Path, settings: Mapping[str, object], *, resume: bool
) -> Iterator[tuple[list[Prediction], Callable[[Prediction], None]]]:
    """A file of predictions to add to.

    Args:
        path: The file; ``<path>.settings.json`` beside it says what made them.
        settings: What makes them: reader, mode, options, data.
        resume: Keep those that are there, but for a last line cut short; else start anew.

    Yields:
        Those that are kept, and a function that adds one. A line is written at a time, and none is
        rewritten, so that a stopped run can go on.

    Raises:
        UsageError: The folder does not exist.
        InputError: The file holds something else, or nothing says what made it.
        IncompatibleError: The predictions were made with other settings.
    """
    if not path.parent.is_dir():
        raise UsageError("the folder does not exist", where=str(path.parent), todo="make it first")
    beside, now = path.with_name(f"{path.name}.settings.json"), as_recorded(settings)
    done: list[Prediction] = []
    if resume and path.exists():
        if not beside.exists():
            raise InputError("nothing says what made these predictions", where=str(path),
                             expected=beside.name, todo="remove the file to start again",
                             )  # fmt: skip
        require_same(json.loads(beside.read_text(encoding="utf-8")), now, path)
        done = read_predictions(path)
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    else:
        path.unlink(missing_ok=True)
        write_file(beside, (json.dumps(now, indent=2) + "\n").encode())
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:

        def add(prediction: Prediction) -> None:
            line = json.dumps(asdict(prediction), ensure_ascii=False)
            print(line, file=file, flush=True)

        yield done, add


def read_predictions(path: Path) -> list[Prediction]:
    """Predictions that a run wrote before it was stopped; a last line cut short is left out.

    Raises:
        InputError: The file holds something else.
    """
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            found.append(Prediction(**json.loads(line)))
        except (ValueError, TypeError):
            raise InputError("not a prediction", where=f"{path}, line {number}",
                             todo="remove the file to start again") from None  # fmt: skip
    return found
