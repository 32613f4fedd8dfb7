"""Dropout with masks cut from a pool: on a CPU, drawing them costs a third of a training step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

POOL = 1 << 24
"""Elements of a pool: 32 MB in bfloat16; larger activations take several stretches of it."""


class PooledDropout(nn.Module):
    """Dropout of share ``p`` whose mask is a stretch of a shared random pool.

    Where the stretch begins is drawn from PyTorch's generator in every call, so seeding that makes
    it repeatable. Two masks may overlap, shifted against each other; they are not independent, but
    no unit meets the same mask twice in practice.

    Args:
        pool: ``[POOL]`` from :func:`make_pool`.
    """

    def __init__(self, pool: Tensor) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape, with a share of it zeroed and the rest scaled."""
        if not self.training:
            return x
        longest = len(self.pool) // 2
        if x.numel() <= longest:
            return x * self._mask(x.numel()).view(x.shape)
        # Piece by piece: masks stay views of the pool until the backward pass.
        pieces = [piece * self._mask(len(piece)) for piece in torch.split(x.flatten(), longest)]
        return torch.cat(pieces).view(x.shape)

    def _mask(self, count: int) -> Tensor:
        """``[count]``, a stretch of the pool that is no longer than half of it."""
        first = int(torch.randint(len(self.pool) - count, ()))
        return self.pool[first : first + count]


def make_pool(p: float, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[POOL]`` elements, 0 with probability ``p``, else ``1 / (1 - p)``."""
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(POOL, generator=generator) >= p
    return (kept.to(dtype) / (1 - p)).to(device)


def use_pooled_dropout(network: nn.Module, pool: Tensor) -> None:
    """Replace every dropout of hidden states in a network by one over ``pool``.

    Attention's own dropout stays out: its masks are ten times as large as the hidden states'.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(module, name, PooledDropout(pool))
