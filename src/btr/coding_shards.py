"""What compression does shard by shard, in any process that sees the store: count, and code.

Both give the same result wherever they are done, so that a cluster compresses to the bytes of one
machine (``btr.compressing`` says what happens between them).

``V`` size of the vocabulary, ``d`` dimensions of a vector.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btr import files
from btr.cluster import make_attempt
from btr.errors import IncompatibleError
from btr.readers.base import Mode, Reader
from btr.readers.load import load_reader
from btr.store.coding import MOST_TOKENS, Coder
from btr.store.coding_tables import CodingTables, load_coding
from btr.store.format import PassageState, ShardCommit, StoreSpec
from btr.store.names import SHARDS, coding_name, shard_name
from btr.store.reader import TokenStore
from btr.store.shard import StateRecord, absent_record, state_record
from btr.store.shard_file import write_shard_file

GROUP = 256
"""Passages that are read and coded together."""

PARTS = 64
"""Into so many parts at most a store is cut to be counted; rounding may depend on it."""

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(slots=True, eq=False)
class Counts:
    """What is counted of token ids.

    Attributes:
        tokens: ``[V]`` occurrences.
        positive: ``[V, d]`` int32, in how many a dimension is positive.
        scales: ``[V]`` float64, the sum of their scales (8-bit ones: of their logarithms).
    """

    tokens: Ints
    positive: NDArray[np.int32]
    scales: NDArray[np.float64]

    @classmethod
    def nothing(cls, vocabulary: int, dim: int) -> Counts:
        """Of no passage."""
        positive = np.zeros((vocabulary, dim), np.int32)
        return cls(np.zeros(vocabulary, np.int64), positive, np.zeros(vocabulary))

    def add(self, states: Sequence[PassageState], ids: Sequence[Ints], spec: StoreSpec) -> None:
        """Count passages of a store of this spec."""
        b = spec.state_bytes
        flat = np.concatenate(ids)
        rows = np.concatenate([state.rows for state in states])
        self.tokens += np.bincount(flat, minlength=len(self.tokens))
        order = np.argsort(flat, kind="stable")
        found, firsts = np.unique(flat[order], return_index=True)
        signs = np.unpackbits(rows[order, :b], axis=1)
        self.positive[found] += np.add.reduceat(signs, firsts, axis=0, dtype=np.int32)
        if spec.scale_bytes:
            values = scale_values(rows[order, b : b + spec.scale_bytes], spec.scale_bytes)
            self.scales[found] += np.add.reduceat(values, firsts)

    def add_counts(self, other: Counts) -> None:
        """Add those of other passages."""
        self.tokens += other.tokens
        self.positive += other.positive
        self.scales += other.scales

    def save(self, path: Path) -> None:
        """Write those of ids that occur."""
        ids = np.flatnonzero(self.tokens)
        with path.open("wb") as file:
            for part in (ids, self.tokens[ids], self.positive[ids], self.scales[ids]):
                np.save(file, part, allow_pickle=False)

    def add_saved(self, path: Path) -> None:
        """Add what :meth:`save` wrote."""
        with path.open("rb") as file:
            ids, tokens, positive, scales = (np.load(file, allow_pickle=False) for _ in range(4))
        self.tokens[ids] += tokens
        self.positive[ids] += positive
        self.scales[ids] += scales


def scale_values(scales: Bytes, size: int) -> NDArray[np.float64]:
    """``[n]`` scales of so many bytes, or the logarithms that stand for them."""
    packed = np.ascontiguousarray(scales)
    if size == 2:
        return packed.view("<f2")[:, 0].astype(np.float64)
    return packed[:, 0].astype(np.float64)


def scale_bytes(means: NDArray[np.float64], size: int) -> Bytes:
    """The inverse of :func:`scale_values`, of means."""
    if size == 2:
        return means.astype("<f2")[:, None].view(np.uint8)
    return np.rint(means).astype(np.uint8)[:, None]


def parts_of(passages: int) -> list[range]:
    """Ordinals of the parts that are counted apart, whole groups each."""
    size = GROUP * -(-passages // (GROUP * PARTS))
    return [range(first, min(passages, first + size)) for first in range(0, passages, size)]


def states_of(
    store: TokenStore, reader: Reader, ordinals: range
) -> tuple[list[int], list[PassageState], list[Ints]]:
    """The passages of these that have a state: their ordinals, states and token ids.

    Raises:
        IncompatibleError: The reader's tokenizer is not the store's.
        CorruptError: A record is damaged.
    """
    held = store.held_states(ordinals)
    there = [o for o, state in zip(ordinals, held, strict=True) if state is not None]
    states = [state for state in held if state is not None]
    ids = [np.asarray(row, np.int64) for row in reader.token_ids(store.passages(there))]
    for ordinal, state, row in zip(there, states, ids, strict=True):
        if len(state.rows) != len(row):
            raise IncompatibleError(
                "the reader's tokenizer cuts a passage otherwise than the store",
                where=f"{store.path}, passage {ordinal}",
                expected=f"{len(state.rows)} tokens", found=f"{len(row)}",
            )  # fmt: skip
    return there, states, ids


def groups_of(ordinals: range) -> list[range]:
    """Ordinals of the passages that are read together."""
    return [ordinals[i : i + GROUP] for i in range(0, len(ordinals), GROUP)]


def count_tokens(store: TokenStore, reader: Reader, ordinals: range) -> Counts:
    """Count the token ids of passages, and the bits of their occurrences."""
    spec = store.manifest.spec
    counts = Counts.nothing(len(reader.vocabulary), 8 * spec.state_bytes)
    for group in groups_of(ordinals):
        _, states, ids = states_of(store, reader, group)
        if states:
            counts.add(states, ids, spec)
    return counts


def left_out(
    tables: CodingTables,
    rank_of: Ints,
    states: Sequence[PassageState],
    ids: Sequence[Ints],
    ratio: float,
) -> list[Ints]:
    """For each state 0 for the tokens to leave out, -1 for all others.

    Args:
        tables: What the left out are worked out with.
        rank_of: Of every id.
        states: Of passages.
        ids: ``[t]`` token ids of each.
        ratio: Share of each passage's stored tokens.
    """
    lengths = [len(row) for row in ids]
    ranks = rank_of[np.concatenate(ids)]
    gone = np.zeros(len(ranks), np.bool_)
    if tables.neighbours is not None and ratio:
        bits = bits_of_states(states, tables.bits_bytes)
        gone = tables.neighbours.guessed_best(bits, ~tables.shared[ranks], lengths, ranks, ratio)
    return np.split(gone.astype(np.int64) - 1, np.cumsum(lengths)[:-1])


def bits_of_states(states: Sequence[PassageState], bits_bytes: int) -> Bytes:
    """The bits of passages' tokens, one after the other, without scales."""
    rows: Bytes = np.concatenate([state.rows for state in states])
    return rows[:, :bits_bytes]


@dataclass(frozen=True, slots=True)
class CodedShard:
    """A shard that was written: what its commit record says, and what :meth:`Coder.spent` says."""

    commit: ShardCommit
    spent: dict[str, int]


def code_shard(
    store: TokenStore,
    reader: Reader,
    coder: Coder,
    ratio: float,
    ordinals: range,
    file: Path,
    number: int,
    merged: Callable[[Ints], Ints] | None = None,
) -> CodedShard:
    """Write a shard of a store anew, with coded states.

    Args:
        store: Has the passages.
        reader: Tokenises as the one that made it.
        coder: With the tables of the new generation.
        ratio: Share of a passage's tokens to leave out, where they are not merged.
        ordinals: Of the shard's passages.
        file: The new shard's.
        number: The new shard's.
        merged: Gives the groups of the token ids that come next; None where nothing merges.
    """
    spec = store.manifest.spec
    rank_of = coder.tables.rank_of()
    records = [absent_record()] * len(ordinals)
    for group in groups_of(ordinals):
        there, states, ids = states_of(store, reader, group)
        if not states:
            continue
        if merged is None:
            groups = left_out(coder.tables, rank_of, states, ids, ratio)
        else:
            cuts = np.cumsum([len(row) for row in ids])[:-1]
            groups = np.split(merged(np.concatenate(ids)), cuts)
        for ordinal, state, row, went in zip(there, states, ids, groups, strict=True):
            records[ordinal - ordinals.start] = _record(coder, state, row, went)
    commit = write_shard_file(
        file, spec, spec.store_id, number, store.passages(ordinals), records,
        store.vectors_of(ordinals),
    )  # fmt: skip
    return CodedShard(commit, coder.spent(records))


def _record(coder: Coder, state: PassageState, ids: Ints, groups: Ints) -> StateRecord:
    return state_record(state) if len(ids) > MOST_TOKENS else coder.encode(state, ids, groups)[0]


# -- on a cluster -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CodingJob:
    """What a worker needs to know; nothing but plain values crosses the network.

    Attributes:
        store: The store's folder.
        root: The building folder.
        scratch: For counts.
        generation: The new one.
        reader: Name, folder or Hub id.
        mode: The reader's.
        ratio: Share of a passage's tokens to leave out.
    """

    store: str
    root: str
    scratch: str
    generation: int
    reader: str
    mode: Mode
    ratio: float

    @property
    def fields(self) -> dict[str, Any]:
        """For the workers' constructors."""
        return {"job": asdict(self)}


class _Worker:
    """Holds the reader, and opens the store for each row anew, so that no lease outlives it.

    Args:
        job: A :class:`CodingJob`'s fields.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = CodingJob(**job)
        self._reader = load_reader(self._job.reader, self._job.mode)

    def _open(self) -> TokenStore:
        return TokenStore.open(self._job.store, fingerprint=self._reader.fingerprint)


class TokenCounter(_Worker):
    """A worker of pass 1."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Count one part; ``file`` has it then."""
        ordinals = range(int(row["first"]), int(row["end"]))
        with self._open() as store:
            counts = count_tokens(store, self._reader, ordinals)
        # A task that is tried twice at the same time writes two files.
        file = Path(self._job.scratch) / f"counts-{uuid.uuid4().hex}"
        counts.save(file)
        return {**row, "file": str(file)}


class ShardCoder(_Worker):
    """A worker of pass 3."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write one shard."""
        job, number = self._job, int(row["number"])
        ordinals = range(int(row["first"]), int(row["end"]))
        attempt = make_attempt(Path(job.scratch), SHARDS)
        with self._open() as store:
            file = Path(job.root) / coding_name(job.generation)
            tables = load_coding(file, store.manifest.spec, job.generation, files.file_size(file))
            coded = code_shard(store, self._reader, Coder(tables), job.ratio, ordinals,
                               attempt / shard_name(number), number)  # fmt: skip
        files.rename(attempt / shard_name(number), Path(job.root) / shard_name(number))
        return {**row, **asdict(coded)}
