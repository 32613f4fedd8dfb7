"""The split T5 encoder over packed sequences (method, sections 2, 3 and 6).

``n`` encoder layers, of which the first ``k`` are the lower ones: a query attends to itself there,
a passage to itself. Above, ``[query; passage]`` is one sequence a passage. ``d`` width, ``N``
packed tokens, ``Q`` and ``P`` tokens of a query and a passage.

Positions: a query's tokens stand at ``0 ..``, a passage's at ``first ..``, where ``first`` is the
query budget, or the query's own length in a reader that was trained on plain concatenations.

The binarizer sits behind the first norm of layer ``k + 1``; with ``k = n``, behind the encoder's
last norm, so that bits are what the decoder looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Block, T5LayerNorm

from btr.binarize import PreNormBinarizer, WordResidual
from btr.merge import Matching, match, merge_count, merge_mean, merge_sizes, size_bias
from btr.readers.base import Merging
from btr.readers.packed import PackedAttention, filled
from btr.readers.t5_layers import RelativeBias, encoder_layer, rms_norm, self_attention

NO_MERGING = Merging()


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """Passage states ready for the joint layers.

    Attributes:
        residual: ``[P, d]``, the residual stream.
        normed: ``[P, d]``, what the next attention takes in place of its norm: the bits, or what
            they and their words say. None for continuous states.
    """

    residual: Tensor
    normed: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Sequences on their way through the joint layers.

    Attributes:
        hidden: ``[N, d]``.
        lengths: Tokens of every sequence.
        positions: ``[N]`` int64.
        sizes: ``[N]`` float32, tokens that each one stands for.
    """

    hidden: Tensor
    lengths: tuple[int, ...]
    positions: Tensor
    sizes: Tensor

    def replaced(self, hidden: Tensor) -> Packed:
        """The same tokens with other states, ``[N, d]``."""
        return Packed(hidden, self.lengths, self.positions, self.sizes)

    def merged(self, matching: Matching, merging: Merging) -> Packed:
        """The same with matched tokens averaged; a group stands where its odd token stood."""
        weights = self.sizes if merging.weighted else torch.ones_like(self.sizes)
        hidden, _ = merge_mean(self.hidden, weights, matching)
        sizes = merge_sizes(self.sizes, matching)
        return Packed(hidden, matching.lengths, self.positions[matching.kept], sizes)


class SplitT5(nn.Module):
    """A Hugging Face T5 whose encoder is split after ``split_layer`` layers.

    Args:
        model: Any T5 for conditional generation.
        split_layer: ``k``, 0 to all encoder layers.
        binarized: Whether passage states are 1-bit.
        words: They are bits of what the tokens' words leave unsaid; None for the states' own.
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        split_layer: int,
        *,
        binarized: bool = False,
        words: WordResidual | None = None,
    ) -> None:
        super().__init__()
        self.model, self.split_layer = model, split_layer
        self.heads: int = model.config.num_heads
        norm = self.next_norm
        self.binarizer: PreNormBinarizer | None = None
        if binarized:
            self.binarizer = PreNormBinarizer(norm.weight, norm.variance_epsilon, words=words)

    @property
    def words(self) -> WordResidual | None:
        """What tokens' words make expect, where bits are of the rest."""
        return None if self.binarizer is None else self.binarizer.words

    @property
    def blocks(self) -> list[T5Block]:
        """The encoder's layers, first to last."""
        return [block for block in self.model.encoder.block if isinstance(block, T5Block)]

    @property
    def next_norm(self) -> T5LayerNorm:
        """The norm that passage states meet next above the cut."""
        joint = self.blocks[self.split_layer :]
        norm: T5LayerNorm = (
            self_attention(joint[0]).layer_norm if joint else self.model.encoder.final_layer_norm
        )
        return norm

    def relative_bias(self) -> RelativeBias:
        """The encoder's relative position bias, all layers share it."""
        return RelativeBias(self_attention(self.blocks[0]).SelfAttention)

    def run_lower(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Packed token ids ``[N]`` to their states after the lower layers, ``[N, d]``.

        Queries and passages alike: within one text only distances count, not where it begins.
        """
        hidden: Tensor = self.model.shared(ids)
        if not self.split_layer:
            return hidden
        hidden = filled(hidden)
        positions = torch.arange(max(lengths), device=ids.device)
        bias = self.relative_bias().between(positions, positions)
        attend = PackedAttention(
            lengths, self.heads, biases=[bias[:, :n, :n] for n in lengths], scale=1.0
        )
        for block in self.blocks[: self.split_layer]:
            hidden = encoder_layer(block, hidden, attend)
        return hidden[: len(ids)]

    def run_joint(
        self,
        queries: Sequence[Tensor],
        passages: Sequence[Sequence[Restored]],
        first: Sequence[int],
        merging: Merging = NO_MERGING,
    ) -> list[Packed]:
        """Joint layers and the encoder's last norm, for one or several questions.

        Args:
            queries: ``[Q, d]`` a question, after the lower layers.
            passages: Each question's passages.
            first: Position of each question's passages' first token.
            merging: Runtime compression.

        Returns:
            For every question what its decoder looks at: a sequence a passage, in their order.
        """
        packed, normed = self._pack(queries, passages, first)
        values = self.relative_bias()
        biases = _biases(packed, values)
        hidden = filled(packed.hidden)
        normed = None if normed is None else filled(normed)
        for block in self.blocks[self.split_layer :]:
            attend = PackedAttention(packed.lengths, self.heads, biases=biases, scale=1.0)
            hidden = encoder_layer(block, hidden, attend, normed)
            normed = None
            if merging.intra:
                packed = packed.replaced(hidden[: len(packed.hidden)])
                counts = [merge_count(n, merging.intra) for n in packed.lengths]
                packed = packed.merged(match(packed.hidden, packed.lengths, counts), merging)
                biases = _biases(packed, values, sized=merging.correction)
                hidden = filled(packed.hidden)
        if normed is None:
            normed = rms_norm(self.model.encoder.final_layer_norm, hidden)
        packed = packed.replaced(normed[: len(packed.hidden)])
        return _by_question(packed, [len(p) for p in passages])

    def _pack(
        self,
        queries: Sequence[Tensor],
        passages: Sequence[Sequence[Restored]],
        first: Sequence[int],
    ) -> tuple[Packed, Tensor | None]:
        """``[query; passage]`` sequences, and what the next attention takes (None: its norm)."""
        hidden: list[Tensor] = []
        normed: list[Tensor] = []
        positions: list[Tensor] = []
        for query, chosen, start in zip(queries, passages, first, strict=True):
            query_normed = rms_norm(self.next_norm, query)
            at = torch.arange(len(query), device=query.device)
            for passage in chosen:
                hidden += [query, passage.residual]
                length = len(passage.residual)
                positions += [at, torch.arange(start, start + length, device=query.device)]
                if passage.normed is not None:
                    normed += [query_normed, passage.normed]
        lengths = [len(q) + len(p.residual) for q, c in zip(queries, passages, strict=True)
                   for p in c]  # fmt: skip
        sizes = torch.ones(sum(lengths), device=hidden[0].device)
        packed = Packed(torch.cat(hidden), tuple(lengths), torch.cat(positions), sizes)
        return packed, torch.cat(normed) if normed else None


def _biases(packed: Packed, values: RelativeBias, *, sized: bool = False) -> list[Tensor]:
    """Position bias, and with ``sized`` the log of sizes, for every sequence: ``[H, T, T]``."""
    biases = [
        values.between(p, p).contiguous()
        for p in torch.split(packed.positions, list(packed.lengths))
    ]
    if sized:
        logs = torch.split(size_bias(packed.sizes).to(biases[0].dtype), list(packed.lengths))
        biases = [bias + log for bias, log in zip(biases, logs, strict=True)]
    return biases


def _by_question(packed: Packed, counts: Sequence[int]) -> list[Packed]:
    """Cut what the encoder made of all questions' passages into one for every question."""
    results = []
    sequence = token = 0
    for count in counts:
        lengths = packed.lengths[sequence : sequence + count]
        here = slice(token, token + sum(lengths))
        results.append(
            Packed(packed.hidden[here], lengths, packed.positions[here], packed.sizes[here])
        )
        sequence, token = sequence + count, here.stop
    return results
