"""The bytes of a shard: its header, its tables, its records, and the checksums over them.

``n`` is the number of passages in the shard. ``docs/format.md`` gives every offset. Nothing here
touches the disk; ``shard_file.py`` does.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np

from btr.data.passages import Passage
from btr.errors import CorruptError, IncompatibleError, InputError, UsageError
from btr.store.format import VERSION, PassageState, StoreSpec

MAGIC = b"\x89BTR\r\n\x1a\n"
HEADER_BYTES = 256
STATE_TABLE, PASSAGE_TABLE, VECTORS, PASSAGES, STATES = SECTIONS = (1, 2, 3, 4, 5)
REMOVED = 8  # not a section of a shard: the seed of a file of its own
MAX_RECORD_BYTES = 64 << 20
MAX_ID_BYTES = 512
TRUNCATED, CODED, ABSENT = 1, 2, 4  # flags of a state record

_HEADER = struct.Struct("<8sII16sIIIIQQ")
_SECTION = struct.Struct("<IIQ")
_STATE = struct.Struct("<IIII")
_PASSAGE = struct.Struct("<QIIII")
_CRC = struct.Struct("<I")
CRC_BYTES = _CRC.size
_SEED = struct.Struct("<16sII")
SHORTEST_STATE = _STATE.size + _CRC.size  # no tokens
SHORTEST_PASSAGE = _PASSAGE.size + 1 + _CRC.size  # an id of one byte and no text
# The CRC of data followed by its own CRC is the same for all data and every seed.
_RESIDUE = 0x48674BC7

if (
    google_crc32c.value(b"123456789") != 0xE3069283
    or google_crc32c.extend(google_crc32c.value(b"12345"), b"6789") != 0xE3069283
):
    raise IncompatibleError("the installed google-crc32c computes wrong checksums",
                            todo="reinstall google-crc32c")  # fmt: skip


def section_seed(store_id: bytes, shard: int, section: int) -> int:
    """What the CRCs of a section start from; XOR the record's number to get a record's seed."""
    seed: int = google_crc32c.value(_SEED.pack(store_id, shard, section))
    return seed


def with_crc(seed: int, *pieces: bytes) -> bytes:
    """The pieces, joined, followed by their CRC."""
    crc = seed
    for piece in pieces:
        crc = google_crc32c.extend(crc, piece)
    return b"".join((*pieces, _CRC.pack(crc)))


def crc_matches(seed: int, data: bytes) -> bool:
    """Whether ``data`` ends in the CRC of what comes before."""
    matches: bool = google_crc32c.extend(seed, data) == _RESIDUE
    return matches


# -- header -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """The first 256 bytes. ``section_bytes`` are in file order, kinds 1 to 5."""

    store_id: bytes
    shard: int
    passages: int
    row_bytes: int
    dense_dim: int
    truncated: int
    tokens: int
    section_bytes: tuple[int, ...]

    @property
    def file_bytes(self) -> int:
        """Exact size of the file."""
        return HEADER_BYTES + sum(self.section_bytes)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of the file by part, as the manifest counts them."""
        state_table, passage_table, vectors, passages, states = self.section_bytes
        return {
            "passages": passages,
            "states": states,
            "tables": HEADER_BYTES + state_table + passage_table,
            "vectors": vectors,
        }

    def encode(self) -> bytes:
        """The 256 bytes."""
        head = _HEADER.pack(
            MAGIC, VERSION, self.shard, self.store_id, self.passages, self.row_bytes,
            self.dense_dim, self.truncated, self.tokens, self.file_bytes,
        )  # fmt: skip
        sections = zip(SECTIONS, self.section_bytes, strict=True)
        directory = b"".join(_SECTION.pack(kind, 0, size) for kind, size in sections)
        return with_crc(0, (head + directory).ljust(HEADER_BYTES - _CRC.size, b"\0"))

    @classmethod
    def decode(
        cls, data: bytes, path: Path, spec: StoreSpec, store_id: bytes, shard: int, n: int
    ) -> ShardHeader:
        """Check and read the header of shard number ``shard`` with ``n`` passages.

        Raises:
            CorruptError: It is damaged, another shard's, or its sizes cannot be.
            IncompatibleError: A newer version wrote it.
        """
        magic, version, *_ = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise CorruptError("not a shard", where=f"{path}, byte 0", expected=repr(MAGIC),
                               found=repr(magic))  # fmt: skip
        if not crc_matches(0, data):
            raise CorruptError("damaged header", where=f"{path}, bytes 0 to 255",
                               expected="a matching checksum", found="another")  # fmt: skip
        if version != VERSION:
            raise IncompatibleError("shard of another format version", where=str(path),
                                    expected=str(VERSION), found=str(version),
                                    todo="install a newer btr")  # fmt: skip
        _, _, number, owner, passages, row_bytes, dense_dim, truncated, tokens, _ = (
            _HEADER.unpack_from(data)
        )
        directory = range(_HEADER.size, _HEADER.size + len(SECTIONS) * _SECTION.size, _SECTION.size)
        sizes = tuple(_SECTION.unpack_from(data, at)[2] for at in directory)
        header = cls(owner, number, passages, row_bytes, dense_dim, truncated, tokens, sizes)
        for what, expected, found in (
            ("store", store_id.hex(), owner.hex()),
            ("shard number", shard, number),
            ("number of passages", n, passages),
            ("bytes of a row", spec.row_bytes, row_bytes),
            ("width of a dense vector", spec.dense_dim, dense_dim),
            ("bytes of the state table", table_bytes(n), sizes[0]),
            ("bytes of the passage table", table_bytes(n), sizes[1]),
            ("bytes of the vectors", vectors_bytes(n, spec.dense_dim), sizes[2]),
        ):
            if expected != found:
                raise CorruptError(f"wrong {what} in a shard's header", where=str(path),
                                   expected=str(expected), found=str(found))  # fmt: skip
        # Encoding again checks what is left: the directory's kinds, the zero fields, the file size.
        if truncated > n or header.file_bytes >= 1 << 63 or header.encode() != data:
            raise CorruptError("impossible header of a shard", where=str(path))
        return header


def vectors_bytes(n: int, dense_dim: int) -> int:
    """Bytes of the vectors section of ``n`` passages."""
    return n * dense_dim + _CRC.size


def table_bytes(n: int) -> int:
    """Bytes of a table of ``n`` records."""
    return 8 * (n + 1) + _CRC.size


def encode_table(seed: int, lengths: Sequence[int]) -> bytes:
    """Offsets of records of these lengths, with CRC."""
    offsets = np.zeros(len(lengths) + 1, "<u8")
    np.cumsum(lengths, out=offsets[1:])
    return with_crc(seed, offsets.tobytes())


def decode_table(seed: int, data: bytes, section_bytes: int, shortest: int) -> memoryview | None:
    """Offsets, ``n+1`` of them, as a view that gives ints; None if the table is not right."""
    if not crc_matches(seed, data):
        return None
    offsets = np.frombuffer(data[: -_CRC.size], "<u8").astype(np.uint64, copy=False)
    if offsets[0] != 0 or offsets[-1] != section_bytes or np.any(offsets[1:] < offsets[:-1]):
        return None
    lengths = np.diff(offsets)
    if lengths.min() < shortest or lengths.max() > MAX_RECORD_BYTES:
        return None
    return offsets.data


# -- records ----------------------------------------------------------------------------------


def encode_passage(seed: int, passage: Passage) -> bytes:
    """A passage record.

    Raises:
        InputError: A field cannot be stored: the id is empty or too long, a text cannot be
            written in UTF-8 (a lone surrogate), or all is over 64 MiB.
    """
    fields = (passage.id, passage.title, passage.text, passage.document)
    try:
        id_, title, text, document = encoded = [f.encode() for f in fields]
    except UnicodeEncodeError as error:
        raise InputError("text that UTF-8 cannot encode", where=f"passage {passage.id!r}",
                         found=repr(error.object[error.start : error.end])) from None  # fmt: skip
    if not 1 <= len(id_) <= MAX_ID_BYTES:
        raise InputError("passage id of a wrong length", where=f"passage {passage.id[:80]!r}",
                         expected=f"1 to {MAX_ID_BYTES} bytes", found=f"{len(id_)}")  # fmt: skip
    if not 0 <= passage.start < 1 << 64:
        raise InputError("passage start out of range", where=f"passage {passage.id!r}",
                         found=str(passage.start))  # fmt: skip
    if sum(map(len, encoded)) > MAX_RECORD_BYTES - _PASSAGE.size - _CRC.size:
        raise InputError("passage too long", where=f"passage {passage.id!r}",
                         expected="at most 64 MiB")  # fmt: skip
    head = _PASSAGE.pack(passage.start, len(id_), len(title), len(text), len(document))
    return with_crc(seed, head, id_, title, text, document)


def decode_passage(record: bytes) -> Passage | None:
    """The passage of a record whose CRC matches, or None if it says what cannot be."""
    start, *lengths = _PASSAGE.unpack_from(record)
    if _PASSAGE.size + sum(lengths) + _CRC.size != len(record):
        return None
    if not 1 <= lengths[0] <= MAX_ID_BYTES:
        return None
    places = pairwise(accumulate(lengths, initial=_PASSAGE.size))
    try:
        id_, title, text, document = (record[a:b].decode() for a, b in places)
    except UnicodeDecodeError:
        return None
    return Passage(id_, text, title, document, start)


class StateRecord(NamedTuple):
    """A state record without its CRC: what stays the same wherever it stands.

    Attributes:
        head: 16 bytes.
        body: Rows, or what they are coded as; one byte an item.
    """

    head: bytes
    body: np.ndarray

    @property
    def tokens(self) -> int:
        """Tokens of the passage."""
        tokens: int = _STATE.unpack(self.head)[0]
        return tokens

    @property
    def truncated(self) -> bool:
        """Whether the passage had more tokens than the reader's budget."""
        return bool(_STATE.unpack(self.head)[2] & TRUNCATED)

    @property
    def text_start(self) -> int:
        """Index of the first token that belongs to the text."""
        start: int = _STATE.unpack(self.head)[1]
        return start

    @property
    def is_coded(self) -> bool:
        """Whether the body is to be decoded (``coding.py``)."""
        return bool(_STATE.unpack(self.head)[2] & CODED)

    @property
    def is_absent(self) -> bool:
        """Whether no state is stored: it is made when it is needed."""
        return bool(_STATE.unpack(self.head)[2] & ABSENT)

    @property
    def size(self) -> int:
        """Bytes with the CRC."""
        return len(self.head) + self.body.nbytes + _CRC.size

    def encode(self, seed: int) -> bytes:
        """The bytes at a place with this seed."""
        return with_crc(seed, self.head, self.body.tobytes())

    @classmethod
    def of(cls, record: bytes) -> StateRecord:
        """The record of bytes whose CRC matches."""
        size = len(record) - _STATE.size - _CRC.size
        body: np.ndarray = np.frombuffer(record, np.uint8, size, _STATE.size)
        return cls(record[: _STATE.size], body)


def state_record(state: PassageState, coded: np.ndarray | None = None) -> StateRecord:
    """The record of a state that :func:`check_state` has passed; ``coded`` is its rows' code."""
    flags = (TRUNCATED if state.truncated else 0) | (0 if coded is None else CODED)
    head = _STATE.pack(len(state.rows), state.text_start, flags, 0)
    return StateRecord(head, state.rows if coded is None else coded)


def absent_record() -> StateRecord:
    """What stands in the place of a state that is not stored."""
    return StateRecord(_STATE.pack(0, 0, ABSENT, 0), np.empty(0, np.uint8))


def record_of(state: PassageState | None) -> StateRecord:
    """The record of a state as it is, or of none."""
    return absent_record() if state is None else state_record(state)


def check_state(state: PassageState, row_bytes: int) -> None:
    """Refuse a state that has no place in a store with rows of ``row_bytes``.

    Raises:
        UsageError: Wrong dtype, shape, layout or text start, or over 64 MiB.
    """
    rows = state.rows
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != row_bytes:
        raise UsageError("wrong rows of a passage state", expected=f"uint8 [tokens, {row_bytes}]",
                         found=f"{rows.dtype} {list(rows.shape)}")  # fmt: skip
    if not rows.flags.c_contiguous:
        raise UsageError("rows of a passage state are not C-contiguous")
    if not 0 <= state.text_start <= len(rows):
        raise UsageError("text start of a passage state out of range",
                         expected=f"0 to {len(rows)}", found=str(state.text_start))  # fmt: skip
    if state_record(state).size > MAX_RECORD_BYTES:
        raise UsageError("passage state over 64 MiB", found=f"{len(rows)} tokens")


def decode_state(record: bytes, row_bytes: int) -> PassageState | StateRecord | None:
    """The state of a record whose CRC matches.

    Returns:
        The state; the record itself where it is coded or says that there is none; None if it says
        what cannot be.
    """
    tokens, text_start, flags, zero = _STATE.unpack_from(record)
    if flags == ABSENT and not tokens | text_start | zero and len(record) == SHORTEST_STATE:
        return StateRecord.of(record)
    if text_start > tokens or flags > TRUNCATED | CODED or zero:
        return None
    if flags & CODED:
        return StateRecord.of(record)
    if SHORTEST_STATE + tokens * row_bytes != len(record):
        return None
    rows: np.ndarray = np.ndarray((tokens, row_bytes), np.uint8, record, _STATE.size)
    return PassageState(rows, text_start, flags == TRUNCATED)
