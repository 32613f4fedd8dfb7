"""Shared tokens worked out from their neighbours: a loop agrees, and the fit finds the rule."""

from __future__ import annotations

import numpy as np
import pytest

from btr.store.neighbours import (
    EXACT,
    LARGEST,
    LARGEST_BASE,
    WEIGHTS,
    NeighbourFit,
    NeighbourModel,
    both_sides,
)


def passages(
    draw: np.random.Generator, lengths: list[int], width: int, ids: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random rows, which of them are shared, and the shared ones' ids."""
    total = sum(lengths)
    shared = draw.random(total) < 0.4
    rows = draw.integers(0, 256, (total, width), np.uint8)
    return rows, shared, draw.integers(0, ids, int(shared.sum()))


def test_neighbours_are_the_nearest_stored_tokens_of_the_passage() -> None:
    shared = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1], bool)
    left, right = both_sides(shared, [4, 2, 2, 3])
    w = WEIGHTS
    found_left, found_right = (
        [int(p) if v else None for p, v in zip(side.stored[side.which], side.weights, strict=True)]
        for side in (left, right)
    )
    assert found_left == [None, None, 2, None, None, None, 9]
    assert found_right == [2, 2, None, None, None, 9, None]
    assert right.weights.tolist() == [w[1], w[0], 0, 0, 0, w[0], 0]


@pytest.mark.parametrize("shared", [True, False])
def test_passages_of_one_kind_of_token(shared: bool) -> None:
    model = NeighbourModel(np.array([[1] * 8, [-1] * 8], np.int16),
                           np.ones((8, 8), np.int8), np.ones((8, 8), np.int8))  # fmt: skip
    rows, flags = np.full((5, 1), 255, np.uint8), np.full(5, shared)
    which = np.array([0, 1, 0, 1, 1]) if shared else np.empty(0, np.int64)
    assert model.bits(rows, flags, [2, 3], which)[:, 0].tolist() == (
        [255, 0, 255, 0, 0] if shared else []
    )


def test_the_bits_do_not_depend_on_what_is_read_together() -> None:
    draw, lengths = np.random.default_rng(0), [0, 7, 1, 30, 12, 0, 90]
    rows, shared, which = passages(draw, lengths, 6, 9)
    model = NeighbourModel(
        draw.integers(-LARGEST_BASE, LARGEST_BASE, (9, 48)).astype(np.int16),
        draw.integers(-LARGEST, LARGEST, (48, 48)).astype(np.int8),
        draw.integers(-LARGEST, LARGEST, (48, 48)).astype(np.int8),
    )
    together = model.bits(rows, shared, lengths, which)
    apart, at, seen = [], 0, 0
    for length in lengths:
        flags = shared[at : at + length]
        mine = which[seen : seen + int(flags.sum())]
        apart.append(model.bits(rows[at : at + length], flags, [length], mine))
        at, seen = at + length, seen + len(mine)
    assert np.array_equal(together, np.concatenate(apart))


def test_float32_counts_to_every_score() -> None:
    # Two sides, each a weight times D products of a factor (-128 is the widest int8) and a sign.
    assert 2 * int(WEIGHTS.max()) * 128 * EXACT + 32_768 < 1 << 24


def test_the_fit_finds_the_rule_that_made_the_bits() -> None:
    draw, width, ids = np.random.default_rng(1), 4, 5
    true = NeighbourModel(
        draw.integers(-400, 400, (ids, 8 * width)).astype(np.int16),
        draw.integers(-20, 20, (8 * width, 8 * width)).astype(np.int8),
        draw.integers(-20, 20, (8 * width, 8 * width)).astype(np.int8),
    )
    fit = NeighbourFit(ids, 8 * width)
    sums, counts = np.zeros((ids, 8 * width)), np.zeros(ids)
    for _ in range(20):
        lengths = draw.integers(1, 60, 30).tolist()
        rows, shared, which = passages(draw, lengths, width, ids)
        rows[shared] = true.bits(rows, shared, lengths, which)
        fit.add(rows, shared, lengths, which)
        np.add.at(sums, which, 2.0 * np.unpackbits(rows[shared], axis=1) - 1)
        counts += np.bincount(which, minlength=ids)
    means = sums / counts[:, None]
    found = fit.model(means)
    rows, shared, which = passages(draw, lengths, width, ids)
    wanted = true.bits(rows, shared, lengths, which)
    majority = np.packbits(means[which] >= 0, axis=1)

    def error(bits: np.ndarray) -> float:
        return float(np.unpackbits(bits ^ wanted, axis=1).mean())

    assert error(found.bits(rows, shared, lengths, which)) < 0.25 * error(majority)


def test_an_id_that_was_not_looked_at_keeps_its_mean() -> None:
    fit = NeighbourFit(2, 8)
    rows = np.array([[255], [0], [0]], np.uint8)
    fit.add(rows, np.array([False, True, False]), [3], np.array([0]))
    model = fit.model(np.array([[-1.0] * 8, [0.5] * 4 + [-0.5] * 4]))
    alone = model.bits(np.zeros((1, 1), np.uint8), np.array([True]), [1], np.array([1]))
    assert alone.tolist() == [[0b11110000]]
