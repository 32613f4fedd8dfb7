"""What matching in blocks loses: ids with more occurrences than are compared with each other.

``btr compress --paper`` compares all occurrences of a token id with each other, up to
:data:`btr.occurrences.BLOCK`; of more only those that lie together along one direction. This takes
the ids of a store with the most occurrences and merges them both ways.

Run as ``python -m btr.bench.matching --help``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from btr.bits import hamming
from btr.coding_shards import bits_of_states, groups_of, states_of
from btr.errors import one_line_errors
from btr.occurrences import BLOCK, blocks_of, merge_occurrences
from btr.readers.base import Reader
from btr.readers.load import load_store_reader
from btr.stop_words import shared_ids
from btr.store.reader import TokenStore

Bytes = NDArray[np.uint8]

AT_ONCE = 256
"""Vectors that are compared with all others at a time."""

SAMPLE = 4_096
"""Vectors whose nearest is looked for."""


@dataclass(frozen=True, slots=True)
class BlockedMatching:
    """Both ways of one token id.

    Attributes:
        token: The id's text.
        occurrences: Of it.
        recall: Share of vectors that are compared with their nearest (or one as near), of a sample.
        distance: Mean bits between a vector and the nearest that it is compared with.
        nearest: Mean bits between a vector and the nearest of all.
        changed: Share of all bits of the id that merging changes, in blocks.
        changed_whole: The same if all are compared.
    """

    token: str
    occurrences: int
    recall: float
    distance: float
    nearest: float
    changed: float
    changed_whole: float


def vectors_of_ids(store: TokenStore, reader: Reader, ids: Sequence[int]) -> dict[int, Bytes]:
    """All vectors of token ids, ``[n, b]`` each, in the order of the passages."""
    spec = store.manifest.spec
    found: dict[int, list[Bytes]] = {token: [] for token in ids}
    for group in groups_of(range(len(store))):
        _, states, rows = states_of(store, reader, group)
        if not states:
            continue
        flat = np.concatenate(rows)
        bits = bits_of_states(states, spec.state_bytes)
        for token, parts in found.items():
            parts.append(bits[flat == token])
    return {token: np.concatenate(parts) for token, parts in found.items()}


def measure(token: str, rows: Bytes, ratio: float) -> BlockedMatching:
    """Match one id's vectors in blocks and all together.

    Args:
        token: Its text.
        rows: ``[n, b]`` its vectors.
        ratio: Share to lose.
    """
    block = np.empty(len(rows), np.int64)
    for number, places in enumerate(blocks_of(rows)):
        block[places] = number
    draw = np.random.default_rng(0).permutation(len(rows))[:SAMPLE]
    nearest, inside = [], []
    for some in np.array_split(draw, -(-len(draw) // AT_ONCE)):
        distances = hamming(rows[some], rows).astype(np.int32)
        distances[np.arange(len(some)), some] = np.iinfo(np.int32).max
        nearest.append(distances.min(1))
        apart = block[some][:, None] != block
        inside.append(np.where(apart, np.iinfo(np.int32).max, distances).min(1))
    best, found = np.concatenate(nearest), np.concatenate(inside)
    return BlockedMatching(
        token, len(rows), round(float((best == found).mean()), 4),
        round(float(found.mean()), 2), round(float(best.mean()), 2),
        round(_changed(rows, ratio, BLOCK), 5), round(_changed(rows, ratio, len(rows)), 5),
    )  # fmt: skip


def _changed(rows: Bytes, ratio: float, block: int) -> float:
    """Share of the bits that merging changes."""
    merged, groups = merge_occurrences(rows, ratio, block)
    inside = groups >= 0
    return float(np.unpackbits(rows[inside] ^ merged[groups[inside]]).sum()) / (8 * rows.size)


@one_line_errors
def main() -> int:
    """Measure the most frequent ids of a store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--ids", type=int, default=4, help="so many of the most frequent")
    parser.add_argument("--ratio", type=float, default=0.2)
    given = parser.parse_args()
    with TokenStore.open(given.store) as store:
        reader = load_store_reader(store.manifest.spec.settings)
        counts = np.zeros(len(reader.vocabulary), np.int64)
        for group in groups_of(range(len(store))):
            flat = np.concatenate([np.asarray(i) for i in reader.token_ids(store.passages(group))])
            counts += np.bincount(flat, minlength=len(counts))
        counts[shared_ids(reader.vocabulary)] = 0
        chosen = np.argsort(-counts, kind="stable")[: given.ids].tolist()
        for token, rows in vectors_of_ids(store, reader, chosen).items():
            found = measure(reader.vocabulary[token], rows, given.ratio)
            print(json.dumps(asdict(found)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
