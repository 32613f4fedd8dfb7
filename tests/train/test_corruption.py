"""Span corruption: nothing lost, nothing twice, the right share, repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.train.corruption import DENSITY, corrupt

SENTINELS = range(1000, 1100)
END = 1


def whole(source: np.ndarray, target: np.ndarray) -> list[int]:
    """The text put together again."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if token >= 1000:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    text: list[int] = []
    for token in source.tolist():
        text += spans[token] if token >= 1000 else [token]
    return text


@given(st.integers(2, 400), st.integers(0, 2**32 - 1))
def test_source_and_target_make_the_text(n: int, seed: int):
    ids = np.arange(2, 2 + n, dtype=np.int32)
    source, target = corrupt(ids, np.random.default_rng(seed), SENTINELS, END)
    assert target[-1] == END
    assert whole(source, target) == ids.tolist()
    cut = len(target) - 1 - int((target >= 1000).sum())
    assert cut == min(max(1, round(n * DENSITY)), n - 1)
    marks = source[source >= 1000]
    assert marks.tolist() == list(range(1000, 1000 + len(marks)))
    assert (target[target >= 1000] == marks).all()


def test_few_sentinels_bound_the_spans():
    ids = np.arange(2, 500, dtype=np.int32)
    source, target = corrupt(ids, np.random.default_rng(0), [1000, 1001], END)
    assert (source >= 1000).sum() == 2
    assert whole(source, target) == ids.tolist()


def test_one_token_is_refused():
    with pytest.raises(ValueError, match="1 tokens"):
        corrupt(np.array([5], np.int32), np.random.default_rng(0), SENTINELS, END)
