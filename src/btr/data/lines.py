"""Line formats, strictly: bytes split on 0x0A alone, one JSON object or one TSV row a line.

Python's ``json`` takes NaN, 1e400, duplicate keys and lone surrogates, and raises RecursionError or
a plain ValueError for deep nesting and huge integers; here each is the same refusal of one line.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from btr.data.streams import ByteStream, StreamLimits, open_stream
from btr.errors import InputError

MAX_LINE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class RecordError(ValueError):
    """A line or a document cannot be used; it becomes one reject and the run goes on.

    Args:
        reason: In the user's words, one line.
        offset: Bytes from the start of the record to the fault, where that says something.
    """

    def __init__(self, reason: str, offset: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.offset = reason, offset


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file.

    Attributes:
        number: From 1.
        offset: Byte offset of its first byte in the (expanded) file.
        data: Its bytes without the 0x0A; None if it is longer than the cap and was not kept.
        size: Its length in bytes.
    """

    number: int
    offset: int
    data: bytes | None
    size: int


def read_lines(stream: ByteStream, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Lines of a stream; a line over ``max_bytes`` is skipped without being held in memory.

    A UTF-8 byte order mark at the start of the file is not part of the first line.

    Raises:
        InputError: The file begins like UTF-16 or UTF-32.
    """
    number = offset = 0
    # Room for the cap, a byte order mark, the line's end and one byte that proves it too long.
    while piece := stream.readline(max_bytes + len(_BOM) + 2):
        number += 1
        if number == 1:
            refuse_wide_encoding(piece, stream.name)
            if piece.startswith(_BOM):
                piece, offset = piece[len(_BOM) :], len(_BOM)
        ended = piece.endswith(b"\n")
        size = len(piece) - ended
        if size <= max_bytes:
            yield Line(number, offset, piece[:size], size)
        else:
            while not ended and (piece := stream.readline(1 << 16)):
                ended = piece.endswith(b"\n")
                size += len(piece) - ended
            yield Line(number, offset, None, size)
        offset += size + 1


def refuse_wide_encoding(start: bytes, name: str) -> None:
    """Refuse a file whose first bytes are those of UTF-16 or UTF-32.

    Raises:
        InputError: One error for the file, rather than one for each of its lines.
    """
    for mark, encoding in _WIDE_BOMS.items():
        if start.startswith(mark):
            raise wrong_encoding(name, encoding)
    # Without a mark, ASCII text in UTF-16 still has a NUL in every other byte.
    head = start[:256]
    if len(head) >= 4 and max(head[0::2].count(0), head[1::2].count(0)) > 0.4 * len(head):
        raise wrong_encoding(name, "UTF-16 or UTF-32")


def wrong_encoding(name: str, found: str) -> InputError:
    """The error for a whole file that is not UTF-8."""
    return InputError(
        "the file is not UTF-8",
        where=name,
        expected="UTF-8",
        found=found,
        todo="convert it, for example with iconv -t UTF-8",
    )


class EncodingWatch:
    """Tells a file in another encoding from a UTF-8 file with some bad lines.

    In a Latin-1 file every line with a character outside ASCII is invalid UTF-8. When the first
    hundred such lines all are, the file is refused as a whole.
    """

    LINES = 100

    def __init__(self, name: str) -> None:
        self._name, self._invalid, self._valid = name, 0, False

    def decode(self, data: bytes) -> str:
        """The text of a line.

        Raises:
            RecordError: The line is not UTF-8.
            InputError: The file is not.
        """
        try:
            text = decode_utf8(data)
        except RecordError:
            self._invalid += 1
            if self._invalid >= self.LINES and not self._valid:
                raise wrong_encoding(
                    self._name, f"{self._invalid} lines with invalid bytes and none with valid ones"
                ) from None
            raise
        if not self._valid and not data.isascii():
            self._valid = True
        return text


def decode_utf8(data: bytes) -> str:
    """Strict UTF-8.

    Raises:
        RecordError: Naming the first bad byte.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"invalid UTF-8: byte 0x{data[error.start]:02x} at byte {error.start}"
        raise RecordError(reason, error.start) from None


def parse_object(text: str, data: bytes) -> dict[str, Any]:
    """A JSON object, refusing everything that JSON or UTF-8 does not allow.

    Args:
        text: The decoded line.
        data: Its bytes, to tell cheaply whether a surrogate escape can be in it.

    Raises:
        RecordError: Not JSON, not an object, NaN or an infinite number, a key given twice, an
            integer or a nesting that is too large, or half of a surrogate pair.
    """
    try:
        value = _DECODER.decode(text)
        if _SURROGATE_ESCAPE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecordError:
        raise
    except json.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error.msg} at column {error.colno}") from None
    except UnicodeEncodeError:
        raise RecordError("half of a surrogate pair in a string") from None
    except RecursionError:
        raise RecordError("JSON is nested too deeply") from None
    except ValueError:
        raise RecordError("an integer with too many digits") from None
    if not isinstance(value, dict):
        raise RecordError(f"expected a JSON object, found {json_type(value)}")
    return value


def json_type(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RecordError(f"the key {short(key)} is given twice")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise RecordError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise RecordError(f"the number {digits[:20]} is out of range")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
)


def short(text: str, limit: int = 60) -> str:
    """A string quoted for a message, cut to ``limit`` characters, safe to print."""
    return ascii(text if len(text) <= limit else text[: limit - 3] + "...")


def split_row(text: str) -> list[str]:
    """Fields of a TSV row, CSV quotes undone where a field is wholly quoted.

    ``psgs_w100.tsv`` was written by a CSV writer: a text with quotes stands between quotes and its
    own are doubled. A field that merely begins with a quote is taken as it stands.
    """
    fields = text.split("\t")
    for i, value in enumerate(fields):
        if len(value) >= 2 and value[0] == value[-1] == '"':
            inner = value[1:-1]
            if '"' not in inner.replace('""', ""):
                fields[i] = inner.replace('""', '"')
    return fields


def read_records(path: Path, limits: StreamLimits | None = None) -> Iterator[dict[str, Any]]:
    """Objects of a ``.jsonl`` or ``.jsonl.gz`` file in which every line must be good.

    Blank lines are passed over.

    Raises:
        InputError: At the first bad line, with the file and its line.
    """
    for _, record in read_numbered_records(path, limits):
        yield record


def read_numbered_records(
    path: Path, limits: StreamLimits | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """As :func:`read_records`, each with its line number."""
    with open_stream(path, str(path), limits or StreamLimits()) as stream:
        watch = EncodingWatch(stream.name)
        for line in read_lines(stream):
            if line.data is not None and not line.data.strip():
                continue
            try:
                yield line.number, parse_line(line, watch)
            except RecordError as error:
                raise InputError(
                    "bad line",
                    where=f"{path}, line {line.number}, byte offset {line.offset}",
                    found=error.reason,
                    todo="correct the line",
                ) from None


def parse_line(line: Line, watch: EncodingWatch) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
        RecordError: See :func:`parse_object`; also for a line that was too long to keep.
    """
    data = kept(line)
    return parse_object(watch.decode(data), data)


def kept(line: Line) -> bytes:
    """A line's bytes.

    Raises:
        RecordError: The line is longer than the cap.
    """
    if line.data is None:
        raise RecordError(f"line of {line.size} bytes is over the limit")
    return line.data
