"""Values out of JSON that nobody has checked yet: each function gives them back or refuses.

What is refused is a :class:`btr.errors.UsageError` that names the value and what it may be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from btr.errors import UsageError

MAX_TEXT = 4096
"""Characters of a text."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


def refuse(name: str, expected: str, found: object) -> NoReturn:
    """Raise the error for a value that cannot be."""
    raise UsageError("value out of range", where=name, expected=expected, found=str(found)[:80])


def integer(value: Any, name: str, low: int, high: int) -> int:
    """``value`` if it is an integer from ``low`` to ``high``; a truth value is none."""
    if type(value) is not int or not low <= value <= high:
        refuse(name, f"an integer from {low} to {high}", value)
    return value


def text(value: Any, name: str) -> str:
    """``value`` if it is text that is not too long and can be written in UTF-8."""
    if not isinstance(value, str) or len(value) > MAX_TEXT or not _is_utf8(value):
        refuse(name, f"text of at most {MAX_TEXT} characters", repr(value))
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def scalar(value: Any, name: str) -> None:
    """Let text, finite numbers, truth values and None pass."""
    if isinstance(value, str):
        text(value, name)
    elif type(value) is int:
        integer(value, name, -(1 << 63), (1 << 63) - 1)
    elif not (
        value is None or isinstance(value, bool) or (type(value) is float and math.isfinite(value))
    ):
        refuse(name, "text, a finite number, true, false or null", repr(value))


def items(value: Any, name: str, most: int) -> list[tuple[str, Any]]:
    """The entries of a mapping with names of plain characters."""
    if not isinstance(value, Mapping) or len(value) > most:
        refuse(name, f"at most {most} values by name", repr(value))
    for key in value:
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            refuse(name, "names of 1 to 64 of A-Z a-z 0-9 _ . -", repr(key))
    return list(value.items())


def integers(value: Any, name: str, most: int) -> dict[str, int]:
    """A mapping from names to non-negative integers."""
    return {k: integer(v, f"{name}.{k}", 0, (1 << 63) - 1) for k, v in items(value, name, most)}


def scalars(value: Any, name: str, most: int) -> dict[str, Any]:
    """A mapping from names to what :func:`scalar` lets pass."""
    entries = items(value, name, most)
    for key, entry in entries:
        scalar(entry, f"{name}.{key}")
    return dict(entries)
