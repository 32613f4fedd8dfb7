"""Merging against its laws and against a textbook version written in loops."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Textbook: groups of tokens, in the order of the ones that stay."""
    stay = [t for t in range(tokens) if t not in links]
    return [sorted([t, *(i for i, j in links.items() if j == t)]) for t in stay]


def groups_in(matching: Matching, sequence: int = 0) -> list[list[int]]:
    """The groups that a matching says."""
    rows = matching.rows[sequence].tolist()
    return [
        [t for t, row in enumerate(rows) if row == group]
        for group in range(len(rows) - matching.merged)
    ]


def available(tokens: int) -> int:
    return (tokens + 1) // 2 if tokens > 1 else 0


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """States ``[B, T, d]`` float64, sizes ``[B, T]`` and a possible ``r``."""
    batch, tokens, width = (
        draw(st.integers(0, 3)),
        draw(st.integers(0, 17)),
        draw(st.integers(1, 6)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    x = torch.randn(batch, tokens, width, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 9, (batch, tokens), generator=generator).double()
    return x, sizes, draw(st.integers(0, available(tokens)))


@st.composite
def packed_rows(draw: st.DrawFn) -> tuple[NDArray[np.uint8], int]:
    """Rows with many equal distances, and a possible ``r``."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, width = draw(st.integers(0, 40)), draw(st.integers(1, 3))
    rows = rng.choice(rng.integers(0, 256, draw(st.integers(1, 6)), dtype=np.uint8), (n, width))
    return rows, draw(st.integers(0, available(n)))


# -- laws -----------------------------------------------------------------------------------------


@given(problems())
def test_merging_conserves_weight(problem: tuple[Tensor, Tensor, int]) -> None:
    x, sizes, r = problem
    merged, total = merge_mean(x, sizes, match(x, r))
    assert merged.shape == (x.shape[0], x.shape[1] - r, x.shape[2])
    assert total.shape == merged.shape[:2]
    assert torch.equal(total.sum(1), sizes.sum(1))
    # float64 sums of at most 17 x 8 terms of size ~1: rounding is far below 1e-10.
    before, after = (x * sizes[..., None]).sum(1), (merged * total[..., None]).sum(1)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


@given(problems())
def test_every_group_is_its_weighted_mean_and_the_rest_keeps_its_bits(
    problem: tuple[Tensor, Tensor, int],
) -> None:
    x, sizes, r = problem
    matching = match(x, r)
    merged, total = merge_mean(x, sizes, matching)
    for s in range(len(x)):
        groups = groups_in(matching, s)
        assert sorted(t for group in groups for t in group) == list(range(x.shape[1]))
        for row, group in enumerate(groups):
            assert total[s, row] == sizes[s, group].sum()
            if len(group) == 1:
                assert torch.equal(merged[s, row], x[s, group[0]])
            else:
                mean = (x[s, group] * sizes[s, group, None]).sum(0) / sizes[s, group].sum()
                torch.testing.assert_close(merged[s, row], mean, rtol=0, atol=1e-12)


@given(problems())
def test_the_r_closest_links_are_kept(problem: tuple[Tensor, Tensor, int]) -> None:
    x, _, r = problem
    matching = match(x, r)
    for s in range(len(x)):
        unit = (x[s] / x[s].norm(dim=-1, keepdim=True)).numpy()
        cosine = unit @ unit.T
        links = best_links(cosine, r)
        # Random float64 vectors: no two similarities are as close as rounding.
        assert groups_in(matching, s) == groups_of(links, x.shape[1])


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-6)])
def test_in_a_narrow_dtype_links_are_the_closest_up_to_rounding(
    dtype: torch.dtype, rounding: float
) -> None:
    x = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(7)).to(dtype)
    unit = torch.nn.functional.normalize(x[0].double(), dim=-1).numpy()
    cosine = unit @ unit.T
    worst_kept = min(cosine[i, j] for i, j in best_links(cosine, 12).items())
    groups = [group for group in groups_in(match(x, 12)) if len(group) > 1]
    for group in groups:
        (odd,) = (t for t in group if t % 2)
        for even in (t for t in group if t % 2 == 0):
            assert cosine[even, odd] >= max(worst_kept, cosine[even, 1::2].max()) - rounding
    assert sum(len(group) - 1 for group in groups) == 12


@given(packed_rows())
def test_the_r_closest_hamming_links_are_kept_with_ties_to_the_earlier(
    problem: tuple[NDArray[np.uint8], int],
) -> None:
    rows, r = problem
    bits = np.unpackbits(rows, axis=1).astype(int)
    closeness = -np.abs(bits[:, None] - bits[None]).sum(-1)
    assert groups_in(match_bits(rows, r)) == groups_of(best_links(closeness, r), len(rows))


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


@given(problems())
def test_ratio_0_changes_nothing(problem: tuple[Tensor, Tensor, int]) -> None:
    x, sizes, _ = problem
    assert merge_count(x.shape[1], 0) == 0
    matching = match(x, 0)
    merged, total = merge_mean(x, sizes, matching)
    assert torch.equal(merged, x)
    assert torch.equal(total, sizes)
    assert matching.rows.tolist() == [list(range(x.shape[1]))] * len(x)


@given(problems(), st.randoms(use_true_random=False))
def test_sequences_of_a_batch_do_not_see_each_other(
    problem: tuple[Tensor, Tensor, int], random: Any
) -> None:
    x, sizes, r = problem
    order = list(range(len(x)))
    random.shuffle(order)
    merged, total = merge_mean(x, sizes, match(x, r))
    again, total_again = merge_mean(x[order], sizes[order], match(x[order], r))
    torch.testing.assert_close(again, merged[order], rtol=0, atol=0)
    assert torch.equal(total_again, total[order])


@given(problems(), st.integers(1, 5))
def test_what_is_given_stays_as_it_is(problem: tuple[Tensor, Tensor, int], scale: int) -> None:
    x, sizes, r = problem
    x_before, sizes_before = x.clone(), sizes.clone()
    matching = match(x, r)
    rows = matching.rows.clone()
    merge_mean(scale * x, sizes, matching)
    assert torch.equal(x, x_before)
    assert torch.equal(sizes, sizes_before)
    assert torch.equal(matching.rows, rows)


@given(problems())
def test_the_metric_may_be_scaled(problem: tuple[Tensor, Tensor, int]) -> None:
    x, _, r = problem
    assert torch.equal(match(4 * x, r).rows, match(x, r).rows)


# -- cases ----------------------------------------------------------------------------------------


def test_two_tokens_into_one_by_hand() -> None:
    # Evens 0, 2, 4; odds 1, 3. Both 0 and 4 point at 3, 2 is nearest to 1 but only just.
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-0.5, 1.0], [2.0, 0.0], [3.0, 0.3]]])
    sizes = torch.tensor([[1.0, 1.0, 1.0, 2.0, 1.0]])
    matching = match(x, 2)
    assert matching.rows.tolist() == [[2, 0, 1, 2, 2]]
    merged, total = merge_mean(x, sizes, matching)
    assert total.tolist() == [[1, 1, 4]]
    torch.testing.assert_close(merged, torch.tensor([[[0.0, 1.0], [-0.5, 1.0], [2.0, 0.075]]]))


def test_merging_twice_counts_original_tokens() -> None:
    x = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = torch.ones(2, 12, dtype=torch.float64)
    once, counted = merge_mean(x, sizes, match(x, 5))
    twice, counted_twice = merge_mean(once, counted, match(once, 3))
    assert counted_twice.sum(1).tolist() == [12, 12]
    torch.testing.assert_close((twice * counted_twice[..., None]).sum(1), x.sum(1))


def test_equal_links_and_equal_partners_go_to_the_earlier() -> None:
    matching = match(torch.ones(2, 8, 3), 2)
    assert matching.rows.tolist() == [[0, 0, 0, 1, 2, 3, 4, 5]] * 2
    zeros = np.zeros((8, 2), dtype=np.uint8)
    assert match_bits(zeros, 2).rows.tolist() == [[0, 0, 0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("protected", [(0,), (1,), (0, 1, 6), range(6)])
def test_protected_positions_stay_alone(protected: Sequence[int]) -> None:
    x = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(1))
    r = merge_count(12, 0.5, protected=protected)
    assert r == sum(i not in protected for i in range(0, 12, 2))
    matching = match(x, r, protected=protected)
    for s in range(3):
        groups = groups_in(matching, s)
        assert all([position] in groups for position in protected)
        assert len(groups) == 12 - r
    with pytest.raises(ValueError, match=f"cannot keep {r + 1} links"):
        match(x, r + 1, protected=protected)


def test_protected_tokens_do_not_change_which_of_the_others_are_closest() -> None:
    x = torch.randn(1, 9, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    unit = (x[0] / x[0].norm(dim=-1, keepdim=True)).numpy()
    cosine = unit @ unit.T
    cosine[:, [1, 4]] = cosine[[1, 4], :] = -2
    links = best_links(cosine, 3)
    assert 4 not in links
    assert groups_in(match(x, 3, protected=(1, 4))) == groups_of(links, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_are_near_the_exact_mean(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 50, 64, generator=generator).to(dtype)
    sizes = torch.randint(1, 5, (4, 50), generator=generator).float()
    matching = match(x, 20)
    merged, total = merge_mean(x, sizes, matching)
    exact, exact_total = merge_mean(x.double(), sizes.double(), matching)
    assert merged.dtype == dtype
    assert torch.equal(total.double(), exact_total)
    # Weights and the result are rounded once each: 2 roundings of the largest value.
    limit = 2 * torch.finfo(dtype).eps * float(x.abs().max())
    assert float((merged.double() - exact).abs().max()) <= limit


def test_the_metric_may_be_another_tensor_than_the_states() -> None:
    generator = torch.Generator().manual_seed(4)
    keys, x = torch.randn(2, 10, 3, generator=generator), torch.randn(2, 10, 8, generator=generator)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    matching = match(keys, 4)
    merged, _ = merge_mean(x, torch.ones(2, 10), matching)
    again, _ = merge_mean(strided, torch.ones(2, 10), matching)
    assert torch.equal(merged, again)


def test_sizes_alone_and_their_attention_bias() -> None:
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(5))
    matching = match(x, 2)
    total = merge_sizes(torch.ones(2, 6), matching)
    assert torch.equal(total, merge_mean(x, torch.ones(2, 6), matching)[1])
    bias = size_bias(total)
    assert bias.shape == (2, 1, 1, 4)
    torch.testing.assert_close(bias.exp().view(2, 4), total)


def test_a_token_merged_from_equal_ones_is_attended_to_like_all_of_them() -> None:
    generator = torch.Generator().manual_seed(6)
    query, other = torch.randn(2, 1, 1, 4, generator=generator, dtype=torch.float64)
    same = torch.randn(1, 1, 4, generator=generator, dtype=torch.float64).expand(1, 3, 4)
    keys = torch.cat([same, other], 1)
    merged, total = merge_mean(keys, torch.ones(1, 4, dtype=torch.float64), match(keys, 2))
    attention = torch.nn.functional.scaled_dot_product_attention
    after = attention(query[None], merged[None], merged[None], attn_mask=size_bias(total))
    torch.testing.assert_close(after, attention(query[None], keys[None], keys[None]))


def test_nearest_rows_are_found_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (101, 5), dtype=np.uint8)
    whole = match_bits(rows, 20).rows
    monkeypatch.setattr("btr.merge._NEAREST_PAIRS", 150)  # three even rows at a time
    assert torch.equal(match_bits(rows, 20).rows, whole)


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


def test_merge_count_stops_where_links_end() -> None:
    assert merge_count(4, 0.5, protected=(0,)) == 1
    assert merge_count(4, 0.5, protected=(1, 3)) == 0
    for ratio in (-0.1, 0.51, float("nan")):
        with pytest.raises(ValueError, match=r"ratio is 0 \.\. 0\.5"):
            merge_count(10, ratio)


def test_wrong_calls_are_refused() -> None:
    x = torch.ones(2, 6, 3)
    matching = match(x, 2)
    with pytest.raises(ShapeError, match=r"\[B, T, m\], not \[2, 6\]"):
        match(x[..., 0], 1)
    with pytest.raises(ValueError, match="cannot keep 4 links: 6 tokens have 3"):
        match(x, 4)
    with pytest.raises(ValueError, match="cannot keep -1 links"):
        match(x, -1)
    with pytest.raises(ValueError, match="cannot keep 1 links: 1 tokens have 0"):
        match(x[:, :1], 1)
    with pytest.raises(ValueError, match="position 6 is not among 6"):
        match(x, 1, protected=(6,))
    with pytest.raises(ShapeError, match=r"states are \[2, 5, 3\], matched \[2, 6\]"):
        merge_mean(x[:, :5], torch.ones(2, 5), matching)
    with pytest.raises(ShapeError, match=r"sizes are \[6\], matched \[2, 6\]"):
        merge_mean(x, torch.ones(6), matching)
    rows = np.zeros((6, 2), dtype=np.uint8)
    with pytest.raises(ShapeError, match=r"uint8 \[n, b\], not int8 \[6, 2\]"):
        match_bits(rows.astype(np.int8), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot keep 4 links"):
        match_bits(rows, 4)
    with pytest.raises(ShapeError, match=r"rows are \[6, 2\], matched \[2, 6\]"):
        merge_signs(rows, matching)
