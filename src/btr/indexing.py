"""Build a store: read sources, encode passages shard by shard, index them for retrieval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

import btr
from btr import files
from btr.cluster import Cluster, EncodeJob, encode_on_cluster
from btr.data.ledger import Ledger
from btr.data.passages import Passage
from btr.data.plan import plan_sources
from btr.data.sources import IngestOptions, read_passages
from btr.encoding import batches, shard_states
from btr.errors import BtrError, InputError, UsageError
from btr.machine import dtype_name
from btr.readers.base import Reader
from btr.retrieval.dense import Embedder, quantize
from btr.retrieval.hybrid import build_indexes
from btr.store.format import Manifest, PassageState, StoreSpec
from btr.store.names import rejects_name
from btr.store.reader import TokenStore
from btr.store.writer import StoreWriter

SHARD_PASSAGES = 2048
_NOTES = 10

Stage = Literal["hashing sources", "encoding", "indexing"]


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """Where a build stands.

    Attributes:
        stage: What is being done.
        passages: Encoded by this run.
        tokens: Of these passages.
        skipped: Passages that an earlier run has committed.
        source_bytes: Read so far in this stage, of ``total_bytes``.
        total_bytes: Size of all sources.
    """

    stage: Stage
    passages: int
    tokens: int
    skipped: int
    source_bytes: int
    total_bytes: int


def build_index(
    sources: Sequence[Path],
    output: Path,
    reader: Reader,
    *,
    embedder: Embedder | None = None,
    options: IngestOptions | None = None,
    max_rejects: int = 0,
    resume: bool = False,
    add: bool = False,
    replace_known: bool = False,
    cluster: Cluster | None = None,
    stateful: NDArray[np.bool_] | None = None,
    progress: Callable[[IndexProgress], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    shard_passages: int = SHARD_PASSAGES,
) -> Manifest:
    """Read sources and build a store with a reader's states, or add to one.

    Memory holds one shard of passages, whatever the size of the sources. A build that was killed
    goes on with ``resume`` and ends in the same bytes.

    Args:
        sources: Files and folders.
        output: The store's folder; it appears when everything is in it. To be added to, it must be
            there; passages that it has already, by id and text, are passed over.
        reader: A ``btr`` or ``decomposed`` reader.
        embedder: For dense retrieval; None loads the default one.
        options: How sources are read.
        max_rejects: How many lines and documents may be unusable.
        resume: Go on with a build that was interrupted.
        add: To a store that is there.
        cluster: Encode there; None for this process alone. The store is the same.
        stateful: ``[N]`` which passages get states, by ordinal; None for all. Those of the others
            are made when a question needs them.
        replace_known: A passage whose id the store has with another text takes its place.
        progress: Called now and then.
        note: Called at the end with lines about skipped files and the like.
        shard_passages: Passages in a shard.

    Returns:
        The manifest of the finished store.

    Raises:
        UsageError: A plain reader, or ``output`` exists (or, to be added to, does not), or an
            unfinished build is there.
        InputError: A source cannot be read, there are no passages in the sources, or the store has
            another passage of the same id.
        IncompatibleError: The build to resume has other sources or settings.
        LockedError: Another process is building the same store.
        ResourceError: Out of disk or memory; what was committed is intact.
        RejectsError: The store is finished, but more was rejected than allowed.
    """
    state = IndexProgress("hashing sources", 0, 0, 0, 0, 0)

    def report(**changes: object) -> None:
        nonlocal state
        state = replace(state, **changes)  # type: ignore[arg-type]
        progress(state)

    plan = plan_sources(sources)
    digest = plan.digest(lambda done, total: report(source_bytes=done, total_bytes=total))
    if stateful is not None:
        if cluster is not None:
            raise UsageError("a cluster makes the states of all passages",
                             todo="leave out the choice of states, or the cluster")  # fmt: skip
        # A build goes on with the choice that it was begun with.
        digest += f" states of {sha256(np.packbits(stateful).tobytes()).hexdigest()}"
    embedder = embedder or Embedder()
    spec = spec_of(reader, embedder, digest, options, shard_passages)
    rejects = output.with_name(output.name + ".rejects.jsonl")
    with StoreWriter.create(output, spec, resume=resume, add=add) as writer:
        # Opened under the store's lock: two builds of one store must not share the file.
        with Ledger(rejects, max_rejects=max_rejects) as ledger:
            try:
                known = _Known(output, replace_known) if add else None
                report(stage="encoding", skipped=writer.committed, source_bytes=0)
                passages = read_passages(
                    plan, options=options, ledger=ledger,
                    progress=lambda done, total: report(source_bytes=done, total_bytes=total),
                )  # fmt: skip
                if known is not None:
                    passages = known.others(passages)
                # What is committed is read again and passed over: the account covers everything.
                shards = batches(islice(passages, writer.committed, None), shard_passages)

                def encoded(more: int, tokens: int) -> None:
                    report(passages=state.passages + more, tokens=state.tokens + tokens)

                if cluster is not None:
                    job = EncodeJob.of(writer, spec, reader, cluster.threads)
                    encode_on_cluster(writer, shards, job, cluster, encoded)
                else:
                    for shard in shards:
                        states = _chosen_states(reader, shard, writer.committed, stateful, encoded)
                        vectors = quantize(embedder.encode_passages(shard))
                        writer.write_shard(shard, states, vectors)
            except BaseException:
                # A build that has nothing would only be in the way of the next one.
                if not writer.committed:
                    with suppress(BtrError):
                        writer.discard()
                raise
            finally:
                if not ledger.counts["rejected"]:
                    files.remove(rejects)
        report(stage="indexing", source_bytes=state.total_bytes)
        counts = ledger.counts
        kept = rejects if counts["rejected"] else None
        if known is None:
            manifest = writer.finish(counts, build_indexes, kept)
        elif writer.committed:
            counts["known"] = known.count
            manifest = writer.finish(counts, build_indexes, kept, replaced=known.replaced)
        else:
            manifest = known.manifest
            writer.discard()
    files.remove(rejects)
    for line in _notes(ledger):
        note(line)
    if counts["rejected"]:
        # Where the error below is to send the user.
        ledger.rejects = output / rejects_name(manifest.generation)
    ledger.check()
    return manifest


def _chosen_states(
    reader: Reader,
    shard: Sequence[Passage],
    first: int,
    stateful: NDArray[np.bool_] | None,
    encoded: Callable[[int, int], None],
) -> list[PassageState | None]:
    """States of the passages of a shard that are to have one."""
    if stateful is None:
        return [*shard_states(reader, shard, encoded)]
    chosen = stateful[first : first + len(shard)].tolist()
    kept = [passage for passage, yes in zip(shard, chosen, strict=True) if yes]
    made = iter(shard_states(reader, kept, encoded))
    return [next(made) if yes else None for yes in chosen]


def sources_digest(digest: str, options: IngestOptions | None) -> str:
    """What a store says of its sources: their digest and how they were read."""
    return f"{digest} {options or IngestOptions()}"


def spec_of(
    reader: Reader,
    embedder: Embedder,
    digest: str,
    options: IngestOptions | None,
    shard_passages: int,
) -> StoreSpec:
    """What is going to be built; all that decides a byte of it is in here.

    Args:
        reader: Makes the states.
        embedder: Makes the dense vectors.
        digest: Of the sources.
        options: How sources are read.
        shard_passages: Passages in a shard.

    Raises:
        UsageError: A plain reader.
    """
    if reader.mode == "plain":
        raise UsageError("a plain reader has no states to store", where=reader.name,
                         todo="use its decomposed or btr checkpoint")  # fmt: skip
    return StoreSpec(
        kind=reader.store_kind,
        dim=reader.width,
        split_layer=reader.split_layer,
        fingerprint=reader.fingerprint,
        dense_dim=embedder.dim,
        passages_per_shard=shard_passages,
        sources_digest=sources_digest(digest, options),
        settings={
            "reader": reader.name,
            "mode": reader.mode,
            "dtype": dtype_name(reader.dtype),
            "btr": btr.__version__,
            **embedder.fingerprint,
        },
    )


class _Known:
    """The passages of a store that is added to.

    Args:
        store: The store's folder.
        replace: Let another text of the same id take the old one's place.

    Attributes:
        count: Passages that were there already.
        replaced: Ordinals of those whose place is taken.
    """

    def __init__(self, store: Path, replace: bool) -> None:
        self._store, self._replace = TokenStore.open(store), replace
        self.manifest = self._store.manifest
        self.count = 0
        self.replaced: list[int] = []

    def others(self, passages: Iterator[Passage]) -> Iterator[Passage]:
        """Those that the store does not have.

        Raises:
            InputError: It has one of the same id and another text, which may not be replaced.
        """
        with self._store as store:
            for passage in passages:
                ordinal = store.find(passage.id)
                if ordinal is None:
                    yield passage
                    continue
                (old,) = store.passages([ordinal])
                if (old.title, old.text) == (passage.title, passage.text):
                    self.count += 1
                elif self._replace:
                    self.replaced.append(ordinal)
                    yield passage
                else:
                    raise InputError("the store has another passage of this id",
                                     where=f"id {passage.id!r}", expected=repr(old.text[:80]),
                                     found=repr(passage.text[:80]),
                                     todo="give it another id, or add with --replace",
                                     )  # fmt: skip


def _notes(ledger: Ledger) -> Iterator[str]:
    """What a user should know that is no error."""
    for name, reason in ledger.skipped[:_NOTES]:
        yield f"skipped {name}: {reason}"
    more = ledger.counts["skipped_files"] - _NOTES
    if more > 0:
        yield f"and {more} more files skipped"
    yield from ledger.warnings[:_NOTES]
    if ledger.ignored_fields:
        names = ", ".join(f"{n} ({c})" for n, c in ledger.ignored_fields.most_common(_NOTES))
        yield f"fields that are not used: {names}"
    if ledger.counts["duplicates"]:
        yield f"{ledger.counts['duplicates']} records given twice were stored once"
