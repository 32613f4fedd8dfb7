"""Tokens worked out from their neighbours: which those are, that nothing else counts, the fit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch  # noqa: F401 -- a reader's process has it

from btr.store.neighbours import (
    EXACT,
    LARGEST,
    LARGEST_STEP,
    WEIGHTS,
    NeighbourFit,
    NeighbourModel,
    Side,
    bits_of,
    both_sides,
)


def passages(
    draw: np.random.Generator, lengths: list[int], width: int, ids: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random rows, which of them are asked about, and the ranks of all."""
    total = sum(lengths)
    rows = draw.integers(0, 256, (total, width), np.uint8)
    return rows, draw.random(total) < 0.4, draw.integers(0, ids, total)


def random_model(
    draw: np.random.Generator, ids: int, dim: int, base: int, factor: int
) -> NeighbourModel:
    return NeighbourModel(
        np.arange(ids),
        draw.integers(-base, base + 1, (ids, dim)).astype(np.int8),
        draw.integers(1, 4, dim).astype(np.uint8),
        np.full(dim, 1 / 64, np.float32),
        draw.integers(-factor, factor + 1, (dim, dim)).astype(np.int8),
        draw.integers(-factor, factor + 1, (dim, dim)).astype(np.int8),
    )


def places(side: Side) -> list[int | None]:
    found = zip(side.stored[side.which], side.weights, strict=True)
    return [int(place) if weight else None for place, weight in found]


def test_neighbours_are_the_nearest_stored_tokens_of_the_passage() -> None:
    asked = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1], bool)
    left, right = both_sides(asked, ~asked, [4, 2, 2, 3])
    assert places(left) == [None, None, 2, None, None, None, 9]
    assert places(right) == [2, 2, None, None, None, 9, None]
    assert right.weights.tolist() == [WEIGHTS[1], WEIGHTS[0], 0, 0, 0, WEIGHTS[0], 0]
    # A stored token that is asked about is no neighbour of itself.
    left, right = both_sides(~asked, ~asked, [4, 2, 2, 3])
    assert places(left) == [None, None, 4, None]
    assert places(right) == [None, 5, None, None]


@pytest.mark.parametrize("asked", [True, False])
def test_passages_of_one_kind_of_token(asked: bool) -> None:
    model = NeighbourModel(
        np.arange(2), np.array([[1] * 8, [-1] * 8], np.int8), np.ones(8, np.uint8),
        np.full(8, 2, np.float32),
        np.ones((8, 8), np.int8), np.ones((8, 8), np.int8),
    )  # fmt: skip
    rows, flags = np.full((5, 1), 255, np.uint8), np.full(5, asked)
    rank = np.array([0, 1, 0, 1, 1])[flags]
    found = model.levels(rows, flags, ~flags, [2, 3], rank)
    assert found[:, 0].tolist() == ([2, -2, 2, -2, -2] if asked else [])
    assert bits_of(found)[:, 0].tolist() == ([255, 0, 255, 0, 0] if asked else [])


def test_the_levels_do_not_depend_on_what_is_read_together() -> None:
    draw, lengths = np.random.default_rng(0), [0, 7, 1, 30, 12, 0, 90]
    rows, asked, rank = passages(draw, lengths, 6, 9)
    model = random_model(draw, 9, 48, LARGEST, LARGEST)
    together = model.levels(rows, asked, ~asked, lengths, rank[asked])
    apart, at = [], 0
    for length in lengths:
        part = slice(at, at + length)
        flags = asked[part]
        apart.append(model.levels(rows[part], flags, ~flags, [length], rank[part][flags]))
        at += length
    assert np.array_equal(together, np.concatenate(apart))


def test_the_levels_are_the_same_by_torch_and_by_numpy_alone(monkeypatch) -> None:
    draw, lengths = np.random.default_rng(1), [40, 3, 120]
    rows, asked, rank = passages(draw, lengths, 48, 9)
    model = random_model(draw, 9, 384, LARGEST, LARGEST)
    assert "torch" in sys.modules
    by_torch = model.levels(rows, asked, ~asked, lengths, rank[asked])
    monkeypatch.delitem(sys.modules, "torch")
    by_numpy = model.levels(rows, asked, ~asked, lengths, rank[asked])
    assert len(np.unique(by_numpy)) > 100
    assert (by_torch == by_numpy).all()


def test_float32_counts_to_every_score() -> None:
    # Two sides, each a weight times D products of a factor (-128 is the widest int8) and a sign.
    assert 2 * int(WEIGHTS.max()) * 128 * EXACT + 128 * LARGEST_STEP < 1 << 24


def test_what_is_guessed_best_is_left_out_and_never_two_neighbours() -> None:
    draw, lengths = np.random.default_rng(2), [40, 0, 25, 3, 1, 60]
    rows, shared, rank = passages(draw, lengths, 4, 6)
    model = random_model(draw, 6, 32, 30, 20)
    model = NeighbourModel(
        np.array([0, 1, -1, 3, 4, -1]), model.base, model.steps, model.gains, model.left,
        model.right,
    )  # fmt: skip
    stored = ~shared
    for ratio in (0.0, 0.2, 0.5):
        gone = model.guessed_best(rows, stored, lengths, rank, ratio)
        assert not (gone & shared).any()
        assert np.all(model.owner[rank[gone]] >= 0)
        at = 0
        for length in lengths:
            part = slice(at, at + length)
            mine, own = gone[part], np.flatnonzero(stored[part])
            assert mine.sum() <= int(ratio * len(own))
            assert not np.any(mine[own][1:] & mine[own][:-1])
            at += length
        assert bool(gone.any()) is (ratio > 0)
    # The least error of all: a token whose guess is right goes first.
    asked = np.zeros(40, bool)
    place = int(np.flatnonzero(stored[:40] & (model.owner[rank[:40]] >= 0))[3])
    asked[place] = True
    first = rows[:40].copy()
    first[place] = bits_of(model.levels(first, asked, stored[:40], [40], rank[:40][asked]))[0]
    assert model.guessed_best(first, stored[:40], [40], rank[:40], 1 / 20)[place]


def test_the_fit_finds_the_rule_that_made_the_bits() -> None:
    draw, width, ids = np.random.default_rng(1), 4, 5
    true = random_model(draw, ids, 8 * width, 100, 20)
    owner = np.array([0, 1, 2, 3, 4, -1])
    fit = NeighbourFit(owner, 8 * width)
    sums, counts = np.zeros((ids, 8 * width)), np.zeros(ids)
    for _ in range(20):
        lengths = draw.integers(1, 60, 30).tolist()
        rows, asked, rank = passages(draw, lengths, width, ids)
        rank[~asked] = 5  # others have no base, and are not looked at
        rows[asked] = bits_of(true.levels(rows, asked, ~asked, lengths, rank[asked]))
        fit.add(rows, ~asked, lengths, rank)
        np.add.at(sums, rank[asked], 2.0 * np.unpackbits(rows[asked], axis=1) - 1)
        counts += np.bincount(rank[asked], minlength=ids)
    means = sums / counts[:, None]
    found = fit.model(means)
    assert found.owner is owner
    rows, asked, rank = passages(draw, lengths, width, ids)
    wanted = bits_of(true.levels(rows, asked, ~asked, lengths, rank[asked]))
    majority = np.packbits(means[rank[asked]] >= 0, axis=1)

    def error(bits: np.ndarray) -> float:
        return float(np.unpackbits(bits ^ wanted, axis=1).mean())

    levels = found.levels(rows, asked, ~asked, lengths, rank[asked])
    assert error(bits_of(levels)) < 0.25 * error(majority)
    # A level is an estimate of the bit, so the sure ones are right.
    signs = 2.0 * np.unpackbits(wanted, axis=1) - 1
    assert np.mean(signs[np.abs(levels) > 100] == np.sign(levels[np.abs(levels) > 100])) > 0.97


def test_an_id_that_was_not_looked_at_has_its_mean_beside_the_usual_neighbours() -> None:
    fit = NeighbourFit(np.array([0, 1]), 8)
    rows = np.array([[255], [255], [255]], np.uint8)
    fit.add(rows, np.array([True, False, True]), [3], np.array([0, 0, 0]))
    model = fit.model(np.array([[1.0] * 8, [0.5] * 4 + [-0.5] * 4]))
    asked = np.array([False, True, False])
    found = model.levels(rows, asked, ~asked, [3], np.array([1]))
    assert bits_of(found).tolist() == [[0b11110000]]
    assert np.allclose(found / 127, [[0.5] * 4 + [-0.5] * 4], atol=0.02)
