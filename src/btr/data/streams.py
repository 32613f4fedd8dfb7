"""Bytes of a source file, gzip undone, under limits that a hostile file cannot pass.

The standard gzip reader has no bound on what a small file expands to, so this one feeds zlib
itself: each read gives at most what was asked for, and the stream stops at a byte and a ratio cap.
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from btr.errors import InputError

_FEED = 64 * 1024
_RATIO_FROM = 1 << 20
"""Expanded bytes below which the ratio says nothing: a short file of spaces is no bomb."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How far a compressed file may expand.

    Attributes:
        max_bytes: Expanded bytes of one file.
        max_ratio: Expanded bytes per compressed byte; text stays below 20, zlib ends at 1032.
    """

    max_bytes: int = 1 << 40
    max_ratio: int = 200


class _PlainRaw(io.FileIO):
    """An uncompressed file; ``consumed`` is how far it has been read."""

    consumed = 0

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        got = super().readinto(buffer) or 0
        self.consumed += got
        return got


class _GzipRaw(io.RawIOBase):
    """One or many gzip members as one stream of bytes."""

    def __init__(self, file: io.FileIO, name: str, limits: StreamLimits) -> None:
        self._file, self._name, self._limits = file, name, limits
        self._zlib = zlib.decompressobj(wbits=31)
        self._pending = b""
        self._in_member = False
        self._fed = self._made = 0

    @property
    def consumed(self) -> int:
        """Compressed bytes used so far."""
        return self._fed - len(self._pending)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while True:
            if not self._pending and not self._feed():
                return 0
            try:
                data = self._zlib.decompress(self._pending, len(buffer))
            except zlib.error as error:
                raise self._bad("damaged gzip data", str(error)) from None
            self._in_member = True
            self._pending = self._zlib.unconsumed_tail
            if self._zlib.eof:
                self._start_member(self._zlib.unused_data)
            if data:
                self._made += len(data)
                self._check_limits()
                buffer[: len(data)] = data
                return len(data)

    def _feed(self) -> bool:
        """Read more compressed bytes; False at the true end of the stream."""
        self._pending = self._file.read(_FEED)
        self._fed += len(self._pending)
        if not self._pending and (self._in_member or self._fed == 0):
            raise self._bad("truncated gzip file", "its end before the end of the data")
        return bool(self._pending)

    def _start_member(self, rest: bytes) -> None:
        """The next member, past the zero padding that tape tools leave behind one."""
        rest = rest.lstrip(b"\0")
        while not rest:
            chunk = self._file.read(_FEED)
            self._fed += len(chunk)
            if not chunk:
                break
            rest = chunk.lstrip(b"\0")
        self._pending, self._in_member = rest, False
        self._zlib = zlib.decompressobj(wbits=31)

    def _check_limits(self) -> None:
        if self._made > self._limits.max_bytes:
            raise self._bad("compressed file is too large", f"over {self._limits.max_bytes} bytes")
        if self._made > _RATIO_FROM and self._made > self._limits.max_ratio * self.consumed:
            raise self._bad(
                "compressed file expands suspiciously",
                f"over {self._limits.max_ratio} times its size",
                "decompress it yourself if you trust it",
            )

    def _bad(
        self, what: str, found: str, todo: str = "get an intact copy of the file"
    ) -> InputError:
        where = f"{self._name}, byte offset {self.consumed}"
        return InputError(what, where=where, found=found, todo=todo)


class ByteStream:
    """A source file open for reading, already expanded.

    Attributes:
        name: What messages call the file.
    """

    def __init__(self, raw: _PlainRaw | _GzipRaw, name: str) -> None:
        self._raw, self.name = raw, name
        self._buffer = io.BufferedReader(raw, 1 << 18)

    @property
    def consumed(self) -> int:
        """Bytes of the file as it lies on disk that have been read; for progress."""
        return self._raw.consumed

    def readline(self, limit: int) -> bytes:
        """Up to and with the next 0x0A byte, at most ``limit`` bytes; b"" at the end."""
        return self._buffer.readline(limit)

    def read_all(self, limit: int) -> bytes | None:
        """The rest of the file, or None if it is longer than ``limit`` bytes."""
        data = self._buffer.read(limit + 1)
        return None if len(data) > limit else data


@contextmanager
def open_stream(path: Path, name: str, limits: StreamLimits) -> Iterator[ByteStream]:
    """Open a regular file, or a ``.gz`` of one, for bounded reading.

    Raises:
        InputError: The file is missing, unreadable or not a regular file; while reading: damaged,
            truncated or over the limits, or the disk failed.
    """
    raw: _PlainRaw | _GzipRaw
    try:
        # Without O_NONBLOCK a FIFO that took the file's place would hang the run.
        with _PlainRaw(path, opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError("not a regular file", where=name, todo="name a file or a folder")
            raw = _GzipRaw(file, name, limits) if path.suffix.lower() == ".gz" else file
            yield ByteStream(raw, name)
    except OSError as error:
        raise InputError(
            "cannot read a source file",
            where=name,
            found=error.strerror or type(error).__name__,
            todo="check that it exists and may be read",
        ) from error
