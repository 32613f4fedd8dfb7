"""Repair a store from its sources: what is damaged is read and encoded again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from btr.data.ledger import Ledger
from btr.data.plan import plan_sources
from btr.data.sources import read_passages
from btr.encoding import batches, shard_states
from btr.errors import IncompatibleError
from btr.indexing import sources_digest
from btr.readers.load import load_store_reader
from btr.retrieval.dense import Embedder, quantize
from btr.retrieval.hybrid import build_indexes
from btr.store.format import Manifest, mapping_difference
from btr.store.repair import Shard, repair


def repair_store(
    sources: Sequence[Path],
    path: Path,
    *,
    embedder: Embedder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Make damaged files of a store again and put them in their place.

    All sources are read, but only the passages of damaged shards are encoded. Memory holds a shard.

    Args:
        sources: Those that the store was built from.
        path: The store, as it was built: nothing added, removed or compressed.
        embedder: For dense retrieval; None loads the default one.
        progress: Called with (bytes of sources read, bytes in all).

    Returns:
        Names of the mended files.

    Raises:
        IncompatibleError: The sources are others, or the reader that the store names is by now.
        UsageError, InputError, CorruptError, LockedError, ResourceError: As
            :func:`btr.store.repair.repair` and the reading of sources raise them.
    """

    def remake(manifest: Manifest, numbers: list[int]) -> Iterator[Shard]:
        spec = manifest.spec
        reader = load_store_reader(spec.settings)
        found = mapping_difference(reader.fingerprint, spec.fingerprint)
        if found is not None:
            name, readers, stores = found
            raise IncompatibleError(f"another reader has built this store: {name} differs",
                                    where=str(path), expected=stores, found=readers)  # fmt: skip
        plan = plan_sources(sources)
        digest = sources_digest(plan.digest(progress), None)
        if digest != spec.sources_digest:
            raise IncompatibleError("the store was built from other sources", where=str(path),
                                    expected=spec.sources_digest, found=digest,
                                    todo="give those that it was built from, as they were",
                                    )  # fmt: skip
        encoder = embedder or Embedder()
        passages = read_passages(plan, options=None, ledger=Ledger(), progress=progress)
        for number, shard in enumerate(batches(passages, spec.passages_per_shard)):
            if number in numbers:
                vectors = quantize(encoder.encode_passages(shard))
                yield number, shard, shard_states(reader, shard), vectors

    return repair(path, remake, build_indexes)
