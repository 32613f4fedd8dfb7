"""From passage id to ordinal: one SQLite table, built in one pass, read without trust."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote_from_bytes

from btr import files
from btr.errors import BtrError, CorruptError, InputError, ResourceError

_TABLE = "CREATE TABLE ids (id BLOB PRIMARY KEY, ordinal INTEGER NOT NULL) WITHOUT ROWID"
_STAGING = "CREATE TABLE staging (id BLOB NOT NULL, ordinal INTEGER NOT NULL)"
_CACHE_KIB = 16_384
_FULL, _IO_ERROR = 13, 10  # SQLite's primary result codes

T = TypeVar("T")


def build_ids(path: Path, ids: Iterable[str], *, first: int = 0) -> None:
    """Write the id table of passages given in ordinal order.

    Memory is bounded: the ids are written to a scratch file beside ``path``, sorted by SQLite in
    its temporary folder, and inserted in that order, which only ever appends to the table.

    Args:
        path: The file; it appears when it is whole.
        ids: Every passage's id.
        first: Ordinal of the first one.

    Raises:
        InputError: Two passages have the same id.
        ResourceError: No space for it.
    """
    whole = path.with_name(path.name + files.TEMPORARY)
    scratch = path.with_name(path.name + ".staging" + files.TEMPORARY)
    for old in (whole, scratch):
        files.remove(old)
    try:
        staging = _create(scratch, _STAGING)
        try:
            rows = ((id_.encode(), ordinal) for ordinal, id_ in enumerate(ids, first))
            staging.executemany("INSERT INTO staging VALUES (?, ?)", rows)
            _refuse_twins(staging)
            table = _create(whole, _TABLE)
            try:
                table.executemany(
                    "INSERT INTO ids VALUES (?, ?)",
                    staging.execute("SELECT id, ordinal FROM staging ORDER BY id"),
                )
                table.execute("COMMIT")
            finally:
                table.close()
        finally:
            staging.close()
    except sqlite3.Error as error:
        raise _explain(error, path) from error
    files.remove(scratch)
    files.sync_file(whole)
    files.rename(whole, path)


def _create(path: Path, schema: str) -> sqlite3.Connection:
    """A new database in an open transaction. A crash loses it, so it needs no journal or sync."""
    connection: sqlite3.Connection = files.ops.database(path, isolation_level=None)
    for setting in (
        "page_size = 4096",
        "journal_mode = OFF",
        "synchronous = OFF",
        "locking_mode = EXCLUSIVE",
        "auto_vacuum = NONE",
        "secure_delete = ON",  # unused bytes of a page are zero, not what memory held
        f"cache_size = -{_CACHE_KIB}",
        "temp_store = FILE",
    ):
        connection.execute(f"PRAGMA {setting}")
    connection.execute("BEGIN")
    connection.execute(schema)
    return connection


def _refuse_twins(staging: sqlite3.Connection) -> None:
    twins = staging.execute(
        "SELECT id, min(ordinal), max(ordinal) FROM staging"
        " GROUP BY id HAVING count(*) > 1 ORDER BY min(ordinal) LIMIT 1"
    ).fetchone()
    if twins is not None:
        raise InputError("two passages have the same id", where=f"id {twins[0].decode()!r}",
                         found=f"passages {twins[1]} and {twins[2]}",
                         todo="give each passage its own id and build again")  # fmt: skip


def _explain(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> BtrError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (_FULL, _IO_ERROR):
        return ResourceError("the disk is full or fails", where=str(path), found=str(error),
                             todo=files.EXHAUSTED_TODO)  # fmt: skip
    return CorruptError("damaged id table", where=str(path), found=str(error))


class IdTable:
    """The id table of a finished store, opened at the first look-up; safe to share by threads.

    An answer is a hint until the passage it points to has been read and compared: SQLite has no
    checksums.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def find(self, passage_id: str) -> int | None:
        """The ordinal that the table has for an id, or None.

        Raises:
            CorruptError: The file is not such a table.
        """
        try:
            key = passage_id.encode()
        except UnicodeEncodeError:
            return None  # a lone surrogate is in no stored id

        def look_up(connection: sqlite3.Connection) -> object:
            row = connection.execute("SELECT ordinal FROM ids WHERE id = ?", (key,)).fetchone()
            return None if row is None else row[0]

        found = self._ask(look_up)
        if found is not None and not isinstance(found, int):
            raise CorruptError("damaged id table", where=str(self._path), found=repr(found)[:80])
        return found

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._open()
                return question(self._connection)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                # Messages about a damaged file quote it, and then need not be UTF-8.
                raise _explain(error, self._path) from error

    def _open(self) -> sqlite3.Connection:
        # immutable: no lock, no journal, nothing is ever created beside the file.
        uri = (
            f"file:{quote_from_bytes(str(self._path.absolute()).encode(errors='surrogateescape'))}"
        )
        connection: sqlite3.Connection = files.ops.database(
            f"{uri}?mode=ro&immutable=1", uri=True, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = bytes  # damaged text need not be UTF-8
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            # A view or a trigger in the place of the table could run anything it likes.
            schema = connection.execute("SELECT sql FROM sqlite_schema LIMIT 2").fetchall()
            if schema != [(_TABLE.encode(),)]:
                raise CorruptError("not an id table", where=str(self._path), expected=_TABLE,
                                   found=repr(schema)[:200])  # fmt: skip
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the file; a later look-up opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
