"""States with less than a vector a token: shared vectors, merged vectors, and what is left.

Offline compression (method, section 5) leaves three kinds of tokens. Those of *shared* ids (stop
words and punctuation) have one vector an id, and nothing stored for an occurrence. Of the others,
*merged* ones refer to a group's vector in the codebook, and the rest have their own. Or, beyond the
method, shared tokens and others that are *left out* are worked out from their neighbours. Token ids
say which is which, so they are stored too, frequent ones in one byte. ``docs/format.md`` fixes the
bytes.

A coded record ends in the CRC of the rows that it decodes to. So whatever is damaged on the way,
record, tables or codebook, is found before it becomes an answer, and neither tables nor codebook
are read more than needed.

``t`` tokens of a passage, ``b`` bytes of a vector's bits.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from btr.errors import CorruptError
from btr.store.coding_tables import CodingTables, load_coding
from btr.store.format import Guesses, Manifest, PassageState, packed_ids
from btr.store.names import CODING, added_by
from btr.store.neighbours import bits_of
from btr.store.shard import StateRecord, state_record

BODY = struct.Struct("<HHHH")
_CRC = struct.Struct("<I")
MOST_TOKENS = 65_535

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


class Coder:
    """Codes states of a store and decodes them.

    Args:
        tables: Of the store.
    """

    def __init__(self, tables: CodingTables) -> None:
        self.tables = tables
        self._one_byte, self._trail = tables.one_byte, tables.trail_bytes
        self._rows, self._starts = tables.row_of(), tables.group_starts()
        self._widths = tables.reference_bytes()

    @cached_property
    def _rank_of(self) -> Ints:
        # Only encoding needs it.
        return self.tables.rank_of()

    def encode(self, state: PassageState, ids: Ints, groups: Ints) -> tuple[StateRecord, Bytes]:
        """A state's coded record.

        Args:
            state: Of ``t`` tokens.
            ids: ``[t]`` token ids, all among the tables'.
            groups: ``[t]`` number of the group of its id that a token was merged into, -1 for none;
                0 for a token that is left out.

        Returns:
            The record, and the rows that it decodes to.
        """
        tables, b = self.tables, self.tables.bits_bytes
        rank = self._rank_of[ids]
        shared = tables.shared[rank]
        own = np.flatnonzero(~shared)
        merged = groups[own] >= 0
        referring, alone = own[merged], own[~merged]
        wide = rank >= self._one_byte
        longer = rank[wide] - self._one_byte
        lead = rank.astype(np.uint8)
        lead[wide] = self._one_byte + (longer >> 8 * self._trail)
        trail = _low_bytes(longer, np.full(len(longer), self._trail))
        references = _low_bytes(groups[referring], self._widths[rank[referring]])
        head = BODY.pack(len(trail), len(alone), len(referring), len(references))
        bits = state.rows[alone, :b]
        if tables.model is not None:
            bits = tables.model.encode(bits, rank[alone])
        c = b + tables.scale_bytes
        rows = np.empty_like(state.rows)
        rows[alone, :b] = state.rows[alone, :b]
        rows[own, b:c] = state.rows[own, b:c]
        self._fill(rows, rank, shared, referring, groups[referring], [len(rows)])
        body = b"".join(
            (
                head, lead.tobytes(), trail.tobytes(),
                np.packbits(merged).tobytes() if len(referring) else b"", references.tobytes(),
                bits.tobytes(), rows[own, b:c].tobytes(),
                _CRC.pack(google_crc32c.value(rows.tobytes())),
            )
        )  # fmt: skip
        return state_record(state, np.frombuffer(body, np.uint8)), rows

    def spent(self, records: Iterable[StateRecord]) -> dict[str, int]:
        """What coded records hold: bytes of the parts, and tokens without vectors of their own.

        Args:
            records: Of a store; those that are not coded count nothing.
        """
        spent = Counter(id_bytes=0, reference_bytes=0, scale_bytes=0, shared_tokens=0,
                        left_out_tokens=0)  # fmt: skip
        for record in records:
            if not record.is_coded:
                continue
            trail, alone, referring, references = BODY.unpack(record.body[: BODY.size].tobytes())
            own = alone + referring
            spent["id_bytes"] += record.tokens + trail
            spent["reference_bytes"] += references + (-(-own // 8) if referring else 0)
            spent["scale_bytes"] += own * self.tables.scale_bytes
            spent["shared_tokens"] += record.tokens - own
            spent["left_out_tokens"] += referring if self.tables.neighbours is not None else 0
        return dict(spent)

    def decode(self, records: Sequence[StateRecord]) -> list[PassageState | None]:
        """The states of coded records; None where a record, the tables or the codebook is damaged.

        All are decoded together: it is the number of array operations that takes time.
        """
        cuts = [self._cut(record) for record in records]
        good = [cut for cut in cuts if cut is not None]
        try:
            decoded: list[_Decoded | None] = [*self._rows_of(good)]
        except _MalformedError:
            decoded = [self._rows_of_one(cut) for cut in good]
        made = iter(decoded)
        states: list[PassageState | None] = []
        for record, cut in zip(records, cuts, strict=True):
            found = next(made) if cut is not None else None
            if cut is None or found is None or google_crc32c.value(found[0].tobytes()) != cut.crc:
                states.append(None)
            else:
                rows, guesses = found
                rows.flags.writeable = False
                states.append(PassageState(rows, record.text_start, record.truncated, guesses))
        return states

    def _rows_of_one(self, cut: _Parts) -> _Decoded | None:
        try:
            return self._rows_of([cut])[0]
        except _MalformedError:
            return None

    def _cut(self, record: StateRecord) -> _Parts | None:
        """The parts of a record's body, if they fill it."""
        body, b = record.body.data, self.tables.bits_bytes
        if len(body) < BODY.size + _CRC.size:
            return None
        trail, alone, referring, references = BODY.unpack_from(body)
        own = alone + referring
        flags = -(-own // 8) if referring else 0
        a = BODY.size + record.tokens
        c = a + trail
        d = c + flags
        e = d + references
        g = len(body) - _CRC.size
        f = g - own * self.tables.scale_bytes
        if f < e or (f - e != alone * b if self.tables.model is None else (f - e) % 2):
            return None
        (crc,) = _CRC.unpack_from(body, g)
        return _Parts(
            body[BODY.size : a],
            body[a:c],
            body[c:d],
            body[d:e],
            body[e:f],
            body[f:g],
            own,
            alone,
            crc,
        )

    def _rows_of(self, cuts: Sequence[_Parts]) -> list[_Decoded]:
        """The rows of passages, and what was guessed of them.

        Raises:
            _MalformedError: A part says what cannot be.
        """
        if not cuts:
            return []
        tables, b = self.tables, self.tables.bits_bytes
        rank = _joined([cut.lead for cut in cuts]).astype(np.int64)
        wide = np.flatnonzero(rank >= self._one_byte)
        trail = np.full(len(wide), self._trail)
        longer = _from_bytes(_joined([cut.trail for cut in cuts]), trail)
        rank[wide] = self._one_byte + ((rank[wide] - self._one_byte) << 8 * self._trail) + longer
        _require(rank.max(initial=0) < len(tables.ids))
        shared = tables.shared[rank]
        own = np.flatnonzero(~shared)
        merged = _flags(cuts)
        _require(len(merged) == len(own))
        alone, referring = own[~merged], own[merged]
        references = _joined([cut.references for cut in cuts])
        groups = _from_bytes(references, self._widths[rank[referring]])
        _require(bool(np.all(groups < np.maximum(1, tables.groups[rank[referring]]))))
        _require(sum(cut.lone for cut in cuts) == len(alone))
        if tables.model is None:
            bits = _joined([cut.alone for cut in cuts]).reshape(-1, b)
        else:
            counts = [cut.lone for cut in cuts]
            bits = tables.model.decode([cut.alone for cut in cuts], counts, rank[alone])
        c = b + tables.scale_bytes
        rows = np.empty((len(rank), c + tables.id_bytes), np.uint8)
        rows[alone, :b] = bits
        if tables.scale_bytes:
            rows[own, b:c] = _joined([cut.scales for cut in cuts]).reshape(-1, tables.scale_bytes)
        lengths = [len(cut.lead) for cut in cuts]
        guesses = self._fill(rows, rank, shared, referring, groups, lengths)
        cuts_at = [0, *accumulate(lengths)]
        if guesses is None:
            return [(rows[a:z], None) for a, z in pairwise(cuts_at)]
        among = np.searchsorted(guesses.places, cuts_at).tolist()
        return [
            (rows[a:z], Guesses(guesses.places[c:e] - a, guesses.levels[c:e]))
            for (a, z), (c, e) in zip(pairwise(cuts_at), pairwise(among), strict=True)
        ]

    def _fill(
        self,
        rows: Bytes,
        rank: Ints,
        shared: NDArray[np.bool_],
        referring: Ints,
        groups: Ints,
        lengths: Sequence[int],
    ) -> Guesses | None:
        """Write the rows of shared tokens, the bits of referring ones and ids, after all others.

        Raises:
            _MalformedError: A token is left out that cannot be worked out.
        """
        tables, b = self.tables, self.tables.bits_bytes
        c = b + tables.scale_bytes
        rows[shared, :c] = tables.rows[self._rows[rank[shared]]]
        if tables.id_bytes:
            rows[:, c:] = packed_ids(tables.ids[rank])
        grouped = tables.groups[rank[referring]] > 0
        merged, left_out = referring[grouped], referring[~grouped]
        rows[merged, :b] = tables.codebook[self._starts[rank[merged]] + groups[grouped]]
        if tables.neighbours is None:
            _require(not len(left_out))
            return None
        asked = shared.copy()
        asked[left_out] = True
        _require(bool(np.all(tables.neighbours.owner[rank[left_out]] >= 0)))
        levels = tables.neighbours.levels(rows[:, :b], asked, ~asked, lengths, rank[asked])
        rows[asked, :b] = bits_of(levels)
        return Guesses(np.flatnonzero(asked), levels)


class _MalformedError(Exception):
    """Parts of a record that do not fit together."""


def _require(true: bool) -> None:
    if not true:
        raise _MalformedError


_Decoded = tuple[Bytes, Guesses | None]


class _Parts(NamedTuple):
    """The parts of a coded record's body, and how many of its tokens are of which kind."""

    lead: memoryview
    trail: memoryview
    flags: memoryview
    references: memoryview
    alone: memoryview
    scales: memoryview
    own: int
    lone: int
    crc: int


def _joined(parts: Sequence[memoryview]) -> Bytes:
    return np.frombuffer(b"".join(parts), np.uint8)


def _flags(cuts: Sequence[_Parts]) -> NDArray[np.bool_]:
    """Which of the tokens that are not of shared ids refer to the codebook, of all passages."""
    own = np.array([cut.own for cut in cuts])
    present = np.array([len(cut.flags) for cut in cuts])
    bits = np.unpackbits(_joined([cut.flags for cut in cuts])).view(np.bool_)
    if not present.all():
        # Without a reference there are no flags, and none is set.
        flags = np.zeros(own.sum(), np.bool_)
        held = np.repeat(present > 0, own)
        flags[held] = bits[_places(own[present > 0], present[present > 0])]
        return flags
    return bits[_places(own, present)]


def _places(counts: Ints, sizes: Ints) -> Ints:
    """Places of the first ``counts`` bits of each run of ``sizes`` bytes."""
    starts = 8 * (np.cumsum(sizes) - sizes)
    return np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)


def _low_bytes(values: Ints, widths: Ints) -> Bytes:
    """Numbers one after the other, each in so many bytes, lowest first."""
    planes = values.astype("<u8").view(np.uint8).reshape(-1, 8)
    picked: Bytes = planes[np.arange(8) < widths[:, None]]
    return picked


def _from_bytes(data: Bytes, widths: Ints) -> Ints:
    """The inverse of :func:`_low_bytes`."""
    _require(len(data) == widths.sum())
    planes = np.zeros((len(widths), 8), np.uint8)
    planes[np.arange(8) < widths[:, None]] = data
    return planes.view("<i8")[:, 0].astype(np.int64)


def load_coder(path: Path, manifest: Manifest) -> Coder | None:
    """What the coded states of a store are decoded with; None in a store that has none.

    Raises:
        CorruptError: The coding file is damaged.
    """
    for entry in manifest.others:
        if entry.name.startswith(CODING):
            generation = added_by(entry.name)
            return Coder(load_coding(path / entry.name, manifest.spec, generation, entry.bytes))
    return None


def undecodable(where: str) -> CorruptError:
    """What is raised for a coded state of which nothing can be made."""
    return CorruptError("a state that cannot be decoded", where=where,
                        expected="a matching checksum", found="another",
                        todo="run `btr verify`, then restore the damaged file")  # fmt: skip
