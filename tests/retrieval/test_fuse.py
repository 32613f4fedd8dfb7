from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.retrieval.fuse import reciprocal_rank_fusion

rankings = st.lists(st.lists(st.integers(0, 30), unique=True, max_size=15), max_size=4)


def test_scores_are_sums_of_reciprocal_ranks() -> None:
    fused = reciprocal_rank_fusion([[7, 3], [3, 9]], k=10)
    assert fused == [
        (3, pytest.approx(1 / 62 + 1 / 61)),
        (7, pytest.approx(1 / 61)),
        (9, pytest.approx(1 / 62)),
    ]


def test_equal_scores_are_ordered_by_ordinal() -> None:
    assert [o for o, _ in reciprocal_rank_fusion([[5, 1], [1, 5]], k=2)] == [1, 5]
    assert [o for o, _ in reciprocal_rank_fusion([[9], [2]], k=2)] == [2, 9]


@given(st.lists(st.integers(0, 100), unique=True), st.integers(0, 20))
def test_one_ranking_alone_keeps_its_order(ranking: list[int], k: int) -> None:
    assert [o for o, _ in reciprocal_rank_fusion([ranking], k)] == ranking[:k]


@given(rankings, st.integers(0, 40))
def test_fusion_holds_exactly_the_ranked_best_first(lists: list[list[int]], k: int) -> None:
    fused = reciprocal_rank_fusion(lists, k)
    everything = reciprocal_rank_fusion(lists, 100)
    assert fused == everything[:k]
    assert {o for o, _ in everything} == {o for ranking in lists for o in ranking}
    assert all(a >= b for (_, a), (_, b) in pairwise(everything))


@given(rankings)
def test_the_order_of_the_rankings_does_not_matter_for_the_set(lists: list[list[int]]) -> None:
    forwards = dict(reciprocal_rank_fusion(lists, 100))
    assert forwards == pytest.approx(dict(reciprocal_rank_fusion(lists[::-1], 100)))


@pytest.mark.parametrize(("lists", "k", "c"), [([[1, 1]], 5, 60), ([[1]], -1, 60), ([[1]], 1, -1)])
def test_nonsense_is_refused(lists: list[list[int]], k: int, c: float) -> None:
    with pytest.raises(ValueError, match=r"twice|negative"):
        reciprocal_rank_fusion(lists, k, c)
