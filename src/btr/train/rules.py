"""Rules that turn a pre-norm network's passage states into bits: two that read, three naive.

Method, section 3: the calibrated rule binarizes behind the next layer's first norm and restores the
residual's scale; "words" does so with what words leave unsaid. The naive ones are what they are
measured against: readers and stores do not know them, so a network trained with one can be scored
and not shipped.

``d`` width; every rule maps ``[..., d]`` states and their tokens' word embeddings to :class:`Bits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from btr.binarize import PreNormBinarizer, hard_sign, straight_through_sign

Rule = Literal["calibrated", "words", "raw", "norm", "tanh"]
RULES: tuple[Rule, ...] = ("calibrated", "words", "raw", "norm", "tanh")

STEEPEST = 32.0
"""Slope of the tanh at the end of its annealing."""


@dataclass(frozen=True, slots=True, eq=False)
class Bits:
    """A rule's result.

    Attributes:
        signs: ``[..., d]``, -1 or +1; between them while a tanh is annealed.
        residual: ``[..., d]``, the residual stream that the joint layers begin with.
        normed: ``[..., d]``, what the next attention takes in place of its norm, or None.
    """

    signs: Tensor
    residual: Tensor
    normed: Tensor | None = None


class CalibratedRule(nn.Module):
    """The method's own: signs behind the next norm, the residual at its own scale.

    Or, where it knows words, the signs of what they leave unsaid (:class:`WordResidual`).
    """

    def __init__(self, binarizer: PreNormBinarizer) -> None:
        super().__init__()
        self.binarizer = binarizer

    def forward(self, h: Tensor, embeddings: Tensor) -> Bits:
        """``[..., d]`` states and their words' embeddings to bits."""
        words = self.binarizer.words
        expected = None if words is None else words.expected(embeddings)
        signs, variance = self.binarizer.encode(h, expected)
        normed = signs
        if words is not None and expected is not None:
            normed = words.restore(signs, expected)
        return Bits(signs, self.binarizer.restore(normed, variance), normed)


class RawRule(nn.Module):
    """The sign of the state itself; its scale is lost."""

    def forward(self, h: Tensor, _: Tensor) -> Bits:
        """``[..., d]`` states to bits."""
        signs = straight_through_sign(h)
        return Bits(signs, signs)


class NormRule(nn.Module):
    """The sign behind a LayerNorm of its own, as in a post-norm network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, _: Tensor) -> Bits:
        """``[..., d]`` states to bits."""
        signs = straight_through_sign(self.norm(h))
        return Bits(signs, signs)


class TanhRule(nn.Module):
    """``tanh(beta h)`` with a slope that grows through training, and the sign afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.progress = 0.0

    def forward(self, h: Tensor, _: Tensor) -> Bits:
        """``[..., d]`` states to bits."""
        if self.training:
            soft = torch.tanh(STEEPEST**self.progress * h)
            return Bits(soft, soft)
        signs = hard_sign(h)
        return Bits(signs, signs)


def naive_rule(rule: Rule, width: int) -> nn.Module | None:
    """The module of a naive rule; None for a calibrated one, which a network has itself."""
    if rule == "raw":
        return RawRule()
    if rule == "norm":
        return NormRule(width)
    return TanhRule() if rule == "tanh" else None
