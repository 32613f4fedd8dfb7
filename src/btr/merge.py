"""Bipartite token merging as pure functions: the closest tokens become their mean.

Split the tokens of a sequence into even and odd ones, link every even one to its nearest odd one,
keep the closest links, replace every linked group by its mean (ToMe; method, sections 5 and 6).
Cosine over continuous states serves at run time, Hamming over packed signs offline. Of equally
close links the one of the earlier token wins, and of equally near partners the earlier, so results
are repeatable.

Sequences of any lengths stand packed, one after another with nothing between them, and stay so.
Merged tokens stand where the odd one stood; the order of the others is kept.

``N`` tokens of all sequences before and ``M`` after merging, ``d`` width, ``n`` and ``b`` packed
sign rows and their bytes. Times are of one core of an AMD EPYC with AVX-512 bf16 and no AMX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from btr.bits import ShapeError, hamming

_NEAREST_PAIRS = 1 << 22
"""Distances held at a time while nearest rows are searched: 16 MB."""

_SIMILAR_PAIRS = 3 << 18
"""Similarities held at a time: 5 MB with the bf16 products, so they are read from the cache."""

_TILE = 16
"""What the sides of a matrix product are rounded up to, where there are tokens to run on into.

The bf16 kernels are compiled at run time for every new shape: 40 lengths never seen before cost 28
ms instead of 4. Rounded up, there are few shapes.
"""

_NORM_ROWS = 1024
"""Vectors widened at a time for their norms: 3 MB at a width of 768."""


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """Which tokens become one; the same for everything that is merged by it.

    Attributes:
        rows: ``[N]`` int64, the token of the result that each token went into, 0 .. ``M - 1``.
        lengths: Tokens of every sequence after merging; their sum is ``M``.
        kept: ``[M]`` int64, ascending: the token at whose place each token of the result stands,
            which is a group's odd token. What is not averaged, such as positions, is ``[kept]``.
        order: ``[N]`` int64, token numbers sorted by where they go: groups lie together.
        starts: ``[M]`` int64, first place of each group in ``order``.
    """

    rows: Tensor
    lengths: tuple[int, ...]
    kept: Tensor
    order: Tensor
    starts: Tensor


def merge_count(tokens: int, ratio: float) -> int:
    """Number of links to keep for a ratio: that share of all tokens, rounded down.

    There are always enough links for it.

    Args:
        tokens: Tokens of the sequence.
        ratio: Share of the tokens to lose, 0 .. 0.5.

    Raises:
        ValueError: ``ratio`` is outside 0 .. 0.5.
    """
    if not 0 <= ratio <= 0.5:
        raise ValueError(f"a merging ratio is 0 .. 0.5, not {ratio}")
    # The summand keeps products such as 0.29 * 100 = 28.999... from losing a token.
    return int(ratio * tokens + 1e-9)


@torch.no_grad()
def match(metric: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Matching:
    """Link tokens by cosine similarity, inside each sequence.

    A zero vector has similarity 0 to all. Nothing waits for a GPU: shapes depend on ``lengths`` and
    ``counts`` alone.

    Milliseconds in bf16 / float32, a fifth of the tokens merged: 40 sequences of 190 tokens,
    ``m = 768``: 9.6 / 12, lengths drawn from N(190, 25) the same; ``m = 64``: 4.6 / 3.5. (One
    batched product and max, ``m = 768``: 14 / 14, padded to the longest of the drawn ones 17 / 15;
    34 and 39 in bf16 where freed memory goes back to the system.) One sequence of 7600 tokens,
    ``m = 64``: 16 / 26, of which 9 / 19 are the product; ``m = 768``: 117 / 247 of which 103 / 230.
    One of 4000: 4.4 / 6.7 and 32 / 63.

    Args:
        metric: ``[N, m]`` floating, what tokens are compared by (states, or mean keys of the heads:
            narrower is faster). Products are rounded to its dtype (to float32 in float16): bf16 is
            faster than float32, but over thousands of tokens links about 1 % of random vectors to a
            neighbour that is not quite the nearest, and leaves more to the rule for ties. Not
            modified.
        lengths: Tokens of every sequence, in order; any may be 0.
        counts: Links to keep in every sequence.

    Raises:
        ShapeError: ``metric`` is not 2-D, or its tokens are not as many as ``lengths`` say.
        ValueError: ``counts`` are not as many as ``lengths``, a length is negative, or a sequence
            has fewer links than are to be kept.
    """
    if metric.ndim != 2 or len(metric) != sum(lengths):
        raise ShapeError(
            f"a metric to match by must be [{sum(lengths)}, m] for {len(lengths)} sequences,"
            f" not {list(metric.shape)}"
        )
    _check_counts(lengths, counts)
    if not any(counts):
        return _identity(tuple(lengths), metric.device)
    if metric.dtype == torch.float16:
        metric = metric.float()  # products of unscaled states soon exceed 65504
    # Scaling the products to cosines is less work than scaling the vectors, and rounds once less.
    scale = _inverse_norms(metric)
    closeness, partner, even_scale, first = [], [], [], 0
    for length, count in zip(lengths, counts, strict=True):
        evens, odds = _links(length), length // 2
        if count:
            # Sides that are rounded up run on into the next sequence, and are cut off again.
            b = metric[first + 1 : first + 1 + 2 * _rounded(odds) : 2]
            odd_scale = scale[first + 1 : first + length : 2].contiguous()
            step = _rounded(_SIMILAR_PAIRS // odds)
            for done in range(0, evens, step):
                rows, start = min(step, evens - done), first + 2 * done
                a = metric[start : start + 2 * _rounded(rows) : 2]
                products = (a @ b.T)[:rows, :odds].to(scale.dtype)
                highest, place = _highest(products.mul_(odd_scale))
                closeness.append(highest)
                partner.append(place)
            even_scale.append(scale[first : first + 2 * evens : 2])
        first += length
    cosine = torch.cat(closeness).mul_(torch.cat(even_scale))
    return _keep_best(cosine, torch.cat(partner), lengths, counts)


def match_bits(packed: NDArray[np.uint8], r: int) -> Matching:
    """Link packed rows by Hamming distance.

    Time is quadratic (about 2 ns times ``n^2`` at 48 bytes), memory is bounded by 20 MB beyond the
    input's own size.

    Args:
        packed: ``[n, b]`` uint8 signs, such as all vectors of one vocabulary token. Not modified.
        r: Links to keep.

    Returns:
        A matching of one sequence of ``n`` tokens on the CPU.

    Raises:
        ShapeError: ``packed`` is not 2-D uint8.
        ValueError: There are fewer than ``r`` links.
    """
    if packed.ndim != 2 or packed.dtype != np.uint8:
        raise ShapeError(
            f"rows to match must be uint8 [n, b], not {packed.dtype} {list(packed.shape)}"
        )
    _check_counts([len(packed)], [r])
    if r == 0:
        return _identity((len(packed),), torch.device("cpu"))
    a, b = packed[::2], packed[1::2]
    closeness = torch.empty(len(a), dtype=torch.int32)
    partner = torch.empty(len(a), dtype=torch.int64)
    step = max(1, _NEAREST_PAIRS // len(b))
    for first in range(0, len(a), step):
        distances = torch.from_numpy(hamming(a[first : first + step], b))
        nearest, place = distances.min(-1)
        closeness[first : first + step] = -nearest
        partner[first : first + step] = place
    return _keep_best(closeness, partner, [len(packed)], [r])


def merge_sizes(sizes: Tensor, matching: Matching) -> Tensor:
    """Number of original tokens in each token of the result.

    Args:
        sizes: ``[N]`` floating (float32 counts exactly), ones at the start. Not modified.
        matching: Of these tokens.

    Returns:
        ``[M]``; sums of the sizes of each group. ``sizes`` itself where nothing is merged.

    Raises:
        ShapeError: ``sizes`` is not ``[N]`` of the matching.
    """
    if sizes.shape != matching.rows.shape:
        raise ShapeError(f"sizes are {list(sizes.shape)}, matched {list(matching.rows.shape)}")
    if len(matching.kept) == len(sizes):
        return sizes
    return sizes.new_zeros(len(matching.kept)).scatter_add_(0, matching.rows, sizes)


def merge_mean(x: Tensor, sizes: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Replace every group by its mean, weighted by how many original tokens each member holds.

    Tokens that were not merged keep their exact bits. Merged ones are summed in float32; in 16-bit
    dtypes the weights are rounded to the dtype first, which costs up to about one unit in the last
    place of the largest member.

    Args:
        x: ``[N, d]`` floating. Not modified.
        sizes: ``[N]`` floating, > 0; float32 counts exactly. Not modified.
        matching: Of these tokens.

    Returns:
        ``[M, d]`` of the dtype of ``x``, and its sizes ``[M]``. Where nothing is merged they are
        ``x`` and ``sizes`` themselves.

    Raises:
        ShapeError: ``x`` or ``sizes`` does not fit the matching.
    """
    if x.ndim != 2 or len(x) != len(matching.rows):
        raise ShapeError(f"states are {list(x.shape)}, matched {list(matching.rows.shape)}")
    total = merge_sizes(sizes, matching)
    if len(matching.kept) == len(x):
        return x, sizes
    share = sizes / total[matching.rows]
    # One weighted gather for everything. 40 x 190 tokens, d = 768, 38 links each, bf16 / fp32, ms:
    # 0.6 to 0.9 / 2.1 (a bare copy of the kept rows 0.5 / 1.3); index_select of the kept rows and
    # index_add of the others 3.3 / 5.3; scatter_reduce of everything 3.2 / 5.0.
    merged = functional.embedding_bag(
        matching.order,
        x.contiguous(),  # strided 16-bit rows would be summed in 16 bits
        matching.starts,
        mode="sum",
        per_sample_weights=share[matching.order].to(x.dtype),
    )
    return merged, total


def merge_signs(
    packed: NDArray[np.uint8], matching: Matching
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Replace every group of packed rows by the signs of its mean; a mean of 0 counts as -1.

    In a group of two every dimension in which they differ therefore becomes -1.

    Args:
        packed: ``[n, b]`` uint8 signs. Not modified.
        matching: From :func:`match_bits` on these rows.

    Returns:
        ``[n - r, b]`` uint8, and ``[n]`` int64: the new row of every old one. With ``r = 0`` the
        first is a copy of ``packed``.

    Raises:
        ShapeError: ``packed`` does not fit the matching.
    """
    if packed.ndim != 2 or len(packed) != len(matching.rows):
        raise ShapeError(f"rows are {list(packed.shape)}, matched {list(matching.rows.shape)}")
    order, starts, rows = matching.order.numpy(), matching.starts.numpy(), matching.rows.numpy()
    merged = packed[order[starts]]
    counts = np.diff(starts, append=len(order))
    groups = np.flatnonzero(counts > 1)
    if len(groups):
        members = order[np.repeat(counts > 1, counts)]
        firsts = np.cumsum(counts[groups]) - counts[groups]
        ones = np.unpackbits(packed[members], axis=1)
        positive = np.add.reduceat(ones, firsts, axis=0, dtype=np.int32)
        merged[groups] = np.packbits(2 * positive > counts[groups, None], axis=1)
    return merged, rows.copy()


def size_bias(sizes: Tensor) -> Tensor:
    """What to add to attention logits so that a merged token counts as often as its members did.

    Args:
        sizes: ``[N]`` floating, > 0.

    Returns:
        ``[N]``: ``log(sizes)``, to add to the logits of these keys, of all heads and queries.
    """
    return sizes.log()


def _links(length: int) -> int:
    """Even tokens that have an odd one to go to."""
    return (length + 1) // 2 if length > 1 else 0


def _rounded(tokens: int) -> int:
    """The next multiple of :data:`_TILE`, at least one."""
    return max(1, -(-tokens // _TILE)) * _TILE


def _check_counts(lengths: Sequence[int], counts: Sequence[int]) -> None:
    if len(lengths) != len(counts):
        raise ValueError(f"{len(counts)} counts for {len(lengths)} sequences")
    for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        if length < 0:
            raise ValueError(f"sequence {i} cannot have {length} tokens")
        if not 0 <= count <= _links(length):
            raise ValueError(
                f"cannot keep {count} links of sequence {i}: {length} tokens have {_links(length)}"
            )


def _identity(lengths: tuple[int, ...], device: torch.device) -> Matching:
    every = torch.arange(sum(lengths), device=device)
    return Matching(every, lengths, every, every, every)


def _inverse_norms(metric: Tensor) -> Tensor:
    """``[N]``, at least float32: what to multiply each vector by for a length of 1."""
    wide = torch.promote_types(metric.dtype, torch.float32)
    parts = torch.split(metric, _NORM_ROWS)
    norms = torch.cat([torch.linalg.vector_norm(part.to(wide), dim=-1) for part in parts])
    return norms.clamp_(min=1e-12).reciprocal_()


def _highest(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """The highest of every row, and the first place where it stands."""
    if similarity.device.type == "cpu":
        # 3800 x 3800: 1 ms in parts that stay in the cache, 12 by max, which is not vectorized.
        place = torch.from_numpy(similarity.numpy().argmax(-1))
        return similarity.gather(-1, place[:, None])[:, 0], place
    highest, place = similarity.max(-1)
    return highest, place


def _keep_best(
    closeness: Tensor, partner: Tensor, lengths: Sequence[int], counts: Sequence[int]
) -> Matching:
    """The matching of the closest links.

    Shapes depend on ``lengths`` and ``counts`` alone, so nothing here waits for a GPU.

    Args:
        closeness: ``[links]``, of all sequences with a count, in order; higher is closer.
        partner: ``[links]`` int64, place of each one's nearest among the odd tokens.
        lengths: Tokens of every sequence.
        counts: Links to keep in every sequence; not all 0.
    """
    device, tokens, left = closeness.device, sum(lengths), sum(lengths) - sum(counts)
    keep = np.array(counts)
    links = np.array([_links(n) if count else 0 for n, count in zip(lengths, counts, strict=True)])
    first = np.repeat(np.cumsum(lengths) - lengths, links)
    even = first + 2 * _ramps(np.zeros_like(links), links)
    front = _ramps(np.cumsum(links) - links, keep)
    firsts, evens = torch.from_numpy(np.stack((first, even))).to(device, non_blocking=True)
    # Two stable sorts, by closeness and then by sequence, leave equally close ones as they were.
    by_closeness = closeness.argsort(descending=True, stable=True)
    ranked = by_closeness[firsts[by_closeness].argsort(stable=True)]
    best = ranked[torch.from_numpy(front).to(device, non_blocking=True)]
    source, target = evens[best], (firsts + 1 + 2 * partner)[best]
    stays = torch.ones(tokens, dtype=torch.int64, device=device).scatter_(0, source, 0)
    rows = stays.cumsum(0) - 1
    rows = rows.scatter(0, source, rows[target])
    members = torch.zeros(left, dtype=torch.int64, device=device)
    members.scatter_add_(0, rows, torch.ones_like(rows))
    return Matching(
        rows=rows,
        lengths=tuple(n - count for n, count in zip(lengths, counts, strict=True)),
        # The numbers of the ones in front: what nonzero says, but of a known length.
        kept=stays.argsort(descending=True, stable=True)[:left],
        order=rows.argsort(stable=True),
        starts=members.cumsum(0) - members,
    )


def _ramps(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``counts[i]`` numbers from ``firsts[i]`` up, for every ``i`` in turn."""
    starts = np.cumsum(counts) - counts
    ramps: NDArray[np.int64] = np.repeat(firsts - starts, counts) + np.arange(counts.sum())
    return ramps
