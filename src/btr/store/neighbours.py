"""Vectors of tokens worked out from the stored vectors beside them.

One vector for all occurrences of a stop word says what it is like on average (method, section 5).
But a lower layer mixes what stands around it into each occurrence, and what stands around it is in
the store: a linear model of the nearest stored vector on either side says what this occurrence is
like, and still nothing is stored for it. So also for the occurrences of other tokens that the model
guesses best. For a token of id ``s`` at place ``t``, with the nearest stored vectors ``x`` of -1
and +1 at the places ``l < t < r`` of its passage:

    score[j] = step[j] base[s, j] + weight(t - l) (x_l A)[j] + weight(r - t) (x_r B)[j]
    level[j] = gain[j] score[j], rounded, -127 .. 127;  bit[j] = level[j] >= 0

All numbers but the gains are integers, and scores are below the last one that float32 can count to.
So the levels are the same on every machine, in whatever order it adds.

``D`` dimensions, ``b = D / 8``, ``S`` ids with a base.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

WEIGHTS = np.maximum(1, np.rint(8 / np.sqrt(np.arange(1, 65)))).astype(np.float32)
"""By distance, 1 to 64; farther ones weigh as the last."""

LARGEST, LARGEST_STEP = 127, 255
EXACT = 4096
"""Dimensions up to which scores are added in float32: they stay below 2^24."""

_IN_CACHE = 128  # tokens whose scores stay in the second-level cache
_BLOCK = 4096  # tokens whose products, 64 at most each, float32 adds exactly
_IDS = 1024  # ids that are worked on together
_RIDGE = 1e-3
_PRIOR = 16  # tokens that the neighbours of all ids count as

Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Side:
    """The nearest stored tokens on one side of others.

    Attributes:
        stored: ``[m]`` places of stored tokens, each once, ascending.
        which: ``[n]`` index into ``stored`` for each token asked about.
        weights: ``[n]`` float32, 0 where the passage has no stored token on this side.
    """

    stored: Ints
    which: Ints
    weights: NDArray[np.float32]


def both_sides(asked: Flags, stored: Flags, lengths: Sequence[int]) -> tuple[Side, Side]:
    """Left and right neighbours of tokens, themselves never among them.

    Args:
        asked: ``[t]`` whose neighbours are sought, of all passages one after the other.
        stored: ``[t]`` which tokens can be neighbours.
        lengths: Tokens of each passage.
    """
    places, there = np.flatnonzero(asked), np.flatnonzero(stored)
    ends = np.cumsum(lengths)
    end = np.repeat(ends, lengths)[places]
    start = np.repeat(ends - lengths, lengths)[places]
    sides = []
    for index in (
        np.searchsorted(there, places, "left") - 1,
        np.searchsorted(there, places, "right"),
    ):
        found = (index >= 0) & (index < len(there))
        place = there[index.clip(0, len(there) - 1)] if len(there) else places
        found &= (place >= start) & (place < end)
        distance = np.abs(places - place).clip(1, len(WEIGHTS))
        weights = np.where(found, WEIGHTS[distance - 1], np.float32(0))
        used, which = np.unique(place, return_inverse=True)
        sides.append(Side(used, which, weights))
    return sides[0], sides[1]


@dataclass(frozen=True)
class NeighbourModel:
    """What tokens' bits are worked out with.

    Attributes:
        owner: ``[R]`` row of ``base`` of every rank, -1 where it has none.
        base: int8 ``[S, D]``.
        steps: uint8 ``[D]``, what a unit of ``base`` counts.
        gains: float32 ``[D]``, from a score to a level.
        left: int8 ``[D, D]``, ``A``.
        right: int8 ``[D, D]``, ``B``.
    """

    owner: Ints
    base: NDArray[np.int8]
    steps: Bytes
    gains: NDArray[np.float32]
    left: NDArray[np.int8]
    right: NDArray[np.int8]

    def to_bytes(self) -> bytes:
        """Which ranks have a base, bases, steps, gains, left factors, right factors."""
        return b"".join(
            (np.packbits(self.owner >= 0).tobytes(), self.base.tobytes(), self.steps.tobytes(),
             self.gains.astype("<f4").tobytes(), self.left.tobytes(), self.right.tobytes())
        )  # fmt: skip

    @staticmethod
    def sizeof(ranks: int, bases: int, dim: int) -> int:
        """How long :meth:`to_bytes`' result is."""
        return sum(_part_bytes(ranks, bases, dim))

    @classmethod
    def from_bytes(cls, data: bytes, ranks: int, bases: int, dim: int) -> NeighbourModel:
        """The inverse of :meth:`to_bytes`."""
        ends = accumulate((0, *_part_bytes(ranks, bases, dim)))
        flags, base, steps, gains, left, right = (data[a:z] for a, z in pairwise(ends))
        based = np.unpackbits(np.frombuffer(flags, np.uint8), count=ranks).view(np.bool_)
        return cls(
            rows_of(based),
            np.frombuffer(base, np.int8).reshape(bases, dim), np.frombuffer(steps, np.uint8),
            # Only damage that its checksum knows of makes others.
            np.nan_to_num(np.frombuffer(gains, "<f4").astype(np.float32)).clip(0, 1e6),
            np.frombuffer(left, np.int8).reshape(dim, dim),
            np.frombuffer(right, np.int8).reshape(dim, dim),
        )  # fmt: skip

    @cached_property
    def _factors(self) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        kind = np.float32 if len(self.left) <= EXACT else np.float64
        return self.left.astype(kind), self.right.astype(kind)

    def levels(
        self, rows: Bytes, asked: Flags, stored: Flags, lengths: Sequence[int], rank: Ints
    ) -> NDArray[np.int8]:
        """What tokens are like: the sign is the guess, the size says how sure it is.

        Args:
            rows: ``[t, b]`` bits of all tokens; those of others than ``stored`` do not matter.
            asked: ``[t]`` whose bits are to be worked out.
            stored: ``[t]`` which tokens they are worked out from.
            lengths: Tokens of each passage.
            rank: ``[n]`` rank of each token asked about, one with a base.

        Returns:
            ``[n, D]``.
        """
        sides = both_sides(asked, stored, lengths)
        kind = self._factors[0].dtype
        seen = [
            _product(_signs(rows[side.stored], kind), factor)
            for side, factor in zip(sides, self._factors, strict=True)
        ]
        levels = np.empty((len(rank), len(self.steps)), np.int8)
        steps = self.steps.astype(kind)
        for first in range(0, len(rank), _IN_CACHE):
            part = slice(first, first + _IN_CACHE)
            scores = self.base[self.owner[rank[part]]].astype(kind) * steps
            for side, from_side in zip(sides, seen, strict=True):
                scores += side.weights[part, None] * from_side[side.which[part]]
            # In float32 whatever the scores are in: the product is rounded once.
            scaled = scores.astype(np.float32) * self.gains
            levels[part] = np.rint(scaled).clip(-LARGEST, LARGEST)
        return levels

    def guessed_best(
        self, rows: Bytes, stored: Flags, lengths: Sequence[int], rank: Ints, ratio: float
    ) -> Flags:
        """The stored tokens of passages that need not be stored.

        Args:
            rows: ``[t, b]`` bits of all tokens.
            stored: ``[t]`` which are stored so far.
            lengths: Tokens of each passage.
            rank: ``[t]`` rank of each token.
            ratio: The share of each passage's stored tokens to leave out, or less where there are
                not so many that have a base and whose neighbours stay.

        Returns:
            ``[t]``: those to leave out, never two neighbours.
        """
        asked = stored & (self.owner[rank] >= 0)
        guess = bits_of(self.levels(rows, asked, stored, lengths, rank[asked]))
        errors = np.full(len(rows), np.iinfo(np.int64).max)
        errors[asked] = np.bitwise_count(guess ^ rows[asked]).sum(1)
        left_out = np.zeros(len(rows), np.bool_)
        for places in np.split(np.arange(len(rows)), np.cumsum(lengths)[:-1]):
            own = places[stored[places]]
            wanted = int(ratio * len(own))
            taken = np.zeros(len(own) + 2, np.bool_)  # one more on either side
            for i in np.argsort(errors[own], kind="stable").tolist():
                if not wanted or not asked[own[i]]:
                    break
                if not (taken[i] or taken[i + 2]):
                    taken[i + 1] = True
                    wanted -= 1
            left_out[own[taken[1:-1]]] = True
        return left_out


class NeighbourFit:
    """Least squares for a :class:`NeighbourModel`, over tokens that come piece by piece.

    Args:
        owner: ``[R]`` row of every rank that is to have a base, -1 for the others.
        dim: ``D``.
    """

    def __init__(self, owner: Ints, dim: int) -> None:
        self._owner = owner
        rows = int(owner.max(initial=-1)) + 1
        self._moments = np.zeros((2 * dim, 3 * dim))
        self._sums = np.zeros((rows, 3 * dim))
        self._counts = np.zeros(rows)

    def add(self, rows: Bytes, stored: Flags, lengths: Sequence[int], rank: Ints) -> None:
        """Look at the tokens of passages whose rank has a base.

        Args:
            rows: ``[t, b]`` bits of all tokens.
            stored: ``[t]`` which can be neighbours.
            lengths: Tokens of each passage.
            rank: ``[t]`` rank of each token.
        """
        asked = self._owner[rank] >= 0
        sides = both_sides(asked, stored, lengths)
        mine, owner = rows[asked], self._owner[rank[asked]]
        for first in range(0, len(mine), _BLOCK):
            part = slice(first, first + _BLOCK)
            seen = [
                _signs(rows[side.stored[side.which[part]]], np.float32) * side.weights[part, None]
                for side in sides
            ]
            values = np.concatenate([*seen, _signs(mine[part], np.float32)], axis=1)
            self._moments += values[:, : len(self._moments)].T @ values
            order = np.argsort(owner[part], kind="stable")
            ids, firsts = np.unique(owner[part][order], return_index=True)
            self._sums[ids] += np.add.reduceat(values[order], firsts, axis=0)
            self._counts += np.bincount(owner[part], minlength=len(self._counts))

    def model(self, means: Floats) -> NeighbourModel:
        """The model that fits best.

        Args:
            means: ``[S, D]`` mean of every id's bits as -1 and +1, over all of its occurrences.
        """
        dim = means.shape[1]
        sides, counts = self._sums[:, : 2 * dim], self._counts[:, None]
        # Of a few ids at a time: there may be as many as the vocabulary has.
        parts = [slice(i, i + _IDS) for i in range(0, len(means), _IDS)]
        # Within ids: an id's own mean is its base's to say.
        moments = self._moments.copy()
        for part in parts:
            moments -= sides[part].T @ (self._sums[part] / np.maximum(counts[part], 1))
        square = moments[:, : 2 * dim]
        square += (_RIDGE * np.trace(square) / (2 * dim) + 1) * np.eye(2 * dim)
        factors = np.linalg.solve(square, moments[:, 2 * dim :])
        # Of an id that was seldom looked at, the neighbours are rather those of any id.
        overall = sides.sum(0) / max(1, self._counts.sum())
        base = np.empty(means.shape)
        for part in parts:
            seen = (sides[part] + _PRIOR * overall) / (counts[part] + _PRIOR)
            base[part] = means[part] - seen @ factors
        # A dimension's sums may be in any unit: only their sign is asked for.
        widest = np.maximum(np.abs(base).max(0, initial=0), 1e-9)
        unit = np.minimum(
            LARGEST / np.maximum(np.abs(factors).max(0), 1e-9), LARGEST * LARGEST_STEP / widest
        )
        steps = np.ceil(widest * unit / LARGEST).clip(1, LARGEST_STEP)
        whole = np.rint(factors * unit).astype(np.int8)
        return NeighbourModel(
            self._owner, np.rint(base * unit / steps).astype(np.int8), steps.astype(np.uint8),
            (LARGEST / unit).astype(np.float32), whole[:dim].copy(), whole[dim:].copy(),
        )  # fmt: skip


def rows_of(based: Flags) -> Ints:
    """``[R]``: the row of each rank that has a base, by rank; -1 for the others."""
    return np.where(based, np.cumsum(based) - 1, -1)


def _part_bytes(ranks: int, bases: int, dim: int) -> tuple[int, ...]:
    return -(-ranks // 8), bases * dim, dim, 4 * dim, dim * dim, dim * dim


def bits_of(levels: NDArray[np.int8]) -> Bytes:
    """The bits of levels ``[n, D]``, ``[n, b]``."""
    packed: Bytes = np.packbits(levels >= 0, axis=1)
    return packed


def _product(signs: NDArray[np.floating], factor: NDArray[np.floating]) -> NDArray[np.floating]:
    """``signs @ factor``, by the threads of torch where a reader is at work in this process.

    numpy's own threads go on spinning for 25 ms after a product, on the cores that the reader's
    need next: with them a question about one passage took 21 ms on two cores, now 8.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return signs @ factor
    product: NDArray[np.floating] = (torch.from_numpy(signs) @ torch.from_numpy(factor)).numpy()
    return product


def _signs(rows: Bytes, kind: np.dtype[np.floating] | type[np.floating]) -> NDArray[np.floating]:
    """Bits ``[n, b]`` as -1 and +1, ``[n, D]``."""
    return np.unpackbits(rows, axis=1).astype(kind) * 2 - 1
