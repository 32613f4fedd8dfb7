from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.evaluate.metrics import (
    accuracy,
    bootstrap_interval,
    exact_match,
    f1_score,
    normalize_answer,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles!", "beatles"),
        ("a an the", ""),
        ("Theatre of an era", "theatre of era"),
        ("U.S.", "us"),
        ("the-end", "theend"),  # punctuation goes first, as in SQuAD's own script
        ("14 December, 1972", "14 december 1972"),
        ("“Quoted”", "“quoted”"),
    ],
)
def test_normalisation_is_that_of_squad(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


def test_exact_match_takes_the_best_answer() -> None:
    assert exact_match("the Moon.", ["Sun", "moon"]) == 1.0
    assert exact_match("moon base", ["Sun", "moon"]) == 0.0
    assert exact_match("x", []) == 0.0


def test_f1_by_hand() -> None:
    # 2 common tokens, 3 predicted, 2 wanted: precision 2/3, recall 1
    assert f1_score("in December 1972", ["December 1972", "1972"]) == pytest.approx(0.8)
    assert f1_score("cat cat", ["cat"]) == pytest.approx(2 / 3)
    assert f1_score("dog", ["cat"]) == 0.0
    assert f1_score("the", ["a"]) == 1.0
    assert f1_score("dog", ["the"]) == 0.0
    assert f1_score("dog", []) == 0.0


@given(st.text(max_size=30), st.text(max_size=30))
def test_f1_is_symmetric_bounded_and_one_on_a_match(a: str, b: str) -> None:
    assert 0 <= f1_score(a, [b]) <= 1
    assert f1_score(a, [b]) == f1_score(b, [a])
    assert f1_score(a, [b, a]) == 1.0
    assert exact_match(a, [b]) <= f1_score(a, [b])


def test_accuracy() -> None:
    assert accuracy(["A", "B", "C", "A"], ["A", "B", "D", "B"]) == 0.5
    with pytest.raises(ValueError, match="no predictions"):
        accuracy([], [])
    with pytest.raises(ValueError, match="argument 2"):
        accuracy(["A"], ["A", "B"])


def test_bootstrap_interval_is_seeded_and_has_the_right_width() -> None:
    values = [0.0, 1.0] * 200
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    skewed = [n**2 for n in range(50)]
    assert bootstrap_interval(skewed) != bootstrap_interval(skewed, seed=1)
    # The standard error of a share of one half over 400 is 0.025.
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.01)
    assert high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.01)
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])
