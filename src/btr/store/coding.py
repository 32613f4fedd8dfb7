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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from btr import files
from btr.errors import CorruptError
from btr.store.entropy import CLASSES, DRIFTS, SCALE, BitModel
from btr.store.format import Guesses, Manifest, PassageState, StoreSpec
from btr.store.names import CODING as CODING_FILE
from btr.store.names import added_by
from btr.store.neighbours import NeighbourModel, bits_of
from btr.store.shard import StateRecord, crc_matches, section_seed, state_record, with_crc

MAGIC = b"\x89BTRcode"
CODING = 9
"""Seed of the tables' CRC; not a section of a shard."""
HEAD = struct.Struct("<8sI16sIIIIIIIQ")
BODY = struct.Struct("<HHHH")
_CRC = struct.Struct("<I")
MOST_TOKENS = 65_535
MOST_IDS = 1 << 24

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CodingTables:
    """What coded records of a store are decoded with. A *rank* is an id's place by frequency.

    Attributes:
        ids: ``[R]`` token ids by rank, most frequent first.
        shared: ``[R]`` bool: all occurrences have one vector.
        rows: ``[number shared, row bytes]`` their vectors (and scales), by rank.
        groups: ``[R]`` merged vectors of each id.
        codebook: ``[sum of groups, b]`` merged vectors, by rank.
        scale_bytes: Of a token's scale.
        model: What lone tokens' bits are coded with; None where they stand as they are.
        neighbours: What the bits of shared tokens, and of those that refer to a rank without
            groups, are worked out with; None where shared tokens have those of ``rows``.
    """

    ids: Ints
    shared: NDArray[np.bool_]
    rows: Bytes
    groups: Ints
    codebook: Bytes
    scale_bytes: int
    model: BitModel | None = None
    neighbours: NeighbourModel | None = None

    @property
    def one_byte(self) -> int:
        """Ranks written in one byte: as many as leave first bytes enough for the others."""
        longer = 256**self.trail_bytes
        return min(256, int((256 * longer - len(self.ids)) // (longer - 1)))

    @property
    def trail_bytes(self) -> int:
        """Further bytes of the other ranks."""
        return 1 if len(self.ids) <= 1 << 16 else 2

    @property
    def bits_bytes(self) -> int:
        """``b``."""
        width: int = self.codebook.shape[1]
        return width

    def rank_of(self) -> Ints:
        """The rank of every id up to the greatest, -1 where it has none."""
        ranks = np.full(int(self.ids.max(initial=0)) + 1, -1, np.int64)
        ranks[self.ids] = np.arange(len(self.ids))
        return ranks

    def row_of(self) -> Ints:
        """``[R]``: the row of each shared rank."""
        return np.cumsum(self.shared) - 1

    def group_starts(self) -> Ints:
        """``[R]``: the first merged vector of each rank."""
        return np.cumsum(self.groups) - self.groups

    def reference_bytes(self) -> Ints:
        """``[R]``: bytes of a reference to one of a rank's groups; 0 where it has none."""
        widths = (self.groups > 0).astype(np.int64)
        for bits in (8, 16, 24):
            widths += self.groups > 1 << bits
        return widths


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
        rows = np.empty_like(state.rows)
        rows[alone, :b] = state.rows[alone, :b]
        rows[own, b:] = state.rows[own, b:]
        self._fill(rows, rank, shared, referring, groups[referring], [len(rows)])
        body = b"".join(
            (
                head, lead.tobytes(), trail.tobytes(),
                np.packbits(merged).tobytes() if len(referring) else b"", references.tobytes(),
                bits.tobytes(), rows[own, b:].tobytes(),
                _CRC.pack(google_crc32c.value(rows.tobytes())),
            )
        )  # fmt: skip
        return state_record(state, np.frombuffer(body, np.uint8)), rows

    def spent(self, record: StateRecord) -> dict[str, int]:
        """Bytes of a coded record by what they are: token ids, references, scales."""
        trail, alone, referring, references = BODY.unpack(record.body[: BODY.size].tobytes())
        own = alone + referring
        return {
            "id_bytes": record.tokens + trail,
            "reference_bytes": references + (-(-own // 8) if referring else 0),
            "scale_bytes": own * self.tables.scale_bytes,
        }

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
        rows = np.empty((len(rank), b + tables.scale_bytes), np.uint8)
        rows[alone, :b] = bits
        if tables.scale_bytes:
            rows[own, b:] = _joined([cut.scales for cut in cuts]).reshape(-1, tables.scale_bytes)
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
        """Write the rows of shared tokens and the bits of referring ones, after all others.

        Raises:
            _MalformedError: A token is left out that cannot be worked out.
        """
        tables, b = self.tables, self.tables.bits_bytes
        rows[shared] = tables.rows[self._rows[rank[shared]]]
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


# -- the file ---------------------------------------------------------------------------------


def write_coding(
    path: Path, spec: StoreSpec, generation: int, tables: CodingTables, codebook: Path
) -> None:
    """Write a generation's coding file.

    Args:
        path: The file; it appears when it is whole.
        spec: The store's.
        generation: The generation's number.
        tables: All but the codebook, which may be larger than memory.
        codebook: A file with its rows.
    """
    groups = int(tables.groups.sum())
    size = groups * tables.bits_bytes
    head = HEAD.pack(
        MAGIC, 1, spec.store_id, generation, spec.row_bytes, tables.scale_bytes, len(tables.ids),
        int(tables.shared.sum()), len(tables.model.classes) if tables.model else 0,
        len(tables.neighbours.base) if tables.neighbours else 0, groups,
    )  # fmt: skip
    with files.NewFile(path) as new:
        new.write(
            with_crc(
                section_seed(spec.store_id, generation, CODING), head,
                tables.ids.astype("<u4").tobytes(), np.packbits(tables.shared).tobytes(),
                tables.groups.astype("<u4").tobytes(), tables.rows.tobytes(),
                _model_bytes(tables.model),
                tables.neighbours.encode() if tables.neighbours else b"",
            )
        )  # fmt: skip
        for chunk in files.read_chunks(codebook, size):
            new.write(chunk)
        new.commit()


def load_coding(path: Path, spec: StoreSpec, generation: int, size: int) -> CodingTables:
    """Read and check a coding file; the codebook is mapped, not read.

    Raises:
        CorruptError: It is damaged, or not of this store and generation.
    """
    fd = files.open_exact(path, size)
    try:
        head = files.read_exact(fd, min(HEAD.size, size), 0, path)
        if len(head) < HEAD.size:
            raise _damaged(path)
        *settings, ranks, shared, classed, beside, groups = HEAD.unpack(head)
        if settings != [
            MAGIC, 1, spec.store_id, generation, spec.row_bytes, spec.scale_bytes,
        ]:  # fmt: skip
            raise _damaged(path)
        row_bytes, scale_bytes = spec.row_bytes, spec.scale_bytes
        bits = row_bytes - scale_bytes
        flags = -(-ranks // 8)
        model = flags + classed * 4 * bits + 2 * CLASSES * DRIFTS if classed else 0
        around = NeighbourModel.encoded_bytes(ranks, beside, spec.dim) if beside else 0
        counts = (4 * ranks, flags, 4 * ranks, shared * row_bytes, model, around)
        checked = HEAD.size + sum(counts) + _CRC.size
        if ranks > MOST_IDS or shared > ranks or checked + groups * bits != size:
            raise _damaged(path)
        data = files.read_exact(fd, checked, 0, path)
    finally:
        files.ops.close(fd)
    if not crc_matches(section_seed(spec.store_id, generation, CODING), data):
        raise _damaged(path)
    ends = np.cumsum((HEAD.size, *counts)).tolist()
    ids, bitmap, sizes, rows, coded, near = (data[a:z] for a, z in pairwise(ends))
    tables = CodingTables(
        np.frombuffer(ids, "<u4").astype(np.int64),
        np.unpackbits(np.frombuffer(bitmap, np.uint8), count=ranks).view(np.bool_),
        np.frombuffer(rows, np.uint8).reshape(shared, row_bytes),
        np.frombuffer(sizes, "<u4").astype(np.int64),
        # What is read from here is checked by the CRC of the record that refers to it.
        np.memmap(path, np.uint8, "r", checked, (groups, bits))
        if groups
        else np.empty((0, bits), np.uint8),
        scale_bytes,
        _model_of(coded, ranks, classed, bits) if classed else None,
        NeighbourModel.decode(near, ranks, beside, spec.dim) if beside else None,
    )
    if (
        int(tables.shared.sum()) != shared
        or int(tables.groups.sum()) != groups
        or len(np.unique(tables.ids)) != ranks
        or (ranks and int(tables.ids.max()) >= MOST_IDS)
        or (tables.model and int(tables.model.owner.max(initial=0)) >= classed)
        or (tables.neighbours and not _all_based(tables, tables.neighbours))
    ):
        raise _damaged(path)
    return tables


def _model_bytes(model: BitModel | None) -> bytes:
    """Which ranks have classes of their own, the classes in half bytes, the probabilities."""
    if model is None:
        return b""
    halves = model.classes[:, ::2] << 4 | model.classes[:, 1::2]
    return b"".join(
        (np.packbits(model.owner > 0).tobytes(), halves.tobytes(),
         model.table.astype("<u2").tobytes())
    )  # fmt: skip


def _model_of(data: bytes, ranks: int, classed: int, bits_bytes: int) -> BitModel:
    """The inverse of :func:`_model_bytes`."""
    flags, table = -(-ranks // 8), 2 * CLASSES * DRIFTS
    owns = np.unpackbits(np.frombuffer(data[:flags], np.uint8), count=ranks).astype(np.int64)
    halves = np.frombuffer(data[flags:-table], np.uint8).reshape(classed, 4 * bits_bytes)
    classes = np.stack((halves >> 4, halves & 15), axis=2).reshape(classed, 8 * bits_bytes)
    chances = np.frombuffer(data[-table:], "<u2").astype(np.uint16)
    # A chance of 0 or 1 would end the decoder; only damage that its checksum knows of makes one.
    chances = np.clip(chances, 1, SCALE - 1)
    return BitModel(owns * np.cumsum(owns), classes, chances)


def _all_based(tables: CodingTables, model: NeighbourModel) -> bool:
    """Whether all shared ids have a base, and there are as many bases as ids with one."""
    with_base = model.owner >= 0
    return bool(with_base[tables.shared].all()) and int(with_base.sum()) == len(model.base)


def load_coder(path: Path, manifest: Manifest) -> Coder | None:
    """What the coded states of a store are decoded with; None in a store that has none.

    Raises:
        CorruptError: The coding file is damaged.
    """
    for entry in manifest.files:
        if entry.name.startswith(CODING_FILE):
            generation = added_by(entry.name)
            return Coder(load_coding(path / entry.name, manifest.spec, generation, entry.bytes))
    return None


def undecodable(where: str) -> CorruptError:
    """What is raised for a coded state of which nothing can be made."""
    return CorruptError("a state that cannot be decoded", where=where,
                        expected="a matching checksum", found="another",
                        todo="run `btr verify`, then restore the damaged file")  # fmt: skip


def _damaged(path: Path) -> CorruptError:
    return CorruptError("damaged coding tables", where=str(path),
                        todo="restore the file, or build the store again")  # fmt: skip
