"""Coding tables and states of all kinds, drawn at random."""

from __future__ import annotations

import numpy as np

from btr.store import PassageState
from btr.store.coding_tables import CodingTables
from btr.store.entropy import CLASSES, DRIFTS, SCALE, BitModel
from btr.store.neighbours import NeighbourModel

BITS = 3


def tables(
    ids: int,
    scale_bytes: int,
    seed: int = 0,
    *,
    id_bytes: int = 0,
    lossless: bool = False,
    beside: bool = False,
) -> CodingTables:
    """Of ``ids`` token ids, a third of them shared, groups of all sizes among the others."""
    draw = np.random.default_rng(seed)
    shared = draw.random(ids) < 1 / 3
    groups = np.where(shared, 0, draw.choice([0, 1, 5, 256, 257, 700], ids))
    model = None
    if lossless:
        owns = draw.random(ids) < 0.5
        model = BitModel(
            np.where(owns, np.cumsum(owns), 0),
            draw.integers(0, CLASSES, (int(owns.sum()) + 1, 8 * BITS), np.uint8),
            draw.integers(1, SCALE, CLASSES * DRIFTS).astype(np.uint16),
        )
    neighbours = None
    if beside:
        based = shared | (draw.random(ids) < 0.3)
        neighbours = NeighbourModel(
            np.where(based, np.cumsum(based) - 1, -1),
            draw.integers(-127, 128, (int(based.sum()), 8 * BITS)).astype(np.int8),
            draw.integers(1, 30, 8 * BITS).astype(np.uint8),
            draw.random(8 * BITS).astype(np.float32) / 200,
            draw.integers(-127, 128, (8 * BITS, 8 * BITS)).astype(np.int8),
            draw.integers(-127, 128, (8 * BITS, 8 * BITS)).astype(np.int8),
        )
    return CodingTables(
        draw.permutation(ids + 7)[:ids], shared,
        draw.integers(0, 256, (int(shared.sum()), BITS + scale_bytes), np.uint8), groups,
        draw.integers(0, 256, (int(groups.sum()), BITS), np.uint8), scale_bytes, id_bytes, model,
        neighbours,
    )  # fmt: skip


def states(
    of: CodingTables, n: int, seed: int = 1
) -> list[tuple[PassageState, np.ndarray, np.ndarray]]:
    """Random states, their ids, and the groups that their tokens were merged into."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(n):
        t = int(draw.integers(0, 40)) if i else 0
        rank = draw.integers(0, len(of.ids), t)
        groups = np.where(draw.random(t) < 0.4, draw.integers(0, 1 << 30, t), -1)
        groups = np.where(of.groups[rank] > 0, groups % np.maximum(of.groups[rank], 1), -1)
        if of.neighbours is not None:  # an id without groups can be left out
            groups[(of.groups[rank] == 0) & (of.neighbours.owner[rank] >= 0)] = 0
        groups = np.where(draw.random(t) < 0.5, groups, -1)
        rows = draw.integers(0, 256, (t, BITS + of.scale_bytes), np.uint8)
        if of.id_bytes:
            rows = np.concatenate(
                [rows, of.ids[rank].astype("<u2")[:, None].view(np.uint8)], axis=1
            )
        state = PassageState(rows, int(draw.integers(0, t + 1)), bool(draw.random() < 0.3))
        made.append((state, of.ids[rank], groups))
    return made
