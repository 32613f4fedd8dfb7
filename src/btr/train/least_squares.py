"""The linear map that comes nearest, from examples of what it is given and should give."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RIDGE = 1e-3
"""Added to the mean square of the inputs: few tokens must not decide a direction."""


class LeastSquares:
    """The map, from sums over batches."""

    def __init__(self) -> None:
        self._squares = self._products = torch.zeros((), dtype=torch.float64)

    def add(self, given: Tensor, wanted: Tensor) -> None:
        """Take in ``[n, a]`` inputs and ``[n, b]`` outputs."""
        self._squares = self._squares + (given.T @ given).double()
        self._products = self._products + (given.T @ wanted).double()

    def solve(self, ridge: float = RIDGE) -> Tensor:
        """The map, float32 ``[a, b]``."""
        even = ridge * self._squares.diagonal().mean()
        eye = torch.eye(len(self._squares), dtype=torch.float64)
        found: Tensor = torch.linalg.solve(self._squares + even * eye, self._products)
        return found.float()


def nearest_map(given: Tensor, wanted: Tensor) -> Tensor:
    """The map of a T5's states ``[n, a]`` to ``[n, b]`` outputs, float32 ``[a, b]``.

    Nearly all of a state's length is one direction that all share: the ridge is small beside it.
    """
    fit = LeastSquares()
    fit.add(given, wanted)
    return fit.solve(RIDGE / 100)


@torch.no_grad()
def as_linear(found: Tensor, constant: Tensor | None = None) -> nn.Linear:
    """A map ``[a, b]`` as a layer; the constant ``[b]`` it adds is 0 unless given."""
    layer = nn.Linear(*found.shape)
    layer.weight.copy_(found.T)
    layer.bias.copy_(torch.zeros(found.shape[1]) if constant is None else constant)
    return layer
