"""Merging against its laws and against a textbook version written in loops."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from btr.bits import ShapeError
from btr.merge import (
    Matching,
    match,
    match_bits,
    merge_count,
    merge_mean,
    merge_signs,
    merge_sizes,
    size_bias,
)


def best_links(closeness: NDArray[Any], r: int) -> dict[int, int]:
    """Textbook: token -> partner for the ``r`` closest even-odd links; ties to earlier tokens."""
    links = []
    for i in range(0, len(closeness), 2):
        best = max(range(1, len(closeness), 2), key=lambda j: (closeness[i, j], -j), default=None)
        if best is not None:
            links.append((-closeness[i, best], i, best))
    return {i: j for _, i, j in sorted(links)[:r]}


def groups_of(links: dict[int, int], tokens: int) -> list[list[int]]:
    """Textbook: groups of tokens, in the order of the ones that stay, which come first in each."""
    stay = [t for t in range(tokens) if t not in links]
    return [[t, *(i for i, j in links.items() if j == t)] for t in stay]


def cosines(x: Tensor) -> NDArray[np.float64]:
    unit = torch.nn.functional.normalize(x.double(), dim=-1).numpy()
    result: NDArray[np.float64] = unit @ unit.T
    return result


def groups_slowly(x: Tensor, lengths: list[int], counts: list[int]) -> list[list[int]]:
    """Textbook: groups of packed sequences."""
    groups, first = [], 0
    for length, count in zip(lengths, counts, strict=True):
        links = best_links(cosines(x[first : first + length]), count)
        groups += [[first + t for t in group] for group in groups_of(links, length)]
        first += length
    return groups


def groups_in(matching: Matching) -> list[list[int]]:
    """The groups that a matching says, the one that stays first in each."""
    rows = matching.rows.tolist()
    groups = [[t for t, to in enumerate(rows) if to == row] for row in range(len(matching.kept))]
    return [
        sorted(group, key=lambda t, stays=stays: (t != stays, t))
        for stays, group in zip(matching.kept.tolist(), groups, strict=True)
    ]


def same(groups: list[list[int]]) -> list[tuple[int, set[int]]]:
    """Groups without the order of what goes into the one that stays."""
    return [(group[0], set(group)) for group in groups]


def available(tokens: int) -> int:
    return (tokens + 1) // 2 if tokens > 1 else 0


def parts(x: Tensor, lengths: list[int] | tuple[int, ...]) -> tuple[Tensor, ...]:
    return torch.split(x, list(lengths))


@dataclass(frozen=True)
class Problem:
    """States ``[N, d]``, sizes ``[N]``, and sequences with possible counts."""

    x: Tensor
    sizes: Tensor
    lengths: list[int]
    counts: list[int]


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Lengths, and a possible count of each."""
    # Beyond 32 the sides of a product are rounded up by less than a tile.
    lengths = draw(st.lists(st.integers(0, 17) | st.integers(30, 40), max_size=5))
    return lengths, [draw(st.integers(0, available(n))) for n in lengths]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Random float64 states: no two similarities are as close as rounding."""
    lengths, counts = draw(sequences())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tokens, width = sum(lengths), draw(st.integers(2, 6))
    x = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 9, (tokens,), generator=generator).double()
    return Problem(x, sizes, lengths, counts)


@st.composite
def tied_problems(draw: st.DrawFn) -> Problem:
    """Unit vectors along the axes and zeros: similarities are -1, 0 and 1, exact in any dtype."""
    lengths, counts = draw(sequences())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    axes = np.vstack([np.eye(3), -np.eye(3), np.zeros((1, 3))])
    x = torch.from_numpy(axes[rng.integers(0, draw(st.integers(1, 7)), sum(lengths))])
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]))
    return Problem(x.to(dtype), torch.ones(sum(lengths)), lengths, counts)


@st.composite
def packed_rows(draw: st.DrawFn) -> tuple[NDArray[np.uint8], int]:
    """Rows with many equal distances, and a possible ``r``."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, width = draw(st.integers(0, 40)), draw(st.integers(1, 3))
    rows = rng.choice(rng.integers(0, 256, draw(st.integers(1, 6)), dtype=np.uint8), (n, width))
    return rows, draw(st.integers(0, available(n)))


# -- laws -----------------------------------------------------------------------------------------


@given(problems())
def test_merging_conserves_the_weight_of_every_sequence(p: Problem) -> None:
    matching = match(p.x, p.lengths, p.counts)
    assert matching.lengths == tuple(n - r for n, r in zip(p.lengths, p.counts, strict=True))
    merged, total = merge_mean(p.x, p.sizes, matching)
    assert len(merged) == len(total) == len(matching.kept) == sum(matching.lengths)
    before = zip(parts(p.x, p.lengths), parts(p.sizes, p.lengths), strict=True)
    after = zip(parts(merged, matching.lengths), parts(total, matching.lengths), strict=True)
    for (x, sizes), (y, sums) in zip(before, after, strict=True):
        assert sums.sum() == sizes.sum()
        # float64 sums of at most 40 x 8 terms of size ~1: rounding is far below 1e-10.
        torch.testing.assert_close(sums @ y, sizes @ x, rtol=0, atol=1e-10)


@given(problems())
def test_it_is_what_the_textbook_says(p: Problem) -> None:
    matching = match(p.x, p.lengths, p.counts)
    groups = groups_slowly(p.x, p.lengths, p.counts)
    assert same(groups_in(matching)) == same(groups)
    merged, total = merge_mean(p.x, p.sizes, matching)
    for row, group in enumerate(groups):
        assert total[row] == p.sizes[group].sum()
        if len(group) == 1:
            assert torch.equal(merged[row], p.x[group[0]])
        else:
            mean = p.sizes[group] @ p.x[group] / p.sizes[group].sum()
            torch.testing.assert_close(merged[row], mean, rtol=0, atol=1e-12)


@given(tied_problems())
def test_equally_close_ones_go_to_the_earlier(p: Problem) -> None:
    matching = match(p.x, p.lengths, p.counts)
    assert same(groups_in(matching)) == same(groups_slowly(p.x, p.lengths, p.counts))


@given(problems())
def test_the_parts_of_a_matching_agree(p: Problem) -> None:
    matching = match(p.x, p.lengths, p.counts)
    tokens = torch.arange(len(p.x))
    assert torch.equal(matching.rows[matching.kept], torch.arange(len(matching.kept)))
    assert torch.equal(matching.order.sort().values, tokens)
    assert torch.equal(matching.kept, matching.kept.sort().values)
    ends = [*matching.starts.tolist()[1:], len(tokens)]
    for row, (start, end) in enumerate(zip(matching.starts.tolist(), ends, strict=False)):
        group = (matching.rows == row).nonzero()[:, 0]
        assert matching.order[start:end].tolist() == group.tolist()
    for tensor in (matching.rows, matching.kept, matching.order, matching.starts):
        assert tensor.dtype == torch.int64


@given(problems())
def test_every_sequence_is_merged_as_if_it_were_alone(p: Problem) -> None:
    matching = match(p.x, p.lengths, p.counts)
    merged, total = merge_mean(p.x, p.sizes, matching)
    firsts = accumulate(p.lengths, initial=0)
    kept = parts(matching.kept, matching.lengths)
    rows = zip(parts(merged, matching.lengths), parts(total, matching.lengths), kept, strict=True)
    alone = zip(parts(p.x, p.lengths), parts(p.sizes, p.lengths), p.lengths, p.counts, strict=True)
    for first, (y, sums, stay), (x, sizes, length, count) in zip(firsts, rows, alone, strict=False):
        one = match(x, [length], [count])
        again, total_again = merge_mean(x, sizes, one)
        assert torch.equal(again, y)
        assert torch.equal(total_again, sums)
        assert torch.equal(one.kept + first, stay)


@given(problems())
def test_ratio_0_changes_nothing(p: Problem) -> None:
    matching = match(p.x, p.lengths, [merge_count(n, 0) for n in p.lengths])
    merged, total = merge_mean(p.x, p.sizes, matching)
    assert torch.equal(merged, p.x)
    assert torch.equal(total, p.sizes)
    assert matching.lengths == tuple(p.lengths)
    assert groups_in(matching) == [[t] for t in range(len(p.x))]


@given(problems(), st.integers(1, 5))
def test_what_is_given_stays_as_it_is(p: Problem, scale: int) -> None:
    x_before, sizes_before = p.x.clone(), p.sizes.clone()
    matching = match(p.x, p.lengths, p.counts)
    rows = matching.rows.clone()
    merge_mean(scale * p.x, p.sizes, matching)
    assert torch.equal(p.x, x_before)
    assert torch.equal(p.sizes, sizes_before)
    assert torch.equal(matching.rows, rows)


@given(problems())
def test_every_vector_of_the_metric_may_be_scaled(p: Problem) -> None:
    # Powers of 2 round nothing.
    scale = 2.0 ** (torch.arange(len(p.x)) % 7 - 3).double()
    scaled = match(p.x * scale[:, None], p.lengths, p.counts)
    assert torch.equal(scaled.rows, match(p.x, p.lengths, p.counts).rows)


@given(packed_rows())
def test_the_r_closest_hamming_links_are_kept_with_ties_to_the_earlier(
    problem: tuple[NDArray[np.uint8], int],
) -> None:
    rows, r = problem
    bits = np.unpackbits(rows, axis=1).astype(int)
    closeness = -np.abs(bits[:, None] - bits[None]).sum(-1)
    matching = match_bits(rows, r)
    assert matching.lengths == (len(rows) - r,)
    assert same(groups_in(matching)) == same(groups_of(best_links(closeness, r), len(rows)))


@given(packed_rows())
def test_merged_signs_are_the_signs_of_the_group_means(
    problem: tuple[NDArray[np.uint8], int],
) -> None:
    rows, r = problem
    matching = match_bits(rows, r)
    merged, new_row = merge_signs(rows, matching)
    signs = 2.0 * np.unpackbits(rows, axis=1) - 1
    assert merged.shape == (len(rows) - r, rows.shape[1])
    for row, group in enumerate(groups_in(matching)):
        assert (new_row[group] == row).all()
        assert np.array_equal(np.unpackbits(merged[row]), signs[group].mean(0) > 0)


# -- cases ----------------------------------------------------------------------------------------


def test_two_sequences_by_hand() -> None:
    # First: evens 0, 2, 4; odds 1, 3. Both 0 and 4 point at 3, 2 is nearest to 1 but only just.
    # Second: a token alone. Third: two that are equal.
    x = torch.tensor(
        [[1.0, 0.0], [0.0, 1.0], [-0.5, 1.0], [2.0, 0.0], [3.0, 0.3], [7, 7], [1, 1], [1, 1]]
    )
    sizes = torch.tensor([1.0, 1, 1, 2, 1, 1, 3, 1])
    matching = match(x, [5, 1, 2], [2, 0, 1])
    assert matching.rows.tolist() == [2, 0, 1, 2, 2, 3, 4, 4]
    assert matching.lengths == (3, 1, 1)
    assert matching.kept.tolist() == [1, 2, 3, 5, 7]
    merged, total = merge_mean(x, sizes, matching)
    assert total.tolist() == [1, 1, 4, 1, 4]
    expected = torch.tensor([[0.0, 1.0], [-0.5, 1.0], [2.0, 0.075], [7, 7], [1, 1]])
    torch.testing.assert_close(merged, expected)


def test_merging_twice_counts_original_tokens() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first = match(x, [12, 8], [5, 1])
    once, counted = merge_mean(x, torch.ones(20, dtype=torch.float64), first)
    second = match(once, first.lengths, [3, 2])
    twice, counted_twice = merge_mean(once, counted, second)
    assert second.lengths == (4, 5)
    assert [int(part.sum()) for part in parts(counted_twice, second.lengths)] == [12, 8]
    torch.testing.assert_close(counted_twice @ twice, x.sum(0))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0], [1], [1, 0, 1]])
def test_sequences_without_links_stay_as_they_are(lengths: list[int]) -> None:
    x, sizes = torch.ones(sum(lengths), 3), torch.ones(sum(lengths))
    matching = match(x, lengths, [merge_count(n, 0.5) for n in lengths])
    merged, total = merge_mean(x, sizes, matching)
    assert torch.equal(merged, x)
    assert torch.equal(total, sizes)
    assert matching.lengths == tuple(lengths)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-6)])
def test_in_a_narrow_dtype_links_are_the_closest_up_to_rounding(
    dtype: torch.dtype, rounding: float
) -> None:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(7)).to(dtype)
    cosine = cosines(x)
    worst_kept = min(cosine[i, j] for i, j in best_links(cosine, 12).items())
    groups = groups_in(match(x, [40], [12]))
    for odd, *evens in groups:
        for even in evens:
            assert cosine[even, odd] >= max(worst_kept, cosine[even, 1::2].max()) - rounding
    assert sum(len(group) - 1 for group in groups) == 12


def test_large_states_in_float16_do_not_overflow() -> None:
    x = torch.randn(30, 16, generator=torch.Generator().manual_seed(8)).half()
    # The products of the scaled ones are far beyond 65504.
    assert torch.equal(match(1024 * x, [30], [9]).rows, match(x, [30], [9]).rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_are_near_the_exact_mean(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 64, generator=generator).to(dtype)
    sizes = torch.randint(1, 5, (200,), generator=generator).float()
    matching = match(x, [50, 90, 60], [20, 30, 30])
    merged, total = merge_mean(x, sizes, matching)
    exact, exact_total = merge_mean(x.double(), sizes.double(), matching)
    assert merged.dtype == dtype
    assert torch.equal(total.double(), exact_total)
    # Weights and the result are rounded once each: 2 roundings of the largest value.
    limit = 2 * torch.finfo(dtype).eps * float(x.abs().max())
    assert float((merged.double() - exact).abs().max()) <= limit


def test_the_metric_may_be_another_tensor_than_the_states_and_neither_contiguous() -> None:
    generator = torch.Generator().manual_seed(4)
    keys, x = torch.randn(20, 3, generator=generator), torch.randn(20, 8, generator=generator)
    strided_keys, strided = keys.T.contiguous().T, x.T.contiguous().T
    matching = match(keys, [8, 12], [4, 2])
    assert torch.equal(match(strided_keys, [8, 12], [4, 2]).rows, matching.rows)
    merged, _ = merge_mean(x, torch.ones(20), matching)
    again, _ = merge_mean(strided, torch.ones(20), matching)
    assert torch.equal(merged, again)


def test_sizes_alone_and_their_attention_bias() -> None:
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(5))
    matching = match(x, [7, 5], [2, 2])
    total = merge_sizes(torch.ones(12), matching)
    assert torch.equal(total, merge_mean(x, torch.ones(12), matching)[1])
    bias = size_bias(total)
    assert bias.shape == (8,)
    torch.testing.assert_close(bias.exp(), total)


def test_a_token_merged_from_equal_ones_is_attended_to_like_all_of_them() -> None:
    generator = torch.Generator().manual_seed(6)
    query, same_key, other = torch.randn(3, 1, 4, generator=generator, dtype=torch.float64)
    keys = torch.cat([same_key.expand(3, 4), other])
    merged, total = merge_mean(keys, torch.ones(4, dtype=torch.float64), match(keys, [4], [2]))
    attention = torch.nn.functional.scaled_dot_product_attention
    after = attention(query[None], merged[None], merged[None], attn_mask=size_bias(total)[None])
    torch.testing.assert_close(after, attention(query[None], keys[None], keys[None]))


def test_a_long_sequence_is_matched_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(240, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    lengths, counts = [30, 201, 9], [10, 60, 2]
    whole = match(x, lengths, counts).rows
    monkeypatch.setattr("btr.merge._SIMILAR_PAIRS", 1)  # 16 even tokens at a time
    monkeypatch.setattr("btr.merge._NORM_ROWS", 7)
    assert torch.equal(match(x, lengths, counts).rows, whole)


def test_nearest_rows_are_found_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (101, 5), dtype=np.uint8)
    whole = match_bits(rows, 20).rows
    monkeypatch.setattr("btr.merge._NEAREST_PAIRS", 150)  # three even rows at a time
    assert torch.equal(match_bits(rows, 20).rows, whole)


def test_all_shapes_are_known_without_values() -> None:
    # Tensors on "meta" have no values, so whatever would wait for a GPU to tell some fails.
    x, sizes = torch.empty(50, 8, device="meta"), torch.empty(50, device="meta")
    matching = match(x, [20, 1, 29], [3, 0, 14])
    merged, total = merge_mean(x, sizes, matching)
    assert matching.lengths == (17, 1, 15)
    assert merged.shape == (33, 8)
    assert total.shape == matching.kept.shape == matching.starts.shape == (33,)
    assert matching.rows.shape == matching.order.shape == (50,)


def test_a_pair_that_differs_becomes_minus_one_there() -> None:
    rows = np.array([[0b11110000], [0b11001100]], dtype=np.uint8)
    merged, new_row = merge_signs(rows, match_bits(rows, 1))
    assert merged.tolist() == [[0b11000000]]
    assert new_row.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("tokens", "ratio", "expected"),
    [
        (0, 0.5, 0),
        (1, 0.5, 0),
        (2, 0.5, 1),
        (150, 0.2, 30),
        (100, 0.29, 29),
        (7, 0.5, 3),
        (9, 0.1, 0),
    ],
)
def test_merge_count(tokens: int, ratio: float, expected: int) -> None:
    assert merge_count(tokens, ratio) == expected


@given(st.integers(0, 10_000), st.floats(0, 0.5))
def test_there_are_always_enough_links_for_a_ratio(tokens: int, ratio: float) -> None:
    assert 0 <= merge_count(tokens, ratio) <= available(tokens)


@pytest.mark.parametrize("ratio", [-0.1, 0.51, float("nan")])
def test_a_ratio_is_at_most_one_half(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ratio is 0 \.\. 0\.5"):
        merge_count(10, ratio)


def test_wrong_calls_are_refused() -> None:
    x, sizes = torch.ones(9, 3), torch.ones(9)
    matching = match(x, [6, 3], [2, 1])
    with pytest.raises(ShapeError, match=r"\[9, m\] for 2 sequences, not \[9\]"):
        match(x[:, 0], [6, 3], [1, 1])
    with pytest.raises(ShapeError, match=r"\[8, m\] for 2 sequences, not \[9, 3\]"):
        match(x, [6, 2], [1, 1])
    with pytest.raises(ValueError, match="1 counts for 2 sequences"):
        match(x, [6, 3], [1])
    with pytest.raises(ValueError, match="sequence 1 cannot have -1 tokens"):
        match(x, [10, -1], [1, 0])
    with pytest.raises(ValueError, match="cannot keep 4 links of sequence 0: 6 tokens have 3"):
        match(x, [6, 3], [4, 0])
    with pytest.raises(ValueError, match="cannot keep -1 links of sequence 1"):
        match(x, [6, 3], [0, -1])
    with pytest.raises(ValueError, match="cannot keep 1 links of sequence 1: 1 tokens have 0"):
        match(x, [8, 1], [1, 1])
    with pytest.raises(ShapeError, match=r"states are \[8, 3\], matched \[9\]"):
        merge_mean(x[:8], sizes[:8], matching)
    with pytest.raises(ShapeError, match=r"states are \[9\], matched \[9\]"):
        merge_mean(x[:, 0], sizes, matching)
    with pytest.raises(ShapeError, match=r"sizes are \[3, 3\], matched \[9\]"):
        merge_mean(x, torch.ones(3, 3), matching)
    rows = np.zeros((6, 2), dtype=np.uint8)
    with pytest.raises(ShapeError, match=r"uint8 \[n, b\], not int8 \[6, 2\]"):
        match_bits(rows.astype(np.int8), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot keep 4 links"):
        match_bits(rows, 4)
    with pytest.raises(ShapeError, match=r"rows are \[6, 2\], matched \[9\]"):
        merge_signs(rows, matching)
