"""Steps of the optimizer."""

from __future__ import annotations

import torch
from torch import nn

from btr.train.optimizer import MasterAdamW


def test_relative_steps_are_in_proportion_to_a_matrix():
    torch.manual_seed(0)
    wide = nn.Parameter(torch.randn(4, 4))
    named = {"a": wide, "b": nn.Parameter(100 * wide.detach()), "c": nn.Parameter(torch.zeros(4))}
    start = {name: p.detach().clone() for name, p in named.items()}
    moved = {}
    for relative in (False, True):
        for name, p in named.items():
            p.data.copy_(start[name])
        optimizer = MasterAdamW(named.items(), lr=0.01, weight_decay=0, warmup=0, total=10,
                                relative=relative)  # fmt: skip
        for p in named.values():
            p.grad = torch.ones_like(p)
        optimizer.step(0)
        moved[relative] = {n: float((start[n] - p.detach()).mean()) for n, p in named.items()}
    size = float(start["a"].square().mean().sqrt())
    assert all(abs(step - 0.01) < 1e-5 for step in moved[False].values())
    for name, factor in (("a", size), ("b", 100 * size), ("c", 1e-3)):
        assert abs(moved[True][name] / (0.01 * factor) - 1) < 0.01
