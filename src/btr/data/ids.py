"""Which ids were given already, and with what text, in bounded memory.

A Python set of the ids of 30 million passages takes gigabytes; a private SQLite database spills to
disk beyond its cache and vanishes with the process, whatever way that ends.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import TracebackType

from btr.data.lines import RecordError, short
from btr.errors import ResourceError

_CACHE_KIB = 64 * 1024
MAX_ID_BYTES = 512


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of asking for ids.

    Attributes:
        duplicate: The same record, text and all, was there before.
        twin: Place of another id that looks the same (equal after Unicode NFC), "" if none.
    """

    duplicate: bool = False
    twin: str = ""


class IdRegistry:
    """Ids given so far, keyed by digest; a context manager."""

    def __init__(self) -> None:
        # An empty name is SQLite's private temporary database: on disk, already unlinked.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(
            "CREATE TABLE ids (id BLOB PRIMARY KEY, text BLOB, place TEXT) WITHOUT ROWID"
        )
        self._db.execute(
            "CREATE TABLE forms (form BLOB PRIMARY KEY, id BLOB, place TEXT) WITHOUT ROWID"
        )
        self._db.execute("BEGIN")

    def __enter__(self) -> IdRegistry:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    def claim(self, ids: Sequence[str], title: str, text: str, place: str) -> Claim:
        """Take all the ids of a record, or none.

        Args:
            ids: The record's own id, and those of its pieces if it was cut.
            title: With ``text``, what makes two records the same.
            text: The whole record's.
            place: File and line, for messages about later records.

        Raises:
            RecordError: An id was taken by another text; the reason names the place.
            ResourceError: The temporary disk is full.
        """
        content = _digest(title.encode() + b"\0" + text.encode())
        keys = [_digest(i.encode()) for i in ids]
        try:
            for name, key in zip(ids, keys, strict=True):
                row = self._db.execute("SELECT text, place FROM ids WHERE id=?", (key,)).fetchone()
                if row is None:
                    continue
                if row[0] == content and name == ids[0]:
                    return Claim(duplicate=True)
                raise RecordError(f"id {short(name)} was given to another text at {row[1]}")
            self._db.executemany(
                "INSERT INTO ids VALUES (?,?,?)", [(key, content, place) for key in keys]
            )
            return Claim(twin=self._twin(ids[0], keys[0], place))
        except sqlite3.OperationalError as error:
            raise ResourceError(
                "cannot keep the list of ids",
                where="temporary folder",
                found=str(error),
                todo="free space there, or set SQLITE_TMPDIR to another folder",
            ) from error

    def _twin(self, name: str, key: bytes, place: str) -> str:
        # An ASCII id is its own normal form; the few signs that share one with ASCII (the Kelvin
        # sign) are not worth a row for every id.
        if name.isascii():
            return ""
        form = _digest(unicodedata.normalize("NFC", name).encode())
        row = self._db.execute("SELECT id, place FROM forms WHERE form=?", (form,)).fetchone()
        if row is None:
            self._db.execute("INSERT INTO forms VALUES (?,?,?)", (form, key, place))
            return ""
        return str(row[1])


def check_id(name: str) -> str:
    """The id, if it can be one.

    Raises:
        RecordError: Empty, blank or over 512 UTF-8 bytes, or not encodable.
    """
    if not name.strip():
        raise RecordError("the id is empty")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise RecordError("the name is not valid Unicode") from None
    if size > MAX_ID_BYTES:
        raise RecordError(f"the id has {size} bytes, over the limit of {MAX_ID_BYTES}")
    return name


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()
