"""What building a store will take: read the sources, encode a sample, and reckon."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from btr import files
from btr.data.ledger import Ledger
from btr.data.passages import Passage
from btr.data.plan import plan_sources
from btr.data.sources import read_passages
from btr.encoding import GROUP_PASSAGES
from btr.errors import InputError
from btr.indexing import SHARD_PASSAGES, spec_of
from btr.readers.base import Reader
from btr.retrieval import lexical
from btr.retrieval.dense import Embedder
from btr.store.ids import build_ids
from btr.store.shard import HEADER_BYTES, SHORTEST_STATE, encode_passage

READ_SECONDS = 120.0
"""How long sources are read; what is left then is reckoned by its bytes."""

SAMPLE = 20_000
"""Passages of which the indexes are built."""

TOKENIZED = 2_048
"""Passages of the sample that are tokenised."""

EMPTY_IDS = 8_192
"""Bytes of an id table with nothing in it: two pages."""

ENCODED_GROUPS = 3
"""Groups of passages that are encoded; the first is not timed."""


@dataclass(frozen=True, slots=True)
class BuildEstimate:
    """What a build will take.

    Attributes:
        passages: In the store.
        tokens: With a state.
        bytes: Of the store, by part as ``btr info`` counts them.
        read_bytes: Of the sources that were read for this; ``source_bytes`` are all.
        source_bytes: Of all sources.
        hours: On this machine.
        passages_per_s: Encoded by reader and sentence encoder on this machine.
        gpu_hours: Hours of one GPU for the encoding, at the rate that was assumed.
    """

    passages: int
    tokens: int
    bytes: dict[str, int]
    read_bytes: int
    source_bytes: int
    hours: float
    passages_per_s: float
    gpu_hours: float


def estimate_build(
    sources: Sequence[Path],
    reader: Reader,
    *,
    embedder: Embedder | None = None,
    tflops: float = 200.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BuildEstimate:
    """Reckon what ``build_index`` would make of sources; only a scratch folder is written.

    Args:
        sources: Files and folders.
        reader: A ``btr`` or ``decomposed`` reader.
        embedder: For dense retrieval; None loads the default one.
        tflops: What a GPU does in this work, 10^12 operations a second.
        progress: Called with source bytes read and in all.

    Raises:
        UsageError: A plain reader.
        InputError: There are no passages in the sources.
    """
    embedder = embedder or Embedder()
    spec = spec_of(reader, embedder, "", None, SHARD_PASSAGES)
    plan = plan_sources(sources)
    done = 0

    def read(now: int, total: int) -> None:
        nonlocal done
        done = now
        progress(now, total)

    draw = random.Random(0)  # noqa: S311 -- a sample, no secret
    kept: list[Passage] = []
    count = text_bytes = 0
    began = time.perf_counter()
    whole = True
    with Ledger(max_rejects=1 << 62) as ledger:
        for passage in read_passages(plan, ledger=ledger, progress=read):
            count += 1
            text_bytes += len(encode_passage(0, passage))
            if len(kept) < SAMPLE:
                kept.append(passage)
            elif (place := draw.randrange(count)) < SAMPLE:
                kept[place] = passage
            if time.perf_counter() - began > READ_SECONDS:
                whole = False
                break
    if not kept:
        raise InputError("no passages in the sources", where=str(sources[0]))
    reading_s = time.perf_counter() - began
    share = 1.0 if whole or not done else done / plan.total_bytes
    passages = round(count / share)
    draw.shuffle(kept)
    lengths = [len(ids) for ids in reader.token_ids(kept[:TOKENIZED])]
    tokens = round(passages * sum(lengths) / len(lengths))
    with tempfile.TemporaryDirectory() as scratch:
        indexing_s, lexical_bytes, id_bytes = _index(Path(scratch), kept, passages)
    rate = _encoding_rate(reader, embedder, kept)
    shards = -(-passages // SHARD_PASSAGES)
    table = 8 * (passages + shards) + 4 * shards
    sizes = {
        "bits": tokens * spec.state_bytes + SHORTEST_STATE * passages + table,
        "scales": tokens * spec.scale_bytes,
        "refs": tokens * spec.id_bytes,
        "index": round(lexical_bytes) + passages * embedder.dim + 4 * shards,
        "text": round(text_bytes / share) + table + round(id_bytes),
        "manifest": HEADER_BYTES * shards,
    }
    hours = (passages / rate + reading_s / share + indexing_s) / 3600
    flop = tokens * 2 * (reader.lower_parameters + embedder.parameters)
    return BuildEstimate(
        passages, tokens, sizes, min(done, plan.total_bytes) if not whole else plan.total_bytes,
        plan.total_bytes, hours, rate, flop / (tflops * 1e12) / 3600,
    )  # fmt: skip


def _index(scratch: Path, kept: Sequence[Passage], passages: int) -> tuple[float, float, float]:
    """Seconds and bytes of the lexical index, and bytes of the id table, of ``passages`` passages.

    The index is built twice, of a part of the sample and of all: what grows with the passages is
    told from what does not.
    """
    sizes, seconds = [], []
    counts = [max(1, len(kept) // 4), len(kept)]
    for n in counts:
        folder = scratch / str(n)
        began = time.perf_counter()
        lexical.build(folder, kept[:n])
        seconds.append(time.perf_counter() - began)
        sizes.append(sum(files.file_size(folder / name) for name, _ in files.list_tree(folder)))
        if len(kept) < 4:
            break
    build_ids(scratch / "ids", (passage.id for passage in kept))
    size = files.file_size(scratch / "ids")
    ids = EMPTY_IDS + (size - EMPTY_IDS) * passages / len(kept)
    if len(sizes) < 2 or passages <= len(kept):
        return seconds[-1] * passages / len(kept), sizes[-1] * passages / len(kept), ids
    slope = (sizes[1] - sizes[0]) / (counts[1] - counts[0])
    more = passages - counts[1]
    return seconds[1] * passages / counts[1], sizes[1] + slope * more, ids


def _encoding_rate(reader: Reader, embedder: Embedder, kept: Sequence[Passage]) -> float:
    """Passages a second through reader and sentence encoder."""
    done, seconds = 0, 0.0
    for i in range(ENCODED_GROUPS):
        group = kept[i * GROUP_PASSAGES : (i + 1) * GROUP_PASSAGES] or kept[:GROUP_PASSAGES]
        began = time.perf_counter()
        reader.encode(group)
        embedder.encode_passages(group)
        if i:  # the first call loads and tunes
            done += len(group)
            seconds += time.perf_counter() - began
    return done / seconds
