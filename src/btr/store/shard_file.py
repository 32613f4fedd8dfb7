"""A shard on the disk: written whole, read record by record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from btr import files
from btr.data.passages import Passage
from btr.errors import CorruptError
from btr.store.format import PassageState, ShardCommit, StoreSpec
from btr.store.shard import (
    HEADER_BYTES,
    PASSAGE_TABLE,
    PASSAGES,
    SECTIONS,
    SHORTEST_PASSAGE,
    SHORTEST_STATE,
    STATE_TABLE,
    STATES,
    VECTORS,
    ShardHeader,
    StateRecord,
    crc_matches,
    decode_passage,
    decode_state,
    decode_table,
    encode_passage,
    encode_table,
    section_seed,
    table_bytes,
    vectors_bytes,
    with_crc,
)


def write_shard_file(
    path: Path,
    spec: StoreSpec,
    store_id: bytes,
    shard: int,
    passages: Sequence[Passage],
    states: Sequence[StateRecord],
    vectors: np.ndarray,
) -> ShardCommit:
    """Write one whole shard; states are written one by one, never gathered in memory.

    Args:
        path: The file; it appears when it is whole.
        spec: The store's.
        store_id: ``spec.store_id``.
        shard: The shard's number.
        passages: At least one.
        states: One a passage.
        vectors: int8 ``[n, dense_dim]``.

    Returns:
        What its commit record says.

    Raises:
        InputError: A passage that cannot be stored; nothing is left.
        ResourceError: No space; nothing is left.
    """
    n = len(passages)
    seeds = {
        kind: section_seed(store_id, shard, kind)
        for kind in (STATE_TABLE, PASSAGE_TABLE, VECTORS, PASSAGES, STATES)
    }
    texts = [encode_passage(seeds[PASSAGES] ^ i, passage) for i, passage in enumerate(passages)]
    text_bytes, state_bytes = [len(text) for text in texts], [state.size for state in states]
    header = ShardHeader(
        store_id, shard, n, spec.row_bytes, spec.dense_dim,
        truncated=sum(state.truncated for state in states),
        tokens=sum(state.tokens for state in states),
        section_bytes=(
            table_bytes(n), table_bytes(n), vectors_bytes(n, spec.dense_dim), sum(text_bytes),
            sum(state_bytes),
        ),
    )  # fmt: skip
    with files.NewFile(path) as new:
        new.write(header.encode())
        new.write(encode_table(seeds[STATE_TABLE], state_bytes))
        new.write(encode_table(seeds[PASSAGE_TABLE], text_bytes))
        new.write(with_crc(seeds[VECTORS], vectors.tobytes()))
        for text in texts:
            new.write(text)
        for i, state in enumerate(states):
            new.write(state.encode(seeds[STATES] ^ i))
        new.commit()
        digest = new.digest.hexdigest()
    return ShardCommit(
        store_id.hex(), shard, n, header.tokens, header.truncated, header.parts,
        header.file_bytes, digest,
    )  # fmt: skip


class Readable(Protocol):
    """A file that is read by ranges."""

    def read(self, size: int, offset: int) -> bytes:
        """``size`` bytes from ``offset``."""


class ShardFile:
    """A shard open for reading; every record is checked each time it is read.

    Args:
        path: The file.
        spec: The store's.
        store_id: ``spec.store_id``, given so that it is computed once a store.
        shard: Its number.
        n: Passages that it must hold.
        size: Bytes that it must have.
        opened: The file, if it is not on this machine.

    Raises:
        CorruptError: Its size, header or tables are not right.
        IncompatibleError: A newer version wrote it.
    """

    def __init__(
        self,
        path: Path,
        spec: StoreSpec,
        store_id: bytes,
        shard: int,
        n: int,
        size: int,
        opened: Readable | None = None,
    ) -> None:
        self.path, self._row_bytes, self._dense_dim, self._n = (
            path,
            spec.row_bytes,
            spec.dense_dim,
            n,
        )
        tables = HEADER_BYTES + 2 * table_bytes(n)
        if size < tables:
            raise CorruptError("too small for its passages", where=str(path),
                               expected=f"at least {tables} bytes", found=str(size))  # fmt: skip
        self._file = opened or files.LocalFile(path, size)
        head = self._file.read(tables, 0)
        self.header = ShardHeader.decode(head[:HEADER_BYTES], path, spec, store_id, shard, n)
        if self.header.file_bytes != size:
            raise CorruptError("header and file disagree about the size", where=str(path),
                               expected=str(self.header.file_bytes), found=str(size))  # fmt: skip
        self._seeds = {kind: section_seed(store_id, shard, kind) for kind in SECTIONS}
        self._passage_seed, self._state_seed = self._seeds[PASSAGES], self._seeds[STATES]
        middle = HEADER_BYTES + table_bytes(n)
        *_, vectors, passages, states = self.header.section_bytes
        self._passage_base = tables + vectors
        self._state_base = self._passage_base + passages
        self._vectors_at = tables
        self._states = self._table(STATE_TABLE, head[HEADER_BYTES:middle], states, SHORTEST_STATE)
        self._passages = self._table(PASSAGE_TABLE, head[middle:], passages, SHORTEST_PASSAGE)

    def _table(self, kind: int, data: bytes, section_bytes: int, shortest: int) -> memoryview:
        table = decode_table(self._seeds[kind], data, section_bytes, shortest)
        if table is None:
            name = "state" if kind == STATE_TABLE else "passage"
            raise CorruptError(f"damaged {name} table", where=str(self.path),
                               todo="restore the file or build the store again")  # fmt: skip
        return table

    def state_record(self, record: int) -> StateRecord:
        """The state of one passage as it is stored."""
        return StateRecord.of(self._state_bytes(record))

    def _state_bytes(self, record: int) -> bytes:
        start = self._states[record]
        data = self._file.read(self._states[record + 1] - start, self._state_base + start)
        if not crc_matches(self._state_seed ^ record, data):
            raise self._damaged("state", record)
        return data

    def state(self, record: int) -> PassageState | StateRecord:
        """The state of one passage of this shard, its rows a read-only view; coded, its record."""
        data = self._state_bytes(record)
        state = decode_state(data, self._row_bytes)
        if state is None:
            raise self._damaged("state", record)
        return state

    def passages(self) -> Iterator[Passage]:
        """All of them, in order.

        Raises:
            CorruptError: A record is damaged.
        """
        for record in range(self._n):
            yield self.passage(record)

    def passage(self, record: int) -> Passage:
        """One passage of this shard."""
        start = self._passages[record]
        data = self._file.read(self._passages[record + 1] - start, self._passage_base + start)
        if not crc_matches(self._passage_seed ^ record, data):
            raise self._damaged("passage", record)
        passage = decode_passage(data)
        if passage is None:
            raise self._damaged("passage", record)
        return passage

    def vectors(self) -> np.ndarray:
        """int8 ``[n, dense_dim]``, read-only."""
        data = self._file.read(vectors_bytes(self._n, self._dense_dim), self._vectors_at)
        if not crc_matches(self._seeds[VECTORS], data):
            raise CorruptError(
                "damaged vectors", where=f"{self.path}, from byte {self._vectors_at}",
                expected="a matching checksum", found="another",
            )  # fmt: skip
        return np.ndarray((self._n, self._dense_dim), np.int8, data)

    def _damaged(self, kind: str, record: int) -> CorruptError:
        table, base = (
            (self._states, self._state_base)
            if kind == "state"
            else (self._passages, self._passage_base)
        )
        return CorruptError(
            f"damaged {kind} record",
            where=f"{self.path}, passage {record} of the shard, byte {base + table[record]}",
            expected="a matching checksum", found="another",
            todo="run `btr verify`, then restore the file or build the store again",
        )  # fmt: skip
