"""Lossless coding of packed signs: an interleaved binary rANS coder with a small context model.

A bit's probability comes from two things. Its *class*: how often this dimension is positive in
occurrences of this token id, over the corpus, in 16 steps of the logit. And its *drift*: how the
passage's earlier tokens differed from their classes in this dimension, as a moving average in 16
steps; neighbours share what a passage is about. The table of the 256 probabilities is counted in
the corpus and stored. All arithmetic is in integers, so every machine decodes the same bits.

``n`` vectors of one passage in order, ``d`` dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from btr.errors import UsageError

CLASSES = 16
DRIFTS = 16
SCALE_BITS = 12
SCALE = 1 << SCALE_BITS
_LOGIT_STEP = 0.45
_IDS = 1024  # ids that are worked on together
_TABLE_BYTES = 2 * CLASSES * DRIFTS
_LOW = 1 << 16  # of a coder's state, which is renormalised by 16 bits
_STREAMS = 2  # states in turn: the processor works on one while it waits for the other

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class BitModel:
    """What bits are coded with.

    Attributes:
        owner: ``[R]`` row of ``classes`` that a rank has; 0, all ids together, for rare ones.
        classes: ``[K, d]`` classes of dimensions.
        table: ``[CLASSES * DRIFTS]`` probabilities.
    """

    owner: NDArray[np.int64]
    classes: Bytes
    table: NDArray[np.uint16]

    def to_bytes(self) -> bytes:
        """Which ranks have classes of their own, the classes in half bytes, the probabilities."""
        halves = self.classes[:, ::2] << 4 | self.classes[:, 1::2]
        return b"".join(
            (np.packbits(self.owner > 0).tobytes(), halves.tobytes(),
             self.table.astype("<u2").tobytes())
        )  # fmt: skip

    @staticmethod
    def sizeof(ranks: int, classed: int, dim: int) -> int:
        """How long :meth:`to_bytes`' result is."""
        return -(-ranks // 8) + classed * dim // 2 + _TABLE_BYTES

    @classmethod
    def from_bytes(cls, data: bytes, ranks: int, classed: int, dim: int) -> BitModel:
        """The inverse of :meth:`to_bytes`."""
        flags = -(-ranks // 8)
        owns = np.unpackbits(np.frombuffer(data[:flags], np.uint8), count=ranks).astype(np.int64)
        halves = np.frombuffer(data[flags:-_TABLE_BYTES], np.uint8).reshape(classed, dim // 2)
        classes = np.stack((halves >> 4, halves & 15), axis=2).reshape(classed, dim)
        chances = np.frombuffer(data[-_TABLE_BYTES:], "<u2").astype(np.uint16)
        # A chance of 0 or 1 would end the decoder: only damage that the checksum knows of has one.
        return cls(owns * np.cumsum(owns), classes, np.clip(chances, 1, SCALE - 1))

    def encode(self, rows: Bytes, ranks: NDArray[np.int64]) -> Bytes:
        """Code the vectors of a passage's tokens.

        Args:
            rows: ``[n, d / 8]`` packed signs.
            ranks: ``[n]`` of their ids.
        """
        bits = np.unpackbits(rows, axis=1)
        words = kernels().encode(bits, self.classes[self.owner[ranks]], self.table, nominal())
        coded: Bytes = words.astype("<u2").view(np.uint8)
        return coded

    def decode(
        self, streams: Sequence[memoryview], counts: Sequence[int], ranks: NDArray[np.int64]
    ) -> Bytes:
        """The vectors of several passages; damaged streams give other ones.

        Args:
            streams: What :meth:`encode` made.
            counts: Vectors of each.
            ranks: Of all their ids.

        Returns:
            ``[n, d / 8]`` packed signs.
        """
        words = np.frombuffer(b"".join(streams), "<u2").astype(np.uint16, copy=False)
        ends = np.cumsum([len(stream) // 2 for stream in streams])
        out = np.empty((len(ranks), self.classes.shape[1] // 8), np.uint8)
        kernels().decode(
            words, ends, np.asarray(counts, np.int64), self.owner[ranks], self.classes, self.table,
            nominal(), out,
        )  # fmt: skip
        return out


class Kernels(NamedTuple):
    """The compiled loops."""

    tally: Callable[..., None]
    encode: Callable[..., Any]
    decode: Callable[..., None]


def class_of(positive: NDArray[np.integer], counts: NDArray[np.int64], prior: Any) -> Bytes:
    """Classes of dimensions, from how often they are positive.

    Args:
        positive: ``[k, d]`` occurrences with a positive sign.
        counts: ``[k]`` occurrences.
        prior: ``[d]`` share of positive signs over all ids; counts as eight occurrences.
    """
    classes = np.empty(positive.shape, np.uint8)
    # A few ids at a time: there may be as many as the vocabulary has.
    for first in range(0, len(positive), _IDS):
        part = slice(first, first + _IDS)
        share = (positive[part] + 8 * prior) / (counts[part, None] + 8)
        logit = np.log(share / (1 - share))
        steps = np.floor(logit / _LOGIT_STEP) + CLASSES // 2
        classes[part] = np.clip(steps, 0, CLASSES - 1)
    return classes


def nominal() -> NDArray[np.int32]:
    """``[CLASSES]`` the probability that a class stands for, times ``SCALE``."""
    logit = (np.arange(CLASSES) - CLASSES // 2 + 0.5) * _LOGIT_STEP
    chances: NDArray[np.int32] = np.rint(SCALE / (1 + np.exp(-logit))).astype(np.int32)
    return chances


def probabilities(counted: NDArray[np.int64]) -> NDArray[np.uint16]:
    """``[CLASSES * DRIFTS]`` probabilities times ``SCALE``, 1 .. ``SCALE - 1``.

    Args:
        counted: ``[CLASSES * DRIFTS, 2]`` zeros and ones seen.
    """
    # A context that was hardly seen falls back on what its class stands for.
    expected = np.repeat(nominal() / SCALE, DRIFTS)
    share = (counted[:, 1] + 4 * expected) / (counted.sum(1) + 4)
    chances: NDArray[np.uint16] = np.clip(np.rint(share * SCALE), 1, SCALE - 1).astype(np.uint16)
    return chances


@cache
def kernels() -> Kernels:
    """Compile the loops, or load them compiled.

    Raises:
        UsageError: numba is not installed.
    """
    try:
        from numba import njit
    except ImportError as error:
        raise UsageError("lossless coding needs numba", todo="pip install 'btr-reader[lossless]'"
                         ) from error  # fmt: skip

    @njit(cache=True, inline="always")
    def drift_of(mean: int) -> int:
        return min(max((mean + 2048) >> 8, 0), DRIFTS - 1)

    @njit(cache=True)
    def tally(bits: Any, classes: Any, counted: Any, nominal: Any) -> None:
        n, d = bits.shape
        means = np.zeros(d, np.int32)
        for i in range(n):
            for j in range(d):
                c = classes[i, j]
                bit = bits[i, j]
                counted[c * DRIFTS + drift_of(means[j]), bit] += 1
                means[j] += (bit * SCALE - nominal[c] - means[j]) >> 2

    @njit(cache=True)
    def encode(bits: Any, classes: Any, table: Any, nominal: Any) -> Any:
        n, d = bits.shape
        chances = np.empty((n, d), np.uint16)
        means = np.zeros(d, np.int32)
        for i in range(n):
            for j in range(d):
                c = classes[i, j]
                chances[i, j] = table[c * DRIFTS + drift_of(means[j])]
                means[j] += (bits[i, j] * SCALE - nominal[c] - means[j]) >> 2
        words = np.empty(n * d + 2 * _STREAMS, np.uint16)
        at = len(words)
        states = np.full(_STREAMS, _LOW, np.uint64)
        # What is decoded first is encoded last.
        for i in range(n - 1, -1, -1):
            for j in range(d - 1, -1, -1):
                chance = np.uint64(chances[i, j])
                one = bits[i, j] == 1
                width = chance if one else np.uint64(SCALE) - chance
                x = states[j % _STREAMS]
                if x >= width << np.uint64(32 - SCALE_BITS):
                    at -= 1
                    words[at] = x & np.uint64(0xFFFF)
                    x >>= np.uint64(16)
                slot = x % width
                if not one:
                    slot += chance
                states[j % _STREAMS] = ((x // width) << np.uint64(SCALE_BITS)) + slot
        for s in range(_STREAMS - 1, -1, -1):
            at -= 2
            words[at] = states[s] >> np.uint64(16)
            words[at + 1] = states[s] & np.uint64(0xFFFF)
        return words[at:]

    @njit(cache=True, nogil=True)
    def decode(
        words: Any, ends: Any, counts: Any, rows: Any, classes: Any, table: Any, nominal: Any,
        out: Any,
    ) -> None:  # fmt: skip
        d = classes.shape[1]
        means = np.empty(d, np.int32)
        states = np.empty(_STREAMS, np.uint64)
        first = 0
        at = 0
        for p in range(len(counts)):
            means[:] = 0
            end = ends[p]
            for s in range(_STREAMS):
                states[s] = 0
                for _ in range(2):
                    word = np.uint64(words[at]) if at < end else np.uint64(0)
                    states[s] = (states[s] << np.uint64(16)) | word
                    at += 1
            for i in range(first, first + counts[p]):
                row = rows[i]
                byte = 0
                for j in range(d):
                    c = classes[row, j]
                    chance = np.uint64(table[c * DRIFTS + drift_of(means[j])])
                    x = states[j % _STREAMS]
                    slot = x & np.uint64(SCALE - 1)
                    x >>= np.uint64(SCALE_BITS)
                    # Without a branch: which bit it is cannot be foreseen.
                    bit = np.int64(slot < chance)
                    taken = np.uint64(0) - np.uint64(bit)
                    width = (chance & taken) | ((np.uint64(SCALE) - chance) & ~taken)
                    x = width * x + slot - (chance & ~taken)
                    if x < np.uint64(_LOW):
                        # A damaged stream may end too early; its checksum will say so.
                        word = np.uint64(words[at]) if at < end else np.uint64(0)
                        x = (x << np.uint64(16)) | word
                        at += 1
                    states[j % _STREAMS] = x
                    means[j] += (bit * SCALE - nominal[c] - means[j]) >> 2
                    byte = (byte << 1) | int(bit)
                    if j % 8 == 7:
                        out[i, j // 8] = byte
                        byte = 0
            first += counts[p]
            at = end

    return Kernels(tally, encode, decode)
