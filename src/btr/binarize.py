"""Turn token states into signs and back: the calibrated binarizer (method, section 3).

``d`` is the width of a state, ``...`` any leading shape. Signs are -1 or +1 and 0 counts as -1
everywhere (``bits.py`` packs by the same rule). In training the forward pass uses the sign and the
backward pass the gradient of tanh (straight-through estimator, no annealing).

Two networks, two binarizers:

- post-norm (BERT): a layer ends with its norm, so its output is binarized itself
  (:class:`PostNormBinarizer`);
- pre-norm (T5, LLaMA): a layer's output is unnormalised and has outliers, so the binarizer sits
  inside the next layer, after its first norm, and the residual is restored to its own scale
  (:class:`PreNormBinarizer`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _SignSTE(torch.autograd.Function):
    """Sign forward, derivative of tanh backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return hard_sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (1 - torch.tanh(x).square())


def hard_sign(x: Tensor) -> Tensor:
    """Sign of every element as -1 or +1, with 0 as -1; same shape, dtype and device as ``x``."""
    return torch.where(x > 0, 1.0, -1.0).to(x.dtype)


def straight_through_sign(x: Tensor) -> Tensor:
    """:func:`hard_sign` whose gradient is that of ``tanh(x)`` (method, section 3)."""
    result: Tensor = _SignSTE.apply(x)  # type: ignore[no-untyped-call]
    return result


class PostNormBinarizer(nn.Module):
    """Binarize the output of a post-norm layer: ``h_hat = scale * sign(h) + offset``.

    The plain rule of the paper is ``scale = 1, offset = 0``. ``scale`` alone at ``E|h_j|`` is the
    least-squares 1-bit code of dimension ``j``; :meth:`calibrate` sets both to the least-squares
    values, and training may move them. They cost ``2 d`` numbers for a whole store, nothing per
    token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.offset = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor) -> Tensor:
        """``[..., d]`` states to their restored 1-bit form, same shape, dtype; differentiable."""
        return self.restore(straight_through_sign(h))

    def restore(self, signs: Tensor) -> Tensor:
        """``[..., d]`` signs (-1, +1) to states in the layer's own scale."""
        return signs * self.scale.to(signs.dtype) + self.offset.to(signs.dtype)

    @torch.no_grad()
    def calibrate(self, h: Tensor) -> None:
        """Set scale and offset to the least-squares fit of ``h`` on its signs.

        Args:
            h: ``[tokens, d]`` sample of states, at least one token; not modified.

        Raises:
            ValueError: ``h`` is not ``[tokens, d]`` with at least one token.
        """
        if h.ndim != 2 or not len(h):
            raise ValueError(f"states to calibrate on must be [tokens, d], not {tuple(h.shape)}")
        h = h.float()
        signs = hard_sign(h)
        mean_h, mean_s = h.mean(0), signs.mean(0)
        variance = 1 - mean_s.square()
        covariance = (h * signs).mean(0) - mean_h * mean_s
        # A dimension that never changes its sign carries nothing: its mean says it all.
        scale = torch.where(variance > 1e-6, covariance / variance.clamp_min(1e-6), 0.0)
        self.scale.copy_(scale)
        self.offset.copy_(mean_h - scale * mean_s)


class WordResidual(nn.Module):
    """Bits of what a token's word leaves unsaid: ``b = sign(y - m(e))``, ``y_hat = m(e) + A b``.

    Beyond the paper, where ``b = sign(y)`` and ``y_hat = b``; ``y`` is a post-norm layer's output
    or what a pre-norm network's next norm makes of one. Low in a network a state tells mostly
    which word it is of. Who knows the word anyway, by its id, expects ``m(e) = C e + c``, and the
    bits say on which side of that each dimension is. ``e`` is the word's embedding, divided by its
    root mean square, as readers differ in their scale. The maps are one for a whole store,
    ``2 d^2 + d`` numbers; a token costs its id. ``A`` is the projection of the recovery loss
    (method, section 4), kept for reading.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = nn.Linear(width, width)
        self.bits = nn.Linear(width, width, bias=False)

    def expected(self, embeddings: Tensor) -> Tensor:
        """Word embeddings ``[..., d]`` to ``m(e)``, same shape and dtype."""
        mean: Tensor = self.mean(self.words(embeddings))
        return mean

    def expected_of(self, ids: Tensor, vocabulary: nn.Embedding) -> Tensor:
        """``m(e)`` of tokens ``[N]``, ``[N, d]``, for reading.

        A text's words come again and again: mapping each once takes half the time.
        """
        different, places = torch.unique(ids, return_inverse=True)
        return self.expected(vocabulary(different))[places]

    def restore(self, signs: Tensor, expected: Tensor) -> Tensor:
        """Signs and what was expected, ``[..., d]``, to ``y_hat``, same shape and dtype."""
        restored: Tensor = expected + self.bits(signs)
        return restored

    @staticmethod
    def words(embeddings: Tensor) -> Tensor:
        """Word embeddings ``[..., d]`` as they are mapped."""
        return functional.rms_norm(embeddings, embeddings.shape[-1:])


class PreNormBinarizer(nn.Module):
    """Binarize after the first norm of the next layer and restore the residual's scale.

    With RMS norm ``r = 1 / sqrt(mean(h^2) + eps)``, ``y = w h r``, ``b = sign(y)``, ``y_hat = b``
    and ``h_hat = y_hat / (w r)``. One number a token is kept beside the bits: ``mean(h^2)`` (for
    LayerNorm, the variance about the mean; its mean is not restored).

    ``1 / w`` blows up where the norm's weight is near 0. ``|w|`` is therefore raised to ``guard``
    times the mean of ``|w|`` (sign kept, 0 counts as negative like everywhere). The norm
    multiplies such a dimension by almost nothing, so the network never asked for more of it.

    Args:
        weight: ``[d]`` weight of the norm; referenced, so training moves both.
        eps: The norm's own epsilon.
        centred: True for LayerNorm (subtracts the mean first), False for RMS norm.
        bias: ``[d]`` bias of a LayerNorm, or None.
        guard: Smallest share of the mean ``|w|`` that ``1 / w`` may see.
        words: Bits are of what it does not expect; None for bits of ``y`` itself.
    """

    def __init__(
        self,
        weight: Tensor,
        eps: float,
        *,
        centred: bool = False,
        bias: Tensor | None = None,
        guard: float = 0.05,
        words: WordResidual | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.words = weight, bias, words
        self.eps, self.centred, self.guard = eps, centred, guard

    def encode(self, h: Tensor, expected: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """States to what is stored.

        Args:
            h: ``[..., d]`` residual stream before the norm.
            expected: ``[..., d]``, of ``y``, where words say; None for 0.

        Returns:
            ``[..., d]`` signs in the dtype of ``h`` (differentiable by the straight-through rule),
            and ``[...]`` float32 variance.
        """
        x = h.float()
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        variance = x.square().mean(-1)
        y = x * torch.rsqrt(variance + self.eps)[..., None] * self.weight.float()
        if self.bias is not None:
            y = y + self.bias.float()
        if expected is not None:
            y = y - expected.float()
        return straight_through_sign(y).to(h.dtype), variance

    @property
    def inverse_weight(self) -> Tensor:
        """``1 / w`` with the guard, ``[d]`` float32."""
        weight = self.weight.float()
        floor = self.guard * weight.abs().mean()
        return 1 / torch.where(weight.abs() < floor, hard_sign(weight) * floor, weight)

    def rms(self, variance: Tensor) -> Tensor:
        """``1 / r``, the factor that restores the residual's scale; float32 like ``variance``."""
        return torch.sqrt(variance.float() + self.eps)

    def restore(self, normed: Tensor, variance: Tensor) -> Tensor:
        """``y_hat [..., d]`` and variance ``[...]`` to the residual's own scale, ``[..., d]``."""
        scale = self.rms(variance)[..., None] * self.inverse_weight
        return (normed.float() * scale).to(normed.dtype)
