"""The least that a question costs, against figures worked out by hand elsewhere."""

from __future__ import annotations

import pytest
import torch

from btr.bench.t5_shapes import SHAPES, cost, random_t5
from btr.readers.base import Merging

FORM = {"passages": 40, "query": 40, "passage": 150, "answer": 10}


@pytest.mark.parametrize(
    ("shape", "split", "merging", "gflop", "step_mb"),
    [
        ("base", 0, Merging(), 1565, 528),
        ("base", 9, Merging(), 562, 528),
        # Sequences of 190, 152 and 122 tokens in the joint layers: 271.8; 40 * 98 keys: 111.0.
        ("base", 9, Merging(intra=0.2), 391.8, 392.1),
        # 3920, 3136, 2509 and 2008 keys, three layers each.
        ("base", 9, Merging(intra=0.2, cross=0.2), 362.4, 354.2),
        ("large", 0, Merging(), 5608, 1530),
        ("large", 20, Merging(), 1606, 1530),
    ],
)
def test_cost(shape: str, split: int, merging: Merging, gflop: float, step_mb: float) -> None:
    found = cost(
        SHAPES[shape], **FORM, split_layer=split, merging=merging, weight_bytes=2, state_bytes=2
    )
    assert found.gflop == pytest.approx(gflop, rel=0.01)
    assert found.decode_mb / FORM["answer"] == pytest.approx(step_mb, rel=0.01)


def test_a_random_t5_is_the_same_again_and_computes() -> None:
    a, b = (random_t5(SHAPES["tiny"], torch.float32) for _ in range(2))
    ids = torch.tensor([[3, 4, 5]])
    x, y = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (a, b))
    assert torch.equal(x, y)
    assert x.isfinite().all()
    assert a.lm_head.weight is not a.shared.weight or not a.config.scale_decoder_outputs
