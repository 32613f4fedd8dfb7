"""One BERT layer over any attention: the blocks of a Hugging Face model, walked, not copied.

Shapes: ``B`` sequences, ``T`` tokens, ``d`` width, ``H`` heads. The linear parts of a layer work on
any leading shape, so the same function runs padded batches (training) and packed tokens (reading);
only ``attend`` knows how tokens are grouped into sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.bert.modeling_bert import BertLayer

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(q, k, v)``, each ``[..., d]``, to the attention's context ``[..., d]``."""


def run_layer(
    layer: BertLayer, hidden: Tensor, attend: Attend, rows: Tensor | None = None
) -> Tensor:
    """Apply one ``BertLayer`` with the given attention.

    Args:
        layer: The layer.
        hidden: ``[..., d]``.
        attend: Its attention.
        rows: ``[R]`` int64 numbers of packed tokens whose output is wanted, ascending; the others
            still serve as keys and values. None for all.

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


class PackedAttention:
    """Attention inside consecutive stretches of packed tokens ``[N, d]``; nothing is padded.

    One fused call a sequence: at 20 sequences of ~150 tokens this is within 4 % of equal lengths,
    while padding to the longest costs a quarter more.

    Args:
        lengths: Tokens of every sequence, in order.
        heads: Number of heads.
        asking: How many tokens of every sequence ask, where only some do (see :func:`run_layer`).
    """

    def __init__(
        self, lengths: Sequence[int], heads: int, asking: Sequence[int] | None = None
    ) -> None:
        self.lengths, self.heads, self.asking = lengths, heads, asking or lengths

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries ``[R, d]``, keys and values ``[N, d]`` to contexts ``[R, d]``."""
        width = q.shape[1]
        # [1, H, N, d / H] views; slices of them need no copy.
        q, k, v = (
            x.view(len(x), self.heads, width // self.heads).transpose(0, 1)[None] for x in (q, k, v)
        )
        context = torch.empty((q.shape[2], self.heads, q.shape[3]), dtype=q.dtype, device=q.device)
        row = token = 0
        for length, asking in zip(self.lengths, self.asking, strict=True):
            rows, tokens = slice(row, row + asking), slice(token, token + length)
            part = functional.scaled_dot_product_attention(
                q[:, :, rows], k[:, :, tokens], v[:, :, tokens]
            )
            context[rows] = part[0].transpose(0, 1)
            row, token = rows.stop, tokens.stop
        return context.view(len(context), width)
