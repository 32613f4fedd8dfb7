"""One line of a passage file to its id, title and text: our jsonl, Atlas, BEIR, DPR's TSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from btr.data.ids import check_id
from btr.data.lines import (
    EncodingWatch,
    Line,
    RecordError,
    json_type,
    kept,
    parse_line,
    short,
    split_row,
)
from btr.errors import InputError

_USED = frozenset({"id", "_id", "title", "section", "text"})
TSV_HEADER = ("id", "text", "title")


@dataclass(frozen=True, slots=True)
class Record:
    """A ready-made passage as its line gives it, text and all unchanged."""

    id: str
    title: str
    text: str


def parse_json_record(line: Line, watch: EncodingWatch, ignore: Callable[[str], None]) -> Record:
    """A line of ``{id, title, text}`` (ours), with ``section`` (Atlas) or ``_id`` (BEIR).

    Args:
        line: From the file.
        watch: Of the file.
        ignore: Called with every field that is not used.

    Raises:
        RecordError: Not strict JSON, or a field is missing, empty, of the wrong type, or too long.
        InputError: The file is not UTF-8.
    """
    fields = parse_line(line, watch)
    if not _USED.issuperset(fields):
        for name in fields.keys() - _USED:
            ignore(name)
    if "id" in fields and "_id" in fields:
        raise RecordError("both 'id' and '_id' are given")
    title = optional_text(fields, "title")
    section = optional_text(fields, "section").strip()
    if section:
        title = f"{title}: {section}" if title else section
    return Record(
        check_id(identifier(fields, "_id" if "_id" in fields else "id")),
        title,
        required_text(fields, "text"),
    )


def identifier(fields: Mapping[str, Any], name: str) -> str:
    """An id; whole numbers are taken as their digits.

    Raises:
        RecordError: Missing or of another type.
    """
    if name not in fields:
        raise RecordError(f"the field {name!r} is missing")
    value = fields[name]
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RecordError(f"the field {name!r} is {json_type(value)}, not a string")


def required_text(fields: Mapping[str, Any], name: str) -> str:
    """A string with something in it.

    Raises:
        RecordError: Missing, blank or of another type.
    """
    if name not in fields:
        raise RecordError(f"the field {name!r} is missing")
    value = fields[name]
    if not isinstance(value, str):
        raise RecordError(f"the field {name!r} is {json_type(value)}, not a string")
    if not value.strip():
        raise RecordError(f"the {name} is empty")
    return value


def optional_text(fields: Mapping[str, Any], name: str) -> str:
    """A string; missing and null are "".

    Raises:
        RecordError: Of another type.
    """
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RecordError(f"the field {name!r} is {json_type(value)}, not a string")
    return value


class TsvParser:
    """Rows of a file with the header ``id<TAB>text<TAB>title``, as DPR's ``psgs_w100.tsv``."""

    def __init__(self, header: Line, name: str) -> None:
        """Check the header.

        Raises:
            InputError: The first line is not the header.
        """
        start = (header.data or b"")[:200]
        # With Windows line ends the last column would keep a carriage return on every row.
        self._strip = start.endswith(b"\r")
        text = start.decode("utf-8", "replace").removesuffix("\r")
        if tuple(text.split("\t")) != TSV_HEADER:
            raise InputError(
                "a TSV file of passages needs its header",
                where=f"{name}, line {header.number}",
                expected="id<TAB>text<TAB>title",
                found=short(text),
                todo="add the line",
            )

    def parse(self, line: Line, watch: EncodingWatch) -> Record:
        """A row.

        Raises:
            RecordError: Not three columns, or a value is empty or too long.
            InputError: The file is not UTF-8.
        """
        text = watch.decode(kept(line))
        fields = split_row(text.removesuffix("\r") if self._strip else text)
        if len(fields) != len(TSV_HEADER):
            raise RecordError(f"{len(fields)} columns, not {len(TSV_HEADER)}")
        name, passage, title = fields
        if not passage.strip():
            raise RecordError("the text is empty")
        return Record(check_id(name), title, passage)
