"""The binarizer's laws: sign, straight-through gradient, least squares, restored scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from btr.binarize import PostNormBinarizer, PreNormBinarizer, hard_sign, straight_through_sign

finite = st.floats(-1e3, 1e3, width=32)


@given(arrays("float32", st.tuples(st.integers(0, 5), st.integers(1, 9)), elements=finite))
def test_sign_is_plus_or_minus_one_and_zero_counts_as_minus(x):
    tensor = torch.from_numpy(x)
    signs = hard_sign(tensor)
    assert signs.shape == tensor.shape
    assert signs.dtype == tensor.dtype
    assert torch.equal(signs == 1, tensor > 0)
    assert torch.equal(signs == -1, tensor <= 0)


def test_the_gradient_is_that_of_tanh():
    x = torch.linspace(-3, 3, 13, requires_grad=True)
    weights = torch.arange(13.0)
    (straight_through_sign(x) * weights).sum().backward()
    y = x.detach().clone().requires_grad_()
    (torch.tanh(y) * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_post_norm_starts_as_the_plain_rule():
    h = torch.randn(7, 16)
    assert torch.equal(PostNormBinarizer(16)(h), hard_sign(h))


def test_calibration_is_the_least_squares_fit():
    torch.manual_seed(0)
    h = torch.randn(500, 16) * torch.linspace(0.5, 3, 16) + torch.linspace(-0.5, 1, 16)
    binarizer = PostNormBinarizer(16)
    binarizer.calibrate(h)
    signs = hard_sign(h)
    for j in range(16):
        design = torch.stack([signs[:, j], torch.ones(500)], dim=1)
        best = torch.linalg.lstsq(design, h[:, j : j + 1]).solution[:, 0]
        assert binarizer.scale[j].item() == pytest.approx(best[0].item(), abs=1e-3)
        assert binarizer.offset[j].item() == pytest.approx(best[1].item(), abs=1e-3)


def test_a_dimension_that_never_changes_sign_is_its_mean():
    h = torch.rand(50, 8) + 0.5
    binarizer = PostNormBinarizer(8)
    binarizer.calibrate(h)
    torch.testing.assert_close(binarizer(h)[0].detach(), h.mean(0))


@pytest.mark.parametrize("shape", [(0, 4), (3, 2, 4)])
def test_calibration_refuses_what_is_not_a_sample(shape):
    with pytest.raises(ValueError, match=r"must be \[tokens, d\]"):
        PostNormBinarizer(4).calibrate(torch.zeros(shape))


@pytest.mark.parametrize("centred", [False, True])
def test_pre_norm_restores_the_scale_of_the_residual(centred):
    torch.manual_seed(1)
    weight = torch.rand(64) + 0.5
    h = torch.randn(10, 64) * torch.logspace(-2, 2, 10)[:, None]
    binarizer = PreNormBinarizer(weight, 1e-6, centred=centred)
    signs, variance = binarizer.encode(h)
    restored = binarizer.restore(signs, variance)
    # h_hat = b / (w r): normalising and weighting it again gives the bits back.
    y = restored * torch.rsqrt(variance + 1e-6)[:, None] * weight
    torch.testing.assert_close(y, signs, rtol=1e-4, atol=1e-4)
    centre = h - h.mean(-1, keepdim=True) if centred else h
    torch.testing.assert_close(variance, centre.square().mean(-1))
    assert torch.equal(signs == 1, centre * weight > 0)


def test_a_weight_near_zero_does_not_blow_up():
    weight = torch.ones(32)
    weight[3], weight[4] = 0.0, -1e-9
    binarizer = PreNormBinarizer(weight, 1e-6, guard=0.05)
    signs, variance = binarizer.encode(torch.randn(4, 32))
    restored = binarizer.restore(signs, variance)
    largest = torch.sqrt(variance.max() + 1e-6) / (0.05 * weight.abs().mean())
    assert torch.isfinite(restored).all()
    assert restored.abs().max() <= largest * 1.001


def test_gradients_reach_the_states_and_the_norm():
    weight = torch.nn.Parameter(torch.rand(16) + 0.5)
    h = torch.randn(5, 16, requires_grad=True)
    binarizer = PreNormBinarizer(weight, 1e-6)
    binarizer.restore(*binarizer.encode(h)).square().sum().backward()
    assert h.grad is not None
    assert h.grad.abs().sum() > 0
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
