"""What coded states are decoded with, and the file that it is kept in: ``coding-N.btr``.

``docs/format.md`` fixes the bytes. The tables are checked when they are read; the codebook behind
them is mapped into memory, and what comes from it is checked by the CRC of the record that refers
to it.

``b`` bytes of a vector's bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from btr import files
from btr.errors import CorruptError
from btr.store.entropy import BitModel
from btr.store.format import StoreSpec
from btr.store.neighbours import NeighbourModel
from btr.store.shard import CRC_BYTES, crc_matches, section_seed, with_crc

MAGIC = b"\x89BTRcode"
CODING = 9
"""Seed of the tables' CRC; not a section of a shard."""
HEAD = struct.Struct("<8sI16sIIIIIIIQ")
MOST_IDS = 1 << 24

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CodingTables:
    """What coded records of a store are decoded with. A *rank* is an id's place by frequency.

    Attributes:
        ids: ``[R]`` token ids by rank, most frequent first.
        shared: ``[R]`` bool: all occurrences have one vector.
        rows: ``[number shared, b + scale bytes]`` their vectors (and scales), by rank.
        groups: ``[R]`` merged vectors of each id.
        codebook: ``[sum of groups, b]`` merged vectors, by rank.
        scale_bytes: Of a token's scale.
        id_bytes: Of a token's id in a row; it is not coded twice.
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
    id_bytes: int = 0
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
                tables.model.to_bytes() if tables.model else b"",
                tables.neighbours.to_bytes() if tables.neighbours else b"",
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
        bits, vector = spec.state_bytes, spec.state_bytes + spec.scale_bytes
        flags = -(-ranks // 8)
        model = BitModel.sizeof(ranks, classed, spec.dim) if classed else 0
        around = NeighbourModel.sizeof(ranks, beside, spec.dim) if beside else 0
        counts = (4 * ranks, flags, 4 * ranks, shared * vector, model, around)
        checked = HEAD.size + sum(counts) + CRC_BYTES
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
        np.frombuffer(rows, np.uint8).reshape(shared, vector),
        np.frombuffer(sizes, "<u4").astype(np.int64),
        # What is read from here is checked by the CRC of the record that refers to it.
        np.memmap(path, np.uint8, "r", checked, (groups, bits))
        if groups
        else np.empty((0, bits), np.uint8),
        spec.scale_bytes,
        spec.id_bytes,
        BitModel.from_bytes(coded, ranks, classed, spec.dim) if classed else None,
        NeighbourModel.from_bytes(near, ranks, beside, spec.dim) if beside else None,
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


def _all_based(tables: CodingTables, model: NeighbourModel) -> bool:
    """Whether all shared ids have a base, and there are as many bases as ids with one."""
    with_base = model.owner >= 0
    return bool(with_base[tables.shared].all()) and int(with_base.sum()) == len(model.base)


def _damaged(path: Path) -> CorruptError:
    return CorruptError("damaged coding tables", where=str(path),
                        todo="restore the file, or build the store again")  # fmt: skip
