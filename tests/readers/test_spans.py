"""Span scoring against brute force."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from btr.readers.spans import span_scores, top_spans


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**31), st.integers(1, 12))
def test_top_spans_are_the_best_of_all(width, longest, seed, top):
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 2, width, generator=generator)
    allowed = torch.rand(2, width, generator=generator) < 0.7
    scores = span_scores(start, end, allowed, longest)
    values, firsts, lasts = top_spans(scores, top)
    for row in range(2):
        brute = sorted(
            (
                (float(start[row, i] + end[row, j]), i, j)
                for i in range(width)
                for j in range(i, min(i + longest, width))
                if allowed[row, i] and allowed[row, j]
            ),
            reverse=True,
        )[:top]
        found = [
            (float(v), int(i), int(j))
            for v, i, j in zip(values[row], firsts[row], lasts[row], strict=True)
            if v > -torch.inf
        ]
        assert found == brute
        assert torch.isfinite(scores[row]).sum() == sum(
            bool(allowed[row, i] and allowed[row, j])
            for i in range(width)
            for j in range(i, min(i + longest, width))
        )
