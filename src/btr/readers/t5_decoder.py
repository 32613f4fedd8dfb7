"""The T5 decoder over packed passages: keys and values once a question, static caches, any rows.

``R`` rows being decoded (questions, beams or prefixes), ``S`` new tokens of a row, ``T`` tokens a
row may have, ``N`` tokens that a question's decoder looks at, ``H`` heads, ``e`` a head's width,
``L`` layers, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Block

from btr.errors import IncompatibleError
from btr.merge import match, merge_count, size_bias
from btr.readers.base import Merging
from btr.readers.packed import filled
from btr.readers.t5_few_rows import Int8Linear, PackedLinear, for_few_rows, packable
from btr.readers.t5_layers import (
    RelativeBias,
    cross_attention,
    feed_forward,
    rms_norm,
    self_attention,
)
from btr.readers.t5_network import NO_MERGING, Packed


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What the decoder looks at for one question.

    Attributes:
        keys: A layer's ``[H, N, e]``.
        values: A layer's ``[H, N, e]``.
        biases: A layer's ``[N]`` log sizes to add to its logits, or None.
        lengths: Tokens of every passage, as long as none were merged across passages: of the first
            ``every`` layers.
    """

    keys: list[Tensor]
    values: list[Tensor]
    biases: list[Tensor | None]
    lengths: tuple[int, ...]


class Cache:
    """Keys and values of the tokens decoded so far, in place: ``[L, 2, R, H, T, e]``."""

    def __init__(self, decoder: Decoder, rows: int, tokens: int) -> None:
        shape = (len(decoder.blocks), 2, rows, decoder.heads, tokens, decoder.head_width)
        weight = decoder.model.shared.weight
        self.states = torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    def reorder(self, rows: Tensor) -> None:
        """Let row ``i`` go on from what was row ``rows[i]``, int64 ``[R]``."""
        self.states = self.states[:, :, rows]


class Decoder:
    """Walks the decoder blocks of a Hugging Face T5.

    Args:
        model: The T5.
        int8: Decode with 8-bit weights; on CPUs with FBGEMM, where that is twice as fast.
    """

    def __init__(self, model: T5ForConditionalGeneration, *, int8: bool = False) -> None:
        self.model = model
        self._projecting = [block for block in model.decoder.block if isinstance(block, T5Block)]
        self.heads: int = model.config.num_heads
        self.head_width: int = model.config.d_kv
        self.start_token = special_token(model, "decoder_start_token_id")
        self.end_token = special_token(model, "eos_token_id")
        self.bias = RelativeBias(self_attention(self._projecting[0]).SelfAttention)
        self._make: type[Int8Linear | PackedLinear] | None = None
        if int8 or packable(model.lm_head.weight):
            self._make = Int8Linear if int8 else PackedLinear

    @cached_property
    def blocks(self) -> list[T5Block]:
        """What tokens are decoded with; laid out for that when the first one is."""
        make = self._make
        return self._projecting if make is None else for_few_rows(self._projecting, make)

    @cached_property
    def head(self) -> nn.Module:
        """States to logits."""
        return self.model.lm_head if self._make is None else self._make(self.model.lm_head)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.shared.weight.device

    def remember(self, encoded: Packed, merging: Merging = NO_MERGING) -> Memory:
        """Project a question's keys and values, for all layers and steps.

        With ``merging.cross`` the tokens of all passages, the copies of the query among them, are
        merged every ``merging.every`` layers. They are compared by their keys in the last layer
        before, averaged over the heads, which is what ToMe compares by.
        """
        keys: list[Tensor] = []
        values: list[Tensor] = []
        biases: list[Tensor | None] = []
        passages = encoded.lengths
        encoded = Packed(encoded.hidden, (len(encoded.hidden),), encoded.positions, encoded.sizes)
        merged = bool(merging.intra)
        hidden = filled(encoded.hidden)
        for number, block in enumerate(self._projecting):
            if merging.cross and number and number % merging.every == 0:
                counts = [merge_count(encoded.lengths[0], merging.cross)]
                matching = match(keys[-1].mean(0), encoded.lengths, counts)
                encoded, merged = encoded.merged(matching, merging), True
                hidden = filled(encoded.hidden)
            attention, tokens = cross_attention(block).EncDecAttention, len(encoded.hidden)
            keys.append(self._by_head(attention.k(hidden)[:tokens]))
            values.append(self._by_head(attention.v(hidden)[:tokens]))
            sized = merged and merging.correction
            biases.append(size_bias(encoded.sizes) if sized else None)
        return Memory(keys, values, biases, passages)

    def _by_head(self, x: Tensor) -> Tensor:
        """``[N, H e]`` to contiguous ``[H, N, e]``: one copy, many reads."""
        return x.view(len(x), self.heads, self.head_width).transpose(0, 1).contiguous()

    def run(
        self,
        ids: Tensor,
        start: int,
        cache: Cache,
        memories: Sequence[Memory],
        rows: Sequence[int],
        *,
        mass: Tensor | None = None,
    ) -> Tensor:
        """Decode the next tokens of all rows.

        Args:
            ids: ``[R, S]`` int64, the tokens at ``start .. start + S - 1``.
            start: Tokens that the cache holds of every row.
            cache: Is written to.
            memories: A question's.
            rows: How many of the rows belong to each question, in order; they sum to ``R``.
            mass: ``[R, S, N]`` float32 to which every head's attention in the layers before the
                first cross-passage merging is added; only for a single question.

        Returns:
            ``[R, S, d]`` states after the last norm.
        """
        hidden: Tensor = self.model.shared(ids)
        total = start + ids.shape[1]
        at = torch.arange(total, device=ids.device)
        bias = self.bias.between(at[start:], at)
        bias = bias.masked_fill(at[start:, None] < at, -torch.inf)
        for number, block in enumerate(self.blocks):
            layer, cross = self_attention(block), cross_attention(block)
            heads = layer.SelfAttention
            normed = rms_norm(layer.layer_norm, hidden)
            states = cache.states[number, :, :, :, :total]
            states[0, :, :, start:] = self._split(heads.k(normed))
            states[1, :, :, start:] = self._split(heads.v(normed))
            context = functional.scaled_dot_product_attention(
                self._split(heads.q(normed)), states[0], states[1], attn_mask=bias[None], scale=1.0
            )
            hidden = hidden + heads.o(context.transpose(1, 2).flatten(2))
            heads = cross.EncDecAttention
            q = self._split(heads.q(rms_norm(cross.layer_norm, hidden)))
            context = self._look(q, number, memories, rows)
            if mass is not None and memories[0].keys[number].shape[1] == mass.shape[2]:
                shares = self._shares(q.transpose(0, 1).flatten(1, 2), memories[0], number)
                mass += shares.sum(0).view(mass.shape)
            hidden = hidden + heads.o(context.transpose(1, 2).flatten(2))
            hidden = feed_forward(block, hidden)
        return rms_norm(self.model.decoder.final_layer_norm, hidden)

    def _split(self, x: Tensor) -> Tensor:
        """``[R, S, H e]`` to ``[R, H, S, e]``, a view."""
        return x.view(*x.shape[:2], self.heads, self.head_width).transpose(1, 2)

    def _look(
        self, q: Tensor, number: int, memories: Sequence[Memory], rows: Sequence[int]
    ) -> Tensor:
        """Cross-attention of layer ``number``: every row over its question, ``[R, H, S, e]``.

        All rows of a question ask at once, so its keys are read once.
        """
        contexts = []
        first = 0
        for memory, count in zip(memories, rows, strict=True):
            asking = q[first : first + count].transpose(0, 1).flatten(1, 2)  # [H, rows S, e]
            shares = self._shares(asking, memory, number).to(q.dtype)
            context = shares @ memory.values[number]
            contexts.append(context.view(self.heads, count, -1, self.head_width).transpose(0, 1))
            first += count
        return torch.cat(contexts) if len(contexts) > 1 else contexts[0]

    def _shares(self, asking: Tensor, memory: Memory, number: int) -> Tensor:
        """Attention probabilities ``[H, Q, N]`` float32 of queries ``[H, Q, e]``.

        Written out: over thousands of keys and one query, PyTorch's fused CPU attention takes ten
        times as long (12 heads, 7600 keys, bf16, one AVX-512 core: 9.6 ms, and 18 on keys that are
        not contiguous; this 1.05 ms, which is reading the keys and values at 22 GB/s).
        """
        logits = (asking @ memory.keys[number].transpose(1, 2)).float()
        if (log_sizes := memory.biases[number]) is not None:
            logits += log_sizes
        return logits.softmax(-1)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """States ``[..., d]`` to float32 log-probabilities of the next token, ``[..., V]``."""
        return self.logits(hidden).log_softmax(-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """States ``[..., d]`` to float32 logits ``[..., V]``."""
        return vocabulary_logits(self.model, self.head, hidden)


def vocabulary_logits(
    model: T5ForConditionalGeneration, head: Callable[[Tensor], Tensor], hidden: Tensor
) -> Tensor:
    """A decoder's last states ``[..., d]`` to float32 logits ``[..., V]``.

    Args:
        model: Says whether states are scaled first.
        head: Its output layer, or what stands for it.
        hidden: The states.
    """
    if model.config.scale_decoder_outputs:
        hidden = hidden * model.config.d_model**-0.5
    logits: Tensor = head(hidden)
    return logits.float()


def special_token(model: T5ForConditionalGeneration, name: str) -> int:
    """A special token of the model's configuration.

    Raises:
        IncompatibleError: It is not one token.
    """
    token = getattr(model.config, name, None)
    if type(token) is not int or not 0 <= token < model.config.vocab_size:
        raise IncompatibleError(f"the model's configuration has no {name}",
                                where=str(model.name_or_path), expected="the number of a token",
                                found=str(token)[:80])  # fmt: skip
    return token
