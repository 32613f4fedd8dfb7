"""Dropout from a pool: the right share, the right scale, repeatable, off in eval mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from btr.train.dropout import POOL, PooledDropout, make_pool, use_pooled_dropout

CPU = torch.device("cpu")


def test_share_and_scale():
    pool = make_pool(0.1, 0, torch.float32, CPU)
    assert len(pool) == POOL
    assert (pool == 0).float().mean().item() == pytest.approx(0.1, abs=0.002)
    assert pool.max().item() == pytest.approx(1 / 0.9)
    assert pool.mean().item() == pytest.approx(1, abs=0.003)


def test_it_replaces_every_dropout_and_repeats_by_seed():
    network = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Dropout(0.5), nn.ReLU()))
    use_pooled_dropout(network, make_pool(0.5, 1, torch.float32, CPU))
    assert not any(isinstance(m, nn.Dropout) for m in network.modules())
    x = torch.randn(64, 8)
    network.train()
    torch.manual_seed(5)
    a, b = network(x), network(x)
    torch.manual_seed(5)
    assert torch.equal(a, network(x))
    assert not torch.equal(a, b)
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_activations_may_be_larger_than_the_pool(p: float):
    dropout = PooledDropout(make_pool(p, 0, torch.float32, CPU)[: 1 << 12])
    x = torch.ones(100, 101)
    dropped = dropout(x)
    assert dropped.shape == x.shape
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.03)
    assert dropped[dropped > 0].unique().tolist() == [pytest.approx(1 / (1 - p))]
