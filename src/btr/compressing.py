"""Compress a store offline: no vector of their own for stop words and some others (section 5).

Passes over the store, each as a stream. 1: count token ids, and how often each dimension is
positive. 2: write the vectors of all ids that are not shared to files of a bounded size, id by id;
merge within each id; write the merged vectors to the codebook and each occurrence's group to a file
again. Or, beyond the method, fit on a sample what vectors are worked out with. 3: write the shards,
with every passage's groups read back in the order in which they were written. Memory holds one such
file, one shard and the counts of the vocabulary, whatever the corpus. ``btr.coding_shards`` is what
passes 1 and 3 do with a part of the store.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from btr import files
from btr.cluster import Cluster, map_on_cluster
from btr.coding_shards import (
    CodedShard,
    CodingJob,
    Counts,
    ShardCoder,
    TokenCounter,
    bits_of_states,
    code_shard,
    count_tokens,
    groups_of,
    left_out,
    parts_of,
    scale_bytes,
    states_of,
)
from btr.errors import UsageError
from btr.occurrences import OccurrenceFiles
from btr.readers.base import Reader
from btr.stop_words import shared_ids
from btr.store.building import Building, changing
from btr.store.coding import Coder
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
from btr.store.shard import StateRecord

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
        cluster: Count, merge and (where nothing merges) code there; None for this process alone.
            The store is the same.

    Returns:
        The new generation's manifest.

    Raises:
        UsageError: The store has no bits, a setting is out of range, or an addition is unfinished.
        IncompatibleError: Another reader's store.
        LockedError: Another process is changing the store.
        CorruptError: A record is damaged; the store is as it was.
        ResourceError: No space; the store is as it was.
    """
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
        self.bits_bytes = self.spec.state_bytes
        vocabulary = reader.vocabulary
        self.share = shared_ids(vocabulary)
        counts = self._count(Counts.nothing(len(vocabulary), 8 * self.bits_bytes))
        self.counts, self.positive, self.scales = counts.tokens, counts.positive, counts.scales
        self.tables = self._tables()
        self.rank = self.tables.rank_of()
        self.codebook = scratch / "codebook"
        self.codebook.touch()
        self.occurrences = self._merge() if how.ratio and not how.neighbours else None
        if how.neighbours:
            self.tables = replace(self.tables, neighbours=self._neighbours())
        if how.lossless:
            self.tables = replace(self.tables, model=self._model())

    def job(self, root: Path, generation: int) -> CodingJob:
        """For workers of a cluster."""
        reader = self.reader
        return CodingJob(str(self.store.path.absolute()), str(root.absolute()),
                         str(self.scratch.absolute()), generation, reader.name, reader.mode,
                         self.how.ratio)  # fmt: skip

    def passages(
        self, stage: Stage, every: int = 1
    ) -> Iterator[tuple[list[PassageState], list[Ints]]]:
        """States and token ids of all passages, group by group, or of each so many-th group."""
        total = len(self.store)
        for group in groups_of(range(total))[::every]:
            _, states, ids = states_of(self.store, self.reader, group)
            if states:
                yield states, ids
            self.progress(stage, group.stop, total)

    # -- pass 1 -------------------------------------------------------------------------------

    def _count(self, counts: Counts) -> Counts:
        total = len(self.store)
        done = 0
        if self.cluster is None:
            for part in parts_of(total):
                counts.add_counts(count_tokens(self.store, self.reader, part))
                self.progress("counting", part.stop, total)
            return counts
        rows = [{"first": part.start, "end": part.stop} for part in parts_of(total)]
        job = self.job(self.scratch, 0)
        counted: dict[int, Path] = {}
        for row in map_on_cluster(TokenCounter, rows, self.cluster, job.fields):
            counted[int(row["first"])] = Path(row["file"])
            done += int(row["end"]) - int(row["first"])
            self.progress("counting", done, total)
        # In the order of the parts: sums of scales are rounded.
        for _, file in sorted(counted.items()):
            counts.add_saved(file)
        return counts

    def _tables(self) -> CodingTables:
        present = np.flatnonzero(self.counts)
        ids = present[np.argsort(-self.counts[present], kind="stable")]
        shared = self.share[ids] & self.how.stop_words
        shared[: self.how.top] = True
        own = ids[shared]
        rows = np.packbits(2 * self.positive[own] > self.counts[own, None], axis=1)
        if self.spec.scale_bytes:
            means = self.scales[own] / self.counts[own]
            rows = np.concatenate([rows, scale_bytes(means, self.spec.scale_bytes)], axis=1)
        nothing = np.empty((0, self.bits_bytes), np.uint8)
        return CodingTables(
            ids, shared, rows, np.zeros(len(ids), np.int64), nothing, self.spec.scale_bytes,
            self.spec.id_bytes,
        )  # fmt: skip

    # -- pass 2 -------------------------------------------------------------------------------

    def _merge(self) -> OccurrenceFiles:
        """Merge the occurrences of ids that are not shared."""
        own = self.tables.ids[~self.tables.shared]
        occurrences = OccurrenceFiles(self.scratch, own, self.counts, self.bits_bytes)
        occurrences.scatter(
            (np.concatenate(ids), bits_of_states(states, self.bits_bytes))
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
            bits = bits_of_states(states, self.bits_bytes)
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
            np.concatenate([np.zeros((1, len(prior)), np.int32), positive[classed]]),
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
        groups = left_out(self.tables, self._rank, states, ids, self.ratio)
        return [
            self._coder.encode(state, row, group)[0]
            for state, row, group in zip(states, ids, groups, strict=True)
        ]

    def decode(self, records: Sequence[StateRecord]) -> list[PassageState]:
        """What a reader of the store would be given for records from :meth:`encode`."""
        return [state for state in self._coder.decode(records) if state is not None]


def _write(building: Building, store: TokenStore, work: _Work) -> Manifest:
    """Pass 3: the coding file and the shards of the new generation."""
    base, root, generation = store.manifest, building.root, building.generation
    spec, tables = base.spec, work.tables
    files.make_folder(root / SHARDS)
    coding = root / coding_name(generation)
    write_coding(coding, spec, generation, tables, work.codebook)
    # The generation before is given up for this one: what can't be opened is not published.
    tables = load_coding(coding, spec, generation, files.file_size(coding))
    ends = list(accumulate(shard.passages for shard in base.shards))
    rows = [
        {"number": number, "first": end - shard.passages, "end": end}
        for number, (shard, end) in enumerate(
            zip(base.shards, ends, strict=True), base.shards[-1].number + 1
        )
    ]
    coded: dict[int, CodedShard] = {}
    written = 0
    for number, shard in _coded(building, store, work, tables, rows):
        coded[number] = shard
        written += shard.commit.passages
        work.progress("writing", written, len(store))
    spent: Counter[str] = Counter()
    for shard in coded.values():
        spent.update(shard.spent)
    manifest = replace(
        base,
        generation=generation,
        **shard_totals([coded[row["number"]].commit for row in rows]),
        compression={
            "ratio": work.how.ratio,
            "top": work.how.top,
            "neighbours": tables.neighbours is not None,
            "shared_ids": int(tables.shared.sum()),
            "merged_vectors": int(tables.groups.sum()),
            "lossless": work.how.lossless,
            **spent,
        },
    )
    kept = [entry for entry in building.lasting_files()
            if not entry.name.startswith((SHARDS, CODING))]  # fmt: skip
    new = [*(shard_name(row["number"]) for row in rows), coding_name(generation)]
    return building.seal(manifest, new, kept=kept, removed=building.removed())


def _coded(
    building: Building,
    store: TokenStore,
    work: _Work,
    tables: CodingTables,
    rows: list[dict[str, int]],
) -> Iterator[tuple[int, CodedShard]]:
    """Write the shards, on a cluster in any order; their numbers, and what became of each."""
    if work.cluster is not None and work.occurrences is None:
        job = work.job(building.root, building.generation)
        for done in map_on_cluster(ShardCoder, rows, work.cluster, job.fields):
            yield int(done["number"]), CodedShard(ShardCommit(**done["commit"]), done["spent"])
        return
    coder = Coder(tables)
    gathering = nullcontext(None) if work.occurrences is None else work.occurrences.gathering()
    with gathering as merged:
        for row in rows:
            number, ordinals = row["number"], range(row["first"], row["end"])
            shard = code_shard(
                store, work.reader, coder, work.how.ratio, ordinals,
                building.root / shard_name(number), number, merged,
            )  # fmt: skip
            yield number, shard
