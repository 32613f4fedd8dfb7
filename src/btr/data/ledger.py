"""The account of an ingestion: everything read was stored, rejected or a duplicate."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import IO

from btr.errors import BtrError, RejectsError, ResourceError

NAMED = 100
"""How many skipped files, ignored fields and warnings are kept by name; all are counted."""


class Ledger:
    """Counts of one run and its list of rejects; a context manager.

    A *record* is a line of a line format or a whole document.

    Args:
        rejects: JSON-lines file to write, one ``{"source", "line", "offset", "reason"}`` a reject
            (``line`` is null for documents, ``offset`` counts bytes of the expanded file).
        max_rejects: Rejects that :meth:`check` allows.

    Attributes:
        skipped: First files of folders that were not read, as (name, reason).
        ignored_fields: First JSON fields that nothing here reads, with how often they came.
        warnings: First warnings, one line each.
    """

    def __init__(self, rejects: Path | None = None, *, max_rejects: int = 0) -> None:
        self.rejects, self.max_rejects = rejects, max_rejects
        self.skipped: list[tuple[str, str]] = []
        self.ignored_fields: Counter[str] = Counter()
        self.warnings: list[str] = []
        self._counts: Counter[str] = Counter()
        self._first_reject = ""
        self._file: IO[str] | None = None
        if rejects is not None:
            try:
                self._file = rejects.open("w", encoding="utf-8", newline="\n")
            except OSError as error:
                raise self._unwritable(error) from error

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish the rejects file; counts stay readable."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                raise self._unwritable(error) from error

    def flush(self) -> None:
        """Bring the rejects file up to date on disk."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                raise self._unwritable(error) from error

    @property
    def counts(self) -> dict[str, int]:
        """The figures, in a fixed order.

        ``read = stored + rejected + duplicates`` count records; ``passages`` counts what the
        stored ones were cut into; blank lines are no records.
        """
        names = ("read", "stored", "rejected", "duplicates", "passages", "blank_lines",
                 "skipped_files", "warnings")  # fmt: skip
        return {name: self._counts[name] for name in names}

    @property
    def first_reject(self) -> str:
        """Place and reason of the first reject, "" if there was none."""
        return self._first_reject

    def record(self) -> None:
        """A line or document was read; exactly one of the three next methods follows."""
        self._counts["read"] += 1

    def store(self, passages: int) -> None:
        """The record gave ``passages`` passages."""
        self._counts["stored"] += 1
        self._counts["passages"] += passages

    def duplicate(self) -> None:
        """The record repeats an earlier one, id and text."""
        self._counts["duplicates"] += 1

    def reject(self, source: str, reason: str, *, line: int | None = None, offset: int = 0) -> None:
        """The record cannot be used.

        Args:
            source: The file as the user knows it.
            reason: One line.
            line: From 1; None for a document.
            offset: Byte offset in the expanded file.
        """
        self._counts["rejected"] += 1
        if not self._first_reject:
            place = source if line is None else f"{source}, line {line}"
            self._first_reject = f"{place}: {reason}"
        if self._file is not None:
            entry = {"source": source, "line": line, "offset": offset, "reason": reason}
            try:
                # ASCII escapes carry what a hostile file name may hold, lone surrogates too.
                self._file.write(json.dumps(entry) + "\n")
            except OSError as error:
                raise self._unwritable(error) from error

    def blank_line(self) -> None:
        """A line with nothing on it."""
        self._counts["blank_lines"] += 1

    def skip(self, name: str, reason: str) -> None:
        """A file in a folder is not read."""
        self._counts["skipped_files"] += 1
        if len(self.skipped) < NAMED:
            self.skipped.append((name, reason))

    def ignore_field(self, name: str) -> None:
        """A JSON object has a field that is not used."""
        if name in self.ignored_fields or len(self.ignored_fields) < NAMED:
            self.ignored_fields[name] += 1

    def warn(self, message: str) -> None:
        """Something is allowed but probably not meant."""
        self._counts["warnings"] += 1
        if len(self.warnings) < NAMED:
            self.warnings.append(message)

    def check(self) -> None:
        """End of the run: the account must be whole and within the allowed rejects.

        Raises:
            RejectsError: More records were rejected than allowed.
            BtrError: The account does not add up, which is a fault of this program.
        """
        counts = self.counts
        if counts["read"] != counts["stored"] + counts["rejected"] + counts["duplicates"]:
            raise BtrError("records were lost while reading", found=str(counts),
                           todo="report this fault")  # fmt: skip
        if counts["rejected"] > self.max_rejects:
            raise RejectsError(
                "more records were rejected than allowed",
                where=f"first at {self._first_reject}",
                expected=f"at most {self.max_rejects}",
                found=str(counts["rejected"]),
                todo=(f"see {self.rejects}, and " if self.rejects else "")
                + "correct the sources or raise --max-rejects",
            )

    def _unwritable(self, error: OSError) -> ResourceError:
        return ResourceError(
            "cannot write the list of rejects",
            where=str(self.rejects),
            found=error.strerror or str(error),
            todo="free space or name another place",
        )
