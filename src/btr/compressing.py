"""Compress a store offline: no vector of their own for stop words and some others (section 5).

Passes over the store, each as a stream. 1: count token ids, and how often each dimension is
positive. 2: write the vectors of all ids that are not shared to files of a bounded size, id by id;
merge within each id; write the merged vectors to the codebook and each occurrence's group to a file
again. Or, beyond the method, fit on a sample what vectors are worked out with. 3: write the shards,
with every passage's groups read back in the order in which they were written. Memory holds one such
file and the counts of the vocabulary, whatever the corpus.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from btr import files
from btr.cluster import Cluster
from btr.errors import IncompatibleError, UsageError
from btr.occurrences import OccurrenceFiles
from btr.readers.base import Reader
from btr.stop_words import shared_ids
from btr.store.building import Building, changing
from btr.store.coding import MOST_TOKENS, Coder
from btr.store.coding_tables import CodingTables, load_coding, write_coding
from btr.store.entropy import (
    CLASSES,
    DRIFTS,
    BitModel,
    class_of,
    kernels,
    nominal,
    probabilities,
)
from btr.store.format import Manifest, PassageState, ShardCommit, StoreSpec, shard_totals
from btr.store.names import CODING, SHARDS, coding_name, shard_name
from btr.store.neighbours import NeighbourFit, NeighbourModel, rows_of
from btr.store.reader import TokenStore
from btr.store.shard import StateRecord, state_record
from btr.store.shard_file import write_shard_file

GROUP = 256
"""Passages that are read and coded together."""

CLASSED = 32
"""Occurrences from which an id has probabilities of its own: what they save is then more."""

BASED = 128
"""Occurrences from which an id that is not shared has a base: some of them are then left out."""

SAMPLE = 20_000
"""Passages in which probabilities are counted."""

FITTED = 8_000
"""Passages whose tokens' neighbours are looked at: a million tokens for some thousand numbers."""

Stage = Literal["counting", "scattering", "merging", "fitting", "modelling", "writing"]
Progress = Callable[[Stage, int, int], None]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Compression:
    """How a store is compressed.

    Attributes:
        ratio: Share of the other tokens to lose their vectors, 0 .. 0.5 (paper: 0.2): those of a
            passage that their neighbours guess best; without neighbours, those of an id that merge.
        top: So many of the most frequent ids share their vectors too, whatever they mean.
        lossless: Code the bits that are left. They come back as they were, in more time.
        stop_words: Stop words and punctuation share their vectors.
        neighbours: Work out what is not stored from the stored vectors beside it. Without, as in
            the paper, all occurrences of a shared id have the sign of their mean.
    """

    ratio: float = 0.2
    top: int = 0
    lossless: bool = False
    stop_words: bool = True
    neighbours: bool = True


def compress(
    path: Path,
    reader: Reader,
    how: Compression,
    progress: Progress = lambda stage, done, total: None,
    cluster: Cluster | None = None,
) -> Manifest:
    """Commit a generation of a store with compressed states.

    Args:
        path: The store.
        reader: Any that tokenises as the one that made the store.
        how: What is shared and merged.
        progress: Called with the stage, passages (or, merging, files) done and in all.
        cluster: Merge there; None for this process alone. The store is the same.

    Returns:
        The new generation's manifest.

    Raises:
        UsageError: The store has no bits, a setting is out of range, or an addition is unfinished.
        IncompatibleError: Another reader's store.
        LockedError: Another process is changing the store.
        CorruptError: A record is damaged; the store is as it was.
        ResourceError: No space; the store is as it was.
    """
    if cluster is not None and how.neighbours:
        raise UsageError("only merging is done on a cluster", where="compress",
                         todo="ask for the paper's way, or leave out the cluster")  # fmt: skip
    if not 0 <= how.ratio <= 0.5 or how.top < 0:
        raise UsageError("a setting out of range", where="compress", found=str(how),
                         expected="a ratio of 0 to 0.5, a top of at least 0")  # fmt: skip
    with changing(path) as building:
        with TokenStore.open(path, fingerprint=reader.fingerprint) as store:
            if store.manifest.spec.kind == "fp16":
                raise UsageError("only bits can be compressed", where=str(path),
                                 found="continuous states", todo="build a btr store")  # fmt: skip
            building.start_over()
            with (
                files.explaining(building.root),
                tempfile.TemporaryDirectory(dir=building.root, prefix="scratch-") as scratch,
            ):
                work = _Work(store, reader, how, Path(scratch), progress, cluster)
                manifest = _write(building, store, work)
        building.publish(manifest)
        building.collect()
        return manifest


class _Work:
    """Passes 1 and 2, and for pass 3 what became of every passage."""

    def __init__(
        self,
        store: TokenStore,
        reader: Reader,
        how: Compression,
        scratch: Path,
        progress: Progress,
        cluster: Cluster | None,
    ) -> None:
        self.store, self.reader, self.how, self.scratch = store, reader, how, scratch
        self.progress, self.cluster = progress, cluster
        self.spec: StoreSpec = store.manifest.spec
        self.bits_bytes = self.spec.row_bytes - self.spec.scale_bytes
        vocabulary = reader.vocabulary
        self.share = shared_ids(vocabulary)
        self.counts = np.zeros(len(vocabulary), np.int64)
        self.positive = np.zeros((len(vocabulary), 8 * self.bits_bytes), np.int32)
        self.scales = np.zeros(len(vocabulary))
        self.spent: Counter[str] = Counter()
        self._count()
        self.tables = self._tables()
        self.rank = self.tables.rank_of()
        self.codebook = scratch / "codebook"
        self.codebook.touch()
        self.occurrences = self._merge() if how.ratio and not how.neighbours else None
        if how.neighbours:
            self.tables = replace(self.tables, neighbours=self._neighbours())
        if how.lossless:
            self.tables = replace(self.tables, model=self._model())

    # -- pass 1 -------------------------------------------------------------------------------

    def passages(
        self, stage: Stage, every: int = 1
    ) -> Iterator[tuple[list[PassageState], list[Ints]]]:
        """States and token ids of all passages, group by group, or of each so many-th group."""
        total = len(self.store)
        for first in range(0, total, every * GROUP):
            ordinals = range(first, min(total, first + GROUP))
            held = self.store.held_states(ordinals)
            there = [o for o, state in zip(ordinals, held, strict=True) if state is not None]
            states = [state for state in held if state is not None]
            ids = self.reader.token_ids(self.store.passages(there))
            for ordinal, state, row in zip(there, states, ids, strict=True):
                if len(state.rows) != len(row):
                    raise IncompatibleError(
                        "the reader's tokenizer cuts a passage otherwise than the store",
                        where=f"{self.store.path}, passage {ordinal}",
                        expected=f"{len(state.rows)} tokens", found=f"{len(row)}",
                    )  # fmt: skip
            if states:
                yield states, [np.asarray(row, np.int64) for row in ids]
            self.progress(stage, ordinals.stop, total)

    def _count(self) -> None:
        b = self.bits_bytes
        for states, ids in self.passages("counting"):
            flat = np.concatenate(ids)
            rows = np.concatenate([state.rows for state in states])
            self.counts += np.bincount(flat, minlength=len(self.counts))
            order = np.argsort(flat, kind="stable")
            found, firsts = np.unique(flat[order], return_index=True)
            signs = np.unpackbits(rows[order, :b], axis=1)
            self.positive[found] += np.add.reduceat(signs, firsts, axis=0, dtype=np.int32)
            if self.spec.scale_bytes:
                values = _scale_values(rows[order, b:], self.spec.kind)
                self.scales[found] += np.add.reduceat(values, firsts)

    def _tables(self) -> CodingTables:
        present = np.flatnonzero(self.counts)
        ids = present[np.argsort(-self.counts[present], kind="stable")]
        shared = self.share[ids] & self.how.stop_words
        shared[: self.how.top] = True
        own = ids[shared]
        rows = np.packbits(2 * self.positive[own] > self.counts[own, None], axis=1)
        if self.spec.scale_bytes:
            means = self.scales[own] / self.counts[own]
            rows = np.concatenate([rows, _scale_bytes(means, self.spec.kind)], axis=1)
        nothing = np.empty((0, self.bits_bytes), np.uint8)
        return CodingTables(
            ids, shared, rows, np.zeros(len(ids), np.int64), nothing, self.spec.scale_bytes
        )

    # -- pass 2 -------------------------------------------------------------------------------

    def _merge(self) -> OccurrenceFiles:
        """Merge the occurrences of ids that are not shared."""
        own = self.tables.ids[~self.tables.shared]
        occurrences = OccurrenceFiles(self.scratch, own, self.counts, self.bits_bytes)
        occurrences.scatter(
            (np.concatenate(ids), _bits(states, self.bits_bytes))
            for states, ids in self.passages("scattering")
        )
        groups = occurrences.merge(
            self.how.ratio, self.codebook, partial(self.progress, "merging"), self.cluster
        )
        sizes = groups[self.tables.ids]
        book: Bytes = np.empty((0, self.bits_bytes), np.uint8)
        if sizes.sum():
            book = np.memmap(self.codebook, np.uint8, "r").reshape(-1, self.bits_bytes)
        self.tables = replace(self.tables, groups=sizes, codebook=book)
        return occurrences

    def _neighbours(self) -> NeighbourModel | None:
        """Fit what tokens are worked out with; None if there is no id to work out.

        What an earlier compression fitted is kept if it has all bases: vectors that were worked out
        once come out the same again.
        """
        tables = self.tables
        based = tables.shared | ((self.counts[tables.ids] >= BASED) & (self.how.ratio > 0))
        if not based.any():
            return None
        owner = rows_of(based)
        earlier = self.store.coding
        if earlier is not None and earlier.neighbours is not None:
            rank_of, places = earlier.rank_of(), tables.ids[based]
            known = places < len(rank_of)
            before = np.where(known, rank_of[places * known], -1)
            rows = np.where(before >= 0, earlier.neighbours.owner[before], -1)
            if (rows >= 0).all():
                return replace(earlier.neighbours, owner=owner, base=earlier.neighbours.base[rows])
        fit = NeighbourFit(owner, self.spec.dim)
        every = max(1, len(self.store) // FITTED)
        for states, ids in self.passages("fitting", every):
            ranks = self.rank[np.concatenate(ids)]
            bits = _bits(states, self.bits_bytes)
            fit.add(bits, ~tables.shared[ranks], [len(row) for row in ids], ranks)
        own = tables.ids[based]
        return fit.model(2 * self.positive[own] / self.counts[own, None] - 1)

    def _model(self) -> BitModel:
        """Count what the bits of ids that are not shared are like."""
        tables = self.tables
        positive, counts = self.positive[tables.ids], self.counts[tables.ids]
        own = ~tables.shared
        prior = (positive[own].sum(0) + 1) / (counts[own].sum() + 2)
        classed = own & (counts >= CLASSED)
        classes = class_of(
            np.concatenate([np.zeros((1, len(prior)), np.int64), positive[classed]]),
            np.concatenate([[0], counts[classed]]), prior,
        )  # fmt: skip
        owner = np.where(classed, np.cumsum(classed), 0)
        rank = self.rank
        counted = np.zeros((CLASSES * DRIFTS, 2), np.int64)
        every = max(1, len(self.store) // SAMPLE)
        for states, ids in self.passages("modelling", every):
            for state, row in zip(states, ids, strict=True):
                places = np.flatnonzero(own[rank[row]])
                bits = np.unpackbits(state.rows[places, : self.bits_bytes], axis=1)
                kernels().tally(bits, classes[owner[rank[row[places]]]], counted, nominal())
        return BitModel(owner, classes, probabilities(counted))

    # -- pass 3 -------------------------------------------------------------------------------

    def records(self) -> Iterator[list[StateRecord]]:
        """Coded records of the states that are stored, group by group."""
        coder = Coder(self.tables)
        self.spent.update(coder.spent(()))
        for states, ids, groups in self._grouped():
            made = []
            for state, row, group in zip(states, ids, groups, strict=True):
                if len(row) > MOST_TOKENS:
                    made.append(state_record(state))
                    continue
                made.append(coder.encode(state, row, group)[0])
            self.spent.update(coder.spent(made))
            yield made

    def _grouped(self) -> Iterator[tuple[list[PassageState], list[Ints], list[Ints]]]:
        """States, token ids, and for each token its group as :meth:`Coder.encode` takes it."""
        pieces = self.passages("writing")
        if self.occurrences is None:
            for states, ids in pieces:
                yield states, ids, _left_out(self.tables, self.rank, states, ids, self.how.ratio)
            return
        flats = ((piece, np.concatenate(piece[1])) for piece in pieces)
        for (states, ids), merged in self.occurrences.gather(flats):
            yield states, ids, np.split(merged, np.cumsum([len(row) for row in ids])[:-1])


class Recompression:
    """What a compressed store would keep of other passages, had they been in its corpus.

    Tokens that have merged in the store have not here: they keep their own vectors.

    Args:
        manifest: Of the store.
        tables: Of the store.
        vocabulary: Number of token ids; those that the corpus lacks are like its rare ones.
    """

    def __init__(self, manifest: Manifest, tables: CodingTables, vocabulary: int) -> None:
        absent = np.setdiff1d(np.arange(vocabulary), tables.ids)
        neighbours = tables.neighbours
        if neighbours is not None:
            owner = np.concatenate([neighbours.owner, np.full(len(absent), -1)])
            neighbours = replace(neighbours, owner=owner)
        self.tables = replace(
            tables,
            ids=np.concatenate([tables.ids, absent]),
            shared=np.concatenate([tables.shared, np.zeros(len(absent), np.bool_)]),
            groups=np.concatenate([tables.groups, np.zeros(len(absent), np.int64)]),
            neighbours=neighbours,
            # What is coded without loss comes back as it was.
            model=None,
        )
        self.ratio = float(manifest.compression["ratio"])
        self._coder, self._rank = Coder(self.tables), self.tables.rank_of()

    def encode(self, states: Sequence[PassageState], ids: Sequence[Ints]) -> list[StateRecord]:
        """Coded records of states.

        Args:
            states: Of at most 65,535 tokens each.
            ids: ``[t]`` token ids of each.
        """
        groups = _left_out(self.tables, self._rank, states, ids, self.ratio)
        return [
            self._coder.encode(state, row, group)[0]
            for state, row, group in zip(states, ids, groups, strict=True)
        ]

    def decode(self, records: Sequence[StateRecord]) -> list[PassageState]:
        """What a reader of the store would be given for records from :meth:`encode`."""
        return [state for state in self._coder.decode(records) if state is not None]


def _left_out(
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
        bits = _bits(states, tables.bits_bytes)
        gone = tables.neighbours.guessed_best(bits, ~tables.shared[ranks], lengths, ranks, ratio)
    return np.split(gone.astype(np.int64) - 1, np.cumsum(lengths)[:-1])


def _bits(states: Sequence[PassageState], bits_bytes: int) -> Bytes:
    """The bits of passages' tokens, one after the other, without scales."""
    rows: Bytes = np.concatenate([state.rows for state in states])
    return rows[:, :bits_bytes]


def _write(building: Building, store: TokenStore, work: _Work) -> Manifest:
    """Pass 3: the shards and the coding file of the new generation."""
    base, root, generation = store.manifest, building.root, building.generation
    spec, store_id = base.spec, base.spec.store_id
    files.make_folder(root / SHARDS)
    records = (record for group in work.records() for record in group)
    number = base.shards[-1].number
    commits: list[ShardCommit] = []
    first = 0
    for shard in base.shards:
        number += 1
        ordinals = range(first, first + shard.passages)
        states = [
            record if record.is_absent else next(records)
            for record in store.state_records(ordinals)
        ]
        commits.append(
            write_shard_file(
                root / shard_name(number), spec, store_id, number, store.passages(ordinals),
                states, store.vectors_of(ordinals),
            )
        )  # fmt: skip
        first += shard.passages
    coding = root / coding_name(generation)
    write_coding(coding, spec, generation, work.tables, work.codebook)
    # The generation before is given up for this one: what can't be opened is not published.
    load_coding(coding, spec, generation, files.file_size(coding))
    manifest = replace(
        base,
        generation=generation,
        **shard_totals(commits),
        compression={
            "ratio": work.how.ratio,
            "top": work.how.top,
            "neighbours": work.tables.neighbours is not None,
            "shared_ids": int(work.tables.shared.sum()),
            "merged_vectors": int(work.tables.groups.sum()),
            "lossless": work.how.lossless,
            **work.spent,
        },
    )
    kept = [entry for entry in building.lasting_files()
            if not entry.name.startswith((SHARDS, CODING))]  # fmt: skip
    written = [*(shard_name(commit.shard) for commit in commits), coding_name(generation)]
    return building.seal(manifest, written, kept=kept, removed=building.removed())


def _scale_values(scales: Bytes, kind: str) -> NDArray[np.float64]:
    """``[n]`` scales, or the logarithms that stand for them."""
    packed = np.ascontiguousarray(scales)
    if kind == "bits+rms16":
        return packed.view("<f2")[:, 0].astype(np.float64)
    return packed[:, 0].astype(np.float64)


def _scale_bytes(means: NDArray[np.float64], kind: str) -> Bytes:
    """The inverse of :func:`_scale_values`, of means."""
    if kind == "bits+rms16":
        return means.astype("<f2")[:, None].view(np.uint8)
    return np.rint(means).astype(np.uint8)[:, None]
