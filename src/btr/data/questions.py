"""Questions with their answers and passages: FiD, Atlas and our own jsonl, streamed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from btr.data.lines import RecordError, json_type, read_numbered_records
from btr.data.passages import Passage
from btr.data.records import identifier, optional_text, required_text
from btr.data.schemas import as_fid
from btr.errors import BtrError, InputError

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a data set.

    Attributes:
        id: As in the file, or the line's number.
        question: Never blank.
        answers: Every string that counts as right; may be empty.
        contexts: Passages that come with it.
        options: Multiple choice, as (letter, text) in order.
        subject: Of multiple choice, "" if not given.
        label: The right class: a letter of ``options``, or as SUPPORTS and REFUTES; "" if none.
    """

    id: str
    question: str
    answers: tuple[str, ...] = ()
    contexts: tuple[Passage, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    subject: str = ""
    label: str = ""


def asked(question: Question) -> str:
    """A question as a reader is asked it, the options of a multiple choice with their letters."""
    listed = "".join(f" ({letter}) {text}" for letter, text in question.options)
    return question.question + listed


def read_questions(path: Path) -> Iterator[Question]:
    """Questions of a ``.jsonl`` or ``.jsonl.gz`` file, one at a time.

    The question is ``question`` (FiD, Atlas, ours) or ``claim`` (FEVER); answers are ``answers``,
    or one in ``answer`` or ``target``; passages are ``ctxs`` with ``text`` and, optionally, ``id``
    and ``title``; ``options`` are an object by letter, or an array. Records of other data sets are
    understood by their fields (``btr.data.schemas``).

    Raises:
        InputError: At the first bad line, with file and line; or if the file has no question.
    """
    empty = True
    for number, fields in read_numbered_records(path):
        try:
            question = parse_question(fields, number)
        except RecordError as error:
            raise InputError(
                "bad question",
                where=f"{path}, line {number}",
                found=error.reason,
                todo="correct the line",
            ) from None
        empty = False
        yield question
    if empty:
        raise InputError("no questions in the file", where=str(path), todo="name another file")


def question_record(question: Question) -> dict[str, object]:
    """Id, question, answers and passages as :func:`read_questions` reads them."""
    return {
        "id": question.id,
        "question": question.question,
        "answers": list(question.answers),
        "ctxs": [{"id": p.id, "title": p.title, "text": p.text} for p in question.contexts],
    }


def write_records(path: Path, records: Iterable[Mapping[str, object]]) -> int:
    """Write a ``.jsonl.gz`` file; the number of its records.

    Raises:
        BtrError: What the records raise; there is no file then.
    """
    count = 0
    try:
        with gzip.open(path, "wt", encoding="utf-8") as out:
            for record in records:
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    except BtrError:
        path.unlink(missing_ok=True)
        raise
    return count


def parse_question(fields: Mapping[str, Any], number: int) -> Question:
    """A question from its JSON object.

    Args:
        fields: The object.
        number: Its line, which is its id if it has none.

    Raises:
        RecordError: A field is missing or of the wrong type.
    """
    fields = as_fid(fields)
    name = identifier(fields, "id") if fields.get("id") is not None else str(number)
    answers, options = _answers(fields), _options(fields)
    label = optional_text(fields, "label")
    if label and not answers:
        answers = (label,)
    if options and answers and not label:
        if answers[0] not in dict(options):
            raise RecordError(f"the answer is none of the options {', '.join(dict(options))}")
        label = answers[0]
    return Question(
        name,
        required_text(fields, "claim" if "claim" in fields else "question"),
        answers,
        _contexts(fields, name),
        options,
        optional_text(fields, "subject"),
        label,
    )


def _answers(fields: Mapping[str, Any]) -> tuple[str, ...]:
    if "answers" in fields:
        return _strings(fields["answers"], "answers")
    return tuple(optional_text(fields, key) for key in ("answer", "target") if fields.get(key))[:1]


def _options(fields: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    value = fields.get("options")
    if value is None:
        return ()
    if isinstance(value, dict):
        return tuple(zip(value, _strings(list(value.values()), "options"), strict=True))
    texts = _strings(value, "options")
    if len(texts) > len(_LETTERS):
        raise RecordError(f"{len(texts)} options are more than there are letters")
    return tuple(zip(_LETTERS, texts, strict=False))


def _contexts(fields: Mapping[str, Any], name: str) -> tuple[Passage, ...]:
    values = fields.get("ctxs")
    if values is None:
        return ()
    if not isinstance(values, list):
        raise RecordError(f"the field 'ctxs' is {json_type(values)}, not an array")
    passages = []
    for n, value in enumerate(values):
        if not isinstance(value, dict):
            raise RecordError(f"ctxs[{n}] is {json_type(value)}, not an object")
        try:
            given = value.get("id") is not None
            passages.append(
                Passage(
                    identifier(value, "id") if given else f"{name}:ctx{n}",
                    required_text(value, "text"),
                    optional_text(value, "title"),
                )
            )
        except RecordError as error:
            raise RecordError(f"in ctxs[{n}] {error.reason}") from None
    return tuple(passages)


def _strings(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise RecordError(f"the field {name!r} is {json_type(value)}, not an array of strings")
    for item in value:
        if not isinstance(item, str):
            raise RecordError(f"the field {name!r} holds {json_type(item)}, not only strings")
    return tuple(value)
