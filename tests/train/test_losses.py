"""Training losses against their definitions."""

from __future__ import annotations

import pytest
import torch

from btr.train import losses


def test_span_nll_sums_over_whole_spans():
    start = torch.tensor([[1.0, 2.0, 3.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    end = torch.tensor([[2.0, 0.0, 1.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    spans = torch.tensor([[[1, 1], [2, 2]], [[0, 0], [-1, -1]]])
    p, q = torch.softmax(start[0, :3], 0), torch.softmax(end[0, :3], 0)
    # Not (p[1] + p[2]) * (q[1] + q[2]): one place's start with another's end is no answer.
    first = -torch.log(p[1] * q[1] + p[2] * q[2])
    second = -torch.log(torch.tensor(0.25 * 0.25))
    expected = (first + second) / 4
    assert losses.span_nll(start, end, mask, spans).item() == pytest.approx(expected.item())


def test_divergence_is_zero_for_equal_answers_and_positive_otherwise():
    torch.manual_seed(0)
    a, b = torch.randn(3, 7), torch.randn(3, 7)
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 4:] = False
    assert losses.answer_divergence(a, a, mask).item() == pytest.approx(0, abs=1e-6)
    assert losses.answer_divergence(a, b, mask).item() > 0
    moved = b.clone()
    moved[0, 4:] += 100  # masked positions take no part
    assert losses.answer_divergence(a, moved, mask).item() == pytest.approx(
        losses.answer_divergence(a, b, mask).item()
    )


def test_query_aware_tokens_are_those_the_query_looks_at():
    # One head; two query tokens (the second is padding) and five passage tokens (the last too).
    attention = torch.zeros(1, 1, 7, 7)
    attention[0, 0, 0, 2:] = torch.tensor([0.1, 0.5, 0.2, 0.4, 0.9])
    attention[0, 0, 1, 2:] = torch.tensor([9.0, 0, 9.0, 0, 9.0])
    query_mask = torch.tensor([[True, False]])
    passage_mask = torch.tensor([[True, True, True, True, False]])
    chosen = losses.query_aware_tokens([attention], query_mask, passage_mask, 0.5)
    assert chosen.tolist() == [[False, True, False, True, False]]
    everything = losses.query_aware_tokens([attention], query_mask, passage_mask, 1.0)
    assert torch.equal(everything, passage_mask)


def test_state_distance_looks_at_chosen_tokens_only():
    student, teacher = torch.zeros(1, 3, 4), torch.ones(1, 3, 4)
    student[0, 2] = 1000
    tokens = torch.tensor([[True, True, False]])
    assert losses.state_distance([student], [teacher], tokens).item() == 1


def test_recovery_looks_at_real_tokens_only():
    h, recovered = torch.zeros(1, 3, 4), torch.full((1, 3, 4), 2.0)
    recovered[0, 2] = 1000
    mask = torch.tensor([[True, True, False]])
    assert losses.recovery_loss(h, recovered, mask).item() == 4
