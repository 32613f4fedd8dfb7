"""One BERT layer over any attention: the blocks of a Hugging Face model, walked, not copied.

Shapes: ``B`` sequences, ``T`` tokens, ``d`` width, ``H`` heads. The linear parts of a layer work on
any leading shape, so the same function runs padded batches (training) and packed tokens (reading);
only ``attend`` knows how tokens are grouped into sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.models.bert.modeling_bert import BertLayer

from btr.readers.packed import Attend


def run_layer(
    layer: BertLayer, hidden: Tensor, attend: Attend, rows: Tensor | None = None
) -> Tensor:
    """Apply one ``BertLayer`` with the given attention.

    Args:
        layer: The layer.
        hidden: ``[..., d]``.
        attend: Its attention.
        rows: ``[R]`` int64 numbers of packed tokens whose output is wanted; the others still
            serve as keys and values. None for all.

    Returns:
        ``[..., d]``, or ``[R, d]`` with ``rows``.
    """
    attention, heads = layer.attention, layer.attention.self
    wanted = hidden if rows is None else hidden[rows]
    context = attend(heads.query(wanted), heads.key(hidden), heads.value(hidden))
    hidden = attention.output(context, wanted)
    result: Tensor = layer.output(layer.intermediate(hidden), hidden)
    return result


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, T]`` bool (True: a real token) to ``[B, 1, 1, T]`` of 0 or the lowest finite value."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, torch.finfo(dtype).min)[:, None, None, :]


class PaddedAttention:
    """Attention inside each row of a padded batch, as matmul, softmax, matmul.

    Written out because PyTorch's fused CPU attention is six times slower than this in the backward
    pass at these lengths, and because distillation needs the probabilities.

    Args:
        mask: ``[B, T]`` bool, True for real tokens.
        heads: Number of heads.
        dtype: Compute dtype of the mask.
    """

    def __init__(self, mask: Tensor, heads: int, dtype: torch.dtype) -> None:
        self.bias, self.heads = additive_mask(mask, dtype), heads
        self.probabilities: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values ``[B, T, d]`` to contexts ``[B, T, d]``."""
        batch, length, width = q.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (x.view(split).transpose(1, 2) for x in (q, k, v))
        scores = q @ (k * split[-1] ** -0.5).transpose(2, 3)
        self.probabilities = torch.softmax(scores + self.bias, dim=-1)
        return (self.probabilities @ v).transpose(1, 2).reshape(batch, length, width)
