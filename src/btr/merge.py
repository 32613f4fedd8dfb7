"""Bipartite token merging as pure functions: the closest tokens become their mean.

Split the tokens into even and odd ones, link every even one to its nearest odd one, keep the ``r``
closest links, replace every linked group by its mean (ToMe; method, sections 5 and 6). Cosine over
continuous states serves at run time, Hamming over packed signs offline. Of equally close links the
one of the earlier token wins, and of equally near partners the earlier, so results are repeatable.

``B`` sequences, ``T`` tokens each, ``r`` links each, ``d`` width, ``n`` and ``b`` packed rows and
their bytes. Merged tokens stand where the odd one stood; the order of the others is kept.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from btr.bits import ShapeError, hamming

_NEAREST_PAIRS = 1 << 22
"""Distances held at a time while nearest partners are searched: 16 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """Which tokens become one; the same for everything that is merged by it.

    Attributes:
        rows: ``[B, T]`` int64, the token of the result that each token went into, 0 .. ``T-r-1``.
        merged: ``r``, the number of tokens that each sequence loses.
        order: ``[B * T]`` int64, flat token numbers sorted by where they go: groups lie together.
        starts: ``[B * (T - r)]`` int64, first place of each group in ``order``.
    """

    rows: Tensor
    merged: int
    order: Tensor
    starts: Tensor


def merge_count(tokens: int, ratio: float, *, protected: Collection[int] = ()) -> int:
    """The ``r`` of a ratio: ``ratio`` of all tokens, as far as there are links for it.

    Args:
        tokens: ``T``.
        ratio: Share of the tokens to lose, 0 .. 0.5.
        protected: As in :func:`match`.

    Raises:
        ValueError: ``ratio`` is outside 0 .. 0.5.
    """
    if not 0 <= ratio <= 0.5:
        raise ValueError(f"a merging ratio is 0 .. 0.5, not {ratio}")
    even, odd = _sides(tokens, protected)
    # The summand keeps products such as 0.29 * 100 = 28.999... from losing a token.
    return min(int(ratio * tokens + 1e-9), len(even) if len(odd) else 0)


@torch.no_grad()
def match(metric: Tensor, r: int, *, protected: Collection[int] = ()) -> Matching:
    """Link tokens by cosine similarity.

    A zero vector has similarity 0 to all.

    Args:
        metric: ``[B, T, m]`` floating, what tokens are compared by (states, or mean keys of the
            heads: narrower is faster). Similarities are rounded to its dtype: over thousands of
            tokens bf16 takes half the time of float32 (22 and 49 ms for 7600 tokens, ``m = 64``,
            one core), but links 1-2 % of random vectors to a neighbour that is not quite the
            nearest, and leaves more to the rule for ties. Not modified.
        r: Links to keep in each sequence.
        protected: Positions that are neither merged nor merged into, in every sequence.

    Raises:
        ShapeError: ``metric`` is not 3-D.
        ValueError: There are fewer than ``r`` links, or a protected position does not exist.
    """
    if metric.ndim != 3:
        raise ShapeError(f"a metric to match by must be [B, T, m], not {list(metric.shape)}")
    tokens = metric.shape[1]
    even, odd = _checked_sides(tokens, r, protected)
    if r == 0:
        return _identity(metric.shape[0], tokens, metric.device)
    wide = metric.to(torch.promote_types(metric.dtype, torch.float32))
    unit = functional.normalize(wide, dim=-1).to(metric.dtype)
    if protected:
        a = unit[:, torch.as_tensor(even, device=unit.device)]
        b = unit[:, torch.as_tensor(odd, device=unit.device)]
    else:
        a, b = unit[:, ::2], unit[:, 1::2]
    similarity, partner = torch.bmm(a, b.transpose(1, 2)).max(-1)
    return _keep_best(similarity, partner, r, tokens, even, odd)


def match_bits(packed: NDArray[np.uint8], r: int) -> Matching:
    """Link packed rows by Hamming distance.

    Time is quadratic (about 2 ns times ``n^2`` at 48 bytes), memory is bounded by 20 MB beyond the
    input's own size.

    Args:
        packed: ``[n, b]`` uint8 signs, such as all vectors of one vocabulary token. Not modified.
        r: Links to keep.

    Returns:
        A matching of one sequence (``B = 1``, ``T = n``) on the CPU.

    Raises:
        ShapeError: ``packed`` is not 2-D uint8.
        ValueError: There are fewer than ``r`` links.
    """
    if packed.ndim != 2 or packed.dtype != np.uint8:
        raise ShapeError(
            f"rows to match must be uint8 [n, b], not {packed.dtype} {list(packed.shape)}"
        )
    even, odd = _checked_sides(len(packed), r, ())
    if r == 0:
        return _identity(1, len(packed), torch.device("cpu"))
    a, b = packed[::2], packed[1::2]
    closeness = torch.empty((1, len(a)), dtype=torch.int32)
    partner = torch.empty((1, len(a)), dtype=torch.int64)
    step = max(1, _NEAREST_PAIRS // len(b))
    for first in range(0, len(a), step):
        distances = torch.from_numpy(hamming(a[first : first + step], b))
        nearest, place = distances.min(-1)
        closeness[0, first : first + step] = -nearest
        partner[0, first : first + step] = place
    return _keep_best(closeness, partner, r, len(packed), even, odd)


def merge_sizes(sizes: Tensor, matching: Matching) -> Tensor:
    """Number of original tokens in each token of the result.

    Args:
        sizes: ``[B, T]`` floating (float32 counts exactly), ones at the start. Not modified.
        matching: Of these tokens.

    Returns:
        ``[B, T - r]``; sums of the sizes of each group.

    Raises:
        ShapeError: ``sizes`` is not ``[B, T]`` of the matching.
    """
    if sizes.shape != matching.rows.shape:
        raise ShapeError(f"sizes are {list(sizes.shape)}, matched {list(matching.rows.shape)}")
    if not matching.merged:
        return sizes
    batch, tokens = sizes.shape
    total = sizes.new_zeros(batch, tokens - matching.merged)
    return total.scatter_add_(1, matching.rows, sizes)


def merge_mean(x: Tensor, sizes: Tensor, matching: Matching) -> tuple[Tensor, Tensor]:
    """Replace every group by its mean, weighted by how many original tokens each member holds.

    Tokens that were not merged keep their exact bits. Merged ones are summed in float32; in 16-bit
    dtypes the weights are rounded to the dtype first, which costs up to about one unit in the last
    place of the largest member.

    Args:
        x: ``[B, T, d]`` floating. Not modified.
        sizes: ``[B, T]`` floating, > 0; float32 counts exactly. Not modified.
        matching: Of these tokens.

    Returns:
        ``[B, T - r, d]`` of the dtype of ``x``, and its sizes ``[B, T - r]``. With ``r = 0`` they
        are ``x`` and ``sizes`` themselves.

    Raises:
        ShapeError: ``x`` or ``sizes`` does not fit the matching.
    """
    if x.ndim != 3 or x.shape[:2] != matching.rows.shape:
        raise ShapeError(f"states are {list(x.shape)}, matched {list(matching.rows.shape)}")
    total = merge_sizes(sizes, matching)
    if not matching.merged:
        return x, sizes
    batch, tokens, width = x.shape
    kept = tokens - matching.merged
    if not batch:
        return x.new_empty(0, kept, width), total
    share = sizes / total.gather(1, matching.rows)
    # One weighted gather for everything. [40, 190, 768], r = 30, bf16 / fp32, CPU ms, one core: 1.6
    # / 2.1 (a bare copy of the kept rows: 0.9 / 1.9); index_select of the kept rows and
    # index_add of the others 2.7 / 5.2; the textbook's gather and scatter_reduce about 14.
    merged = functional.embedding_bag(
        matching.order,
        x.reshape(batch * tokens, width),
        matching.starts,
        mode="sum",
        per_sample_weights=share.flatten()[matching.order].to(x.dtype),
    )
    return merged.view(batch, kept, width), total


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
    if packed.ndim != 2 or (1, len(packed)) != tuple(matching.rows.shape):
        raise ShapeError(f"rows are {list(packed.shape)}, matched {list(matching.rows.shape)}")
    order, starts, rows = matching.order.numpy(), matching.starts.numpy(), matching.rows[0].numpy()
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
        sizes: ``[B, T]`` floating, > 0.

    Returns:
        ``[B, 1, 1, T]``: ``log(sizes)``, to broadcast over heads and queries.
    """
    return sizes.log()[:, None, None, :]


def _sides(tokens: int, protected: Collection[int]) -> tuple[range | list[int], range | list[int]]:
    """Positions that may be merged, and those that may be merged into."""
    even, odd = range(0, tokens, 2), range(1, tokens, 2)
    if not protected:
        return even, odd
    return [i for i in even if i not in protected], [i for i in odd if i not in protected]


def _checked_sides(
    tokens: int, r: int, protected: Collection[int]
) -> tuple[range | list[int], range | list[int]]:
    for position in protected:
        if not 0 <= position < tokens:
            raise ValueError(f"protected position {position} is not among {tokens} tokens")
    even, odd = _sides(tokens, protected)
    links = len(even) if len(odd) else 0
    if not 0 <= r <= links:
        raise ValueError(f"cannot keep {r} links: {tokens} tokens have {links}")
    return even, odd


def _identity(batch: int, tokens: int, device: torch.device) -> Matching:
    every = torch.arange(batch * tokens, device=device)
    return Matching(torch.arange(tokens, device=device).repeat(batch, 1), 0, every, every)


def _keep_best(
    closeness: Tensor,
    partner: Tensor,
    r: int,
    tokens: int,
    even: range | list[int],
    odd: range | list[int],
) -> Matching:
    """The matching of the ``r`` closest links.

    Shapes depend on the arguments' shapes alone, so nothing here waits for a GPU.

    Args:
        closeness: ``[B, len(even)]``, higher is closer.
        partner: ``[B, len(even)]`` int64, place in ``odd`` of each one's nearest.
        r: At least 1.
        tokens: ``T``.
        even: Positions of the linked tokens.
        odd: Positions of their partners.
    """
    batch, device = len(closeness), closeness.device
    best = closeness.sort(dim=-1, descending=True, stable=True).indices[:, :r]
    source = torch.as_tensor(even, device=device)[best]
    target = torch.as_tensor(odd, device=device)[partner.gather(1, best)]
    stays = torch.ones((batch, tokens), dtype=torch.int64, device=device).scatter_(1, source, 0)
    rows = stays.cumsum(1) - 1
    rows = rows.scatter(1, source, rows.gather(1, target))
    kept = tokens - r
    flat = (rows + kept * torch.arange(batch, device=device)[:, None]).flatten()
    order = flat.argsort(stable=True)
    members = torch.zeros(batch * kept, dtype=torch.int64, device=device)
    members.scatter_add_(0, flat, torch.ones_like(flat))
    return Matching(rows, r, order, members.cumsum(0) - members)
