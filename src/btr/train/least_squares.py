"""The linear map that comes nearest, from examples of what it is given and should give."""

from __future__ import annotations

import torch
from torch import Tensor

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
    """The map of ``[n, a]`` inputs, many tokens, to ``[n, b]`` outputs; float32 ``[a, b]``."""
    fit = LeastSquares()
    fit.add(given, wanted)
    return fit.solve(RIDGE / 100)
