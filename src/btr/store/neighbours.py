"""Vectors of shared tokens, worked out from the stored vectors beside them.

One vector for all occurrences of a stop word says what it is like on average (method, section 5).
But a lower layer mixes what stands around it into each occurrence, and what stands around it is in
the store: a linear model of the nearest stored vector on either side says what this occurrence is
like, and still nothing is stored for it. For a token of shared id ``s`` at place ``t``, with the
nearest stored vectors ``x`` of -1 and +1 at the places ``l < t < r`` of its passage:

    bit = base[s] + weight(t - l) x_l A + weight(r - t) x_r B >= 0

All numbers are integers, and their sums are below the last one that float32 can count to. So the
bits are the same on every machine, in whatever order it adds.

``D`` dimensions, ``b = D / 8``, ``S`` shared ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

WEIGHTS = np.maximum(1, np.rint(8 / np.sqrt(np.arange(1, 65)))).astype(np.float32)
"""By distance, 1 to 64; farther ones weigh as the last."""

LARGEST, LARGEST_BASE = 127, 32_767
EXACT = 4096
"""Dimensions up to which scores are added in float32: they stay below 2^24."""

_BLOCK = 4096  # tokens whose products, 64 at most each, float32 adds exactly
_RIDGE = 1e-3

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sides:
    """The nearest stored tokens on one side of shared ones.

    Attributes:
        stored: ``[m]`` places of stored tokens, each once, ascending.
        which: ``[n]`` index into ``stored`` for each shared token.
        weights: ``[n]`` float32, 0 where the passage has no stored token on this side.
    """

    stored: Ints
    which: Ints
    weights: NDArray[np.float32]


def both_sides(shared: NDArray[np.bool_], lengths: Sequence[int]) -> tuple[Sides, Sides]:
    """Left and right neighbours of the shared tokens of passages.

    Args:
        shared: ``[t]`` for the tokens of all passages, one after the other.
        lengths: Tokens of each passage.
    """
    places, stored = np.flatnonzero(shared), np.flatnonzero(~shared)
    ends = np.cumsum(lengths)
    end = np.repeat(ends, lengths)[places]
    start = np.repeat(ends - lengths, lengths)[places]
    right = np.searchsorted(stored, places)
    sides = []
    for index in (right - 1, right):
        there = (index >= 0) & (index < len(stored))
        place = stored[index.clip(0, max(0, len(stored) - 1))] if len(stored) else places
        there &= (place >= start) & (place < end)
        distance = np.abs(places - place).clip(1, len(WEIGHTS))
        weights = np.where(there, WEIGHTS[distance - 1], np.float32(0))
        used, which = np.unique(place, return_inverse=True)
        sides.append(Sides(used, which, weights))
    return sides[0], sides[1]


@dataclass(frozen=True)
class NeighbourModel:
    """What shared tokens' bits are worked out with.

    Attributes:
        base: int16 ``[S, D]``.
        left: int8 ``[D, D]``, ``A``.
        right: int8 ``[D, D]``, ``B``.
    """

    base: NDArray[np.int16]
    left: NDArray[np.int8]
    right: NDArray[np.int8]

    @cached_property
    def _factors(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        kind = np.float32 if len(self.left) <= EXACT else np.float64
        return self.left.astype(kind), self.right.astype(kind)

    def bits(
        self, rows: Bytes, shared: NDArray[np.bool_], lengths: Sequence[int], which: Ints
    ) -> Bytes:
        """The bits of shared tokens.

        Args:
            rows: ``[t, b]`` bits of all tokens; those of shared ones do not matter.
            shared: ``[t]``.
            lengths: Tokens of each passage.
            which: ``[n]`` shared id of each shared token, 0 .. S - 1.

        Returns:
            ``[n, b]``.
        """
        scores = self.base[which].astype(self._factors[0].dtype)
        for side, factor in zip(both_sides(shared, lengths), self._factors, strict=True):
            seen = _signs(rows[side.stored], factor.dtype) @ factor
            scores += side.weights[:, None] * seen[side.which]
        packed: Bytes = np.packbits(scores >= 0, axis=1)
        return packed


class NeighbourFit:
    """Least squares for a :class:`NeighbourModel`, over tokens that come piece by piece.

    Args:
        shared_ids: ``S``.
        dim: ``D``.
    """

    def __init__(self, shared_ids: int, dim: int) -> None:
        self._moments = np.zeros((2 * dim, 3 * dim))
        self._sums = np.zeros((shared_ids, 3 * dim))
        self._counts = np.zeros(shared_ids)

    def add(
        self, rows: Bytes, shared: NDArray[np.bool_], lengths: Sequence[int], which: Ints
    ) -> None:
        """Count the shared tokens of passages; arguments as of :meth:`NeighbourModel.bits`."""
        sides = both_sides(shared, lengths)
        mine = rows[shared]
        for first in range(0, len(mine), _BLOCK):
            part = slice(first, first + _BLOCK)
            seen = [
                _signs(rows[side.stored[side.which[part]]], np.float32) * side.weights[part, None]
                for side in sides
            ]
            values = np.concatenate([*seen, _signs(mine[part], np.float32)], axis=1)
            self._moments += values[:, : len(self._moments)].T @ values
            order = np.argsort(which[part], kind="stable")
            ids, firsts = np.unique(which[part][order], return_index=True)
            self._sums[ids] += np.add.reduceat(values[order], firsts, axis=0)
            self._counts += np.bincount(which[part], minlength=len(self._counts))

    def model(self, means: Floats) -> NeighbourModel:
        """The model that fits best.

        Args:
            means: ``[S, D]`` mean of every id's bits as -1 and +1, over all of its occurrences.
        """
        dim = means.shape[1]
        average = self._sums / np.maximum(self._counts, 1)[:, None]
        # Within ids: an id's own mean is its base's to say.
        moments = self._moments - self._sums[:, : 2 * dim].T @ average
        square = moments[:, : 2 * dim]
        square += (_RIDGE * np.trace(square) / (2 * dim) + 1) * np.eye(2 * dim)
        factors = np.linalg.solve(square, moments[:, 2 * dim :])
        base = means - average[:, : 2 * dim] @ factors
        scale = np.minimum(
            LARGEST / np.maximum(np.abs(factors).max(0), 1e-9),
            LARGEST_BASE / np.maximum(np.abs(base).max(0, initial=0), 1e-9),
        )
        whole = np.rint(factors * scale).astype(np.int8)
        return NeighbourModel(
            np.rint(base * scale).astype(np.int16), whole[:dim].copy(), whole[dim:].copy()
        )


def _signs(rows: Bytes, kind: np.dtype[np.floating] | type[np.floating]) -> NDArray[np.floating]:
    """Bits ``[n, b]`` as -1 and +1, ``[n, D]``."""
    return np.unpackbits(rows, axis=1).astype(kind) * 2 - 1
