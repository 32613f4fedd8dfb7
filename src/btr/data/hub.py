"""Questions from files, or from a data set of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from btr.data.lines import RecordError
from btr.data.questions import Question, parse_question, read_questions
from btr.errors import InputError, UsageError

SCHEME = "hub:"


def questions_of(source: str) -> Iterator[Question]:
    """Questions of a file, or of ``hub:NAME:SPLIT`` or ``hub:NAME:SPLIT:CONFIG``.

    ``NAME`` is a Hub id or a folder of data files. Nothing that comes with a data set is run.

    Raises:
        InputError: No such file or data set, or a bad record, which is named.
        UsageError: The name is not of that form, or the package ``datasets`` is not installed.
    """
    if not source.startswith(SCHEME):
        return read_questions(Path(source))
    return _hub_questions(source)


def task_of(source: str) -> str:
    """What to call the task: the file's name without endings, or the data set's."""
    if source.startswith(SCHEME):
        return source.removeprefix(SCHEME).split(":")[0].rstrip("/").split("/")[-1]
    return Path(source).name.partition(".")[0]


def _hub_questions(source: str) -> Iterator[Question]:
    name, split, config = [*source.removeprefix(SCHEME).split(":"), "", ""][:3]
    if not name or not split:
        raise UsageError("bad name of a data set", found=source,
                         expected="hub:NAME:SPLIT or hub:NAME:SPLIT:CONFIG")  # fmt: skip
    try:
        from datasets import ClassLabel, load_dataset
    except ImportError as error:
        raise UsageError("data sets of the Hub need a package more", found=source,
                         todo="pip install btr-reader[hub]") from error  # fmt: skip
    try:
        rows = load_dataset(name, config or None, split=split)
    except Exception as error:
        raise InputError("the data set cannot be loaded", where=source,
                         found=(str(error).strip() or type(error).__name__).split("\n")[0][:200],
                         todo="check name, split and network, or export it to jsonl",
                         ) from error  # fmt: skip
    classes = {n: f for n, f in rows.features.items() if isinstance(f, ClassLabel)}
    for number, row in enumerate(rows, 1):
        for field, feature in classes.items():
            # MMLU's number of the right answer is one of a letter, and stays.
            if field == "label" and isinstance(row[field], int) and row[field] >= 0:
                row[field] = feature.int2str(row[field])
        try:
            yield parse_question(row, number)
        except RecordError as error:
            raise InputError("bad question", where=f"{source}, row {number}", found=error.reason,
                             todo="name another data set, or export it to jsonl",
                             ) from None  # fmt: skip
