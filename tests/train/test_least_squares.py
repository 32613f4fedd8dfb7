"""The linear map that comes nearest."""

from __future__ import annotations

import torch

from btr.train.least_squares import LeastSquares, nearest_map


def test_least_squares_find_the_map():
    torch.manual_seed(0)
    wanted = torch.randn(6, 3)
    fit = LeastSquares()
    for _ in range(4):
        given = torch.randn(50, 6)
        fit.add(given, given @ wanted)
    torch.testing.assert_close(fit.solve(1e-9), wanted, rtol=1e-4, atol=1e-4)


def test_many_examples_in_one_go_are_the_same_as_in_batches():
    torch.manual_seed(0)
    given, wanted = torch.randn(200, 6), torch.randn(200, 3)
    fit = LeastSquares()
    for part in range(0, 200, 50):
        fit.add(given[part : part + 50], wanted[part : part + 50])
    torch.testing.assert_close(fit.solve(1e-5), nearest_map(given, wanted), rtol=1e-4, atol=1e-5)
