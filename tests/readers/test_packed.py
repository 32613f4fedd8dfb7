from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from btr.readers.packed import TOKEN_STEP, PackedAttention, filled


@pytest.mark.parametrize("tokens", [1, TOKEN_STEP - 1, TOKEN_STEP, TOKEN_STEP + 1, 3 * TOKEN_STEP])
def test_only_long_batches_are_filled_and_only_to_the_next_step(tokens: int) -> None:
    states, rows = torch.randn(tokens, 3), torch.arange(1, tokens + 1)
    for given in (states, rows):
        made = filled(given)
        assert made.dtype == given.dtype
        assert torch.equal(made[:tokens], given)
        assert not made[tokens:].any()
        assert len(made) == tokens if tokens < TOKEN_STEP else len(made) % TOKEN_STEP == 0
        assert len(made) - tokens < TOKEN_STEP


def test_attention_stays_within_sequences_and_is_zero_behind_them() -> None:
    q, k, v = torch.randn(3, 12, 8).unbind()
    lengths = [4, 1, 5]
    made = PackedAttention(lengths, 2)(q, k, v)
    start = 0
    for length in lengths:
        here = slice(start, start + length)
        a, b, c = (x[here].view(length, 2, 4).transpose(0, 1) for x in (q, k, v))
        alone = functional.scaled_dot_product_attention(a, b, c).transpose(0, 1).reshape(length, 8)
        assert torch.allclose(made[here], alone, atol=1e-6)
        start += length
    assert torch.equal(made[start:], torch.zeros(2, 8))
