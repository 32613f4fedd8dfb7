"""Every error that btr raises on purpose, and the exit status each one gives.

    BtrError
    ├── UsageError          2  a flag, a name or a combination that makes no sense
    ├── InputError          3  a source file or a line of it is bad
    ├── CorruptError        4  a store or checkpoint does not match its own checksums
    ├── IncompatibleError   5  two good things that do not belong together, or a newer format
    ├── LockedError         6  another process is writing the same store
    ├── ResourceError       7  out of disk, memory or file descriptors
    └── RejectsError        8  finished, but more lines were rejected than allowed

Interrupted work exits with 130 (Ctrl-C) or 143 (SIGTERM) and can be resumed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

_Given = ParamSpec("_Given")


class BtrError(Exception):
    """One line for the user: what happened, where, and what to do.

    Args:
        what: The fault in the user's words, without a full stop.
        where: File, shard, line, byte offset or flag; "" where there is no such place.
        expected: What should have been there, "" if that says nothing.
        found: What was there instead.
        todo: The next step for the user, as an imperative.
    """

    code = "error"
    exit_status = 1

    def __init__(
        self, what: str, *, where: str = "", expected: str = "", found: str = "", todo: str = ""
    ) -> None:
        self.what, self.where, self.expected, self.found, self.todo = (
            what,
            where,
            expected,
            found,
            todo,
        )
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"error[{self.code}] {self.what}"
        if self.where:
            text += f": {self.where}"
        if self.expected:
            text += f"; expected {self.expected}, found {self.found or 'nothing'}"
        elif self.found:
            text += f"; found {self.found}"
        if self.todo:
            text += f"; {self.todo}"
        # One fault is one line, whatever a file name or a piece of bad input holds.
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

    def as_dict(self) -> dict[str, str | int]:
        """The same fields for ``--json``."""
        return {
            "code": self.code,
            "exit_status": self.exit_status,
            "what": self.what,
            "where": self.where,
            "expected": self.expected,
            "found": self.found,
            "todo": self.todo,
        }


class UsageError(BtrError):
    """The command or call itself is wrong."""

    code = "usage"
    exit_status = 2


class InputError(BtrError):
    """A source document, passage line or question line is bad."""

    code = "input"
    exit_status = 3


class CorruptError(BtrError):
    """A store or a checkpoint is not what its checksums say."""

    code = "corrupt"
    exit_status = 4


class IncompatibleError(BtrError):
    """A store and a reader that do not belong together, or a format from the future."""

    code = "incompatible"
    exit_status = 5


class LockedError(BtrError):
    """Another process holds the store for writing."""

    code = "locked"
    exit_status = 6


class ResourceError(BtrError):
    """The machine ran out of something; committed work is intact."""

    code = "resource"
    exit_status = 7


class RejectsError(BtrError):
    """The work is done, but more input lines were rejected than was allowed."""

    code = "rejects"
    exit_status = 8


def error_of(fields: Mapping[str, Any]) -> BtrError:
    """The error that :meth:`BtrError.as_dict` told."""
    names = ("where", "expected", "found", "todo")
    kinds: list[type[BtrError]] = [BtrError, *BtrError.__subclasses__()]
    (kind,) = (kind for kind in kinds if kind.code == fields["code"])
    return kind(fields["what"], **{name: fields[name] for name in names})


def one_line_errors(main: Callable[_Given, int]) -> Callable[_Given, int]:
    """Let a small command line say an error in its line, on stderr, and return its exit status."""

    @wraps(main)
    def guarded(*args: _Given.args, **kwargs: _Given.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except BtrError as error:
            print(error, file=sys.stderr)
            return error.exit_status

    return guarded
