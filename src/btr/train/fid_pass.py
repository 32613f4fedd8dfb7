"""The Fusion-in-Decoder forward pass that is trained: padded, differentiable, over HF's own blocks.

The reader packs sequences and caches keys; gradients and static shapes want neither. Both walk the
same modules, and a test holds them to the same logits.

``B`` questions, ``U`` passages, ``N`` answer tokens; ``Q``, ``P`` and ``T`` padded tokens of
a question, a passage and an answer, ``S = Q + P``; ``H`` heads, ``d`` width, ``V`` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutput

from btr.readers.joint_states import JointStates
from btr.readers.t5_decoder import vocabulary_logits
from btr.readers.t5_layers import RelativeBias, encoder_layer, rms_norm
from btr.readers.t5_network import SplitT5
from btr.readers.t5_rows import from_rows
from btr.train.batches import padded
from btr.train.fid_examples import IGNORED, FidBatch
from btr.train.rules import Bits, CalibratedRule


class PaddedAttention:
    """T5 attention over padded sequences.

    Args:
        bias: ``[H, S, S]`` position bias.
        mask: ``[U, S]`` bool, True for real tokens.
        written_out: As products and a softmax, whose probabilities are kept. On a CPU the backward
            pass of the fused kernel takes six times as long.
    """

    def __init__(self, bias: Tensor, mask: Tensor, *, written_out: bool) -> None:
        lowest = torch.finfo(bias.dtype).min
        self.bias = bias[None].masked_fill(~mask[:, None, None, :], lowest)
        self.written_out = written_out
        self.probabilities: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``[U, S, d]`` queries, keys and values to contexts ``[U, S, d]``."""
        heads = self.bias.shape[1]
        q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
        if self.written_out:
            logits = q @ k.transpose(2, 3) + self.bias
            self.probabilities = logits.softmax(-1, dtype=torch.float32).to(v.dtype)
            context = self.probabilities @ v
        else:
            context = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=self.bias, scale=1.0
            )
        return context.transpose(1, 2).flatten(2)


@dataclass
class FidPass:
    """Results of a pass.

    Attributes:
        logits: ``[N, V]`` float32, of every answer token given the right ones before it; padding
            has none.
        state: ``[U, P, d]`` passages after the lower layers, before the binarizer.
        bits: What a binarizing one made of them, ``[U, P, d]``, else None.
    """

    logits: Tensor
    state: Tensor
    bits: Bits | None


class TrainingPass:
    """Runs a split T5 over padded batches.

    Args:
        network: The network; its binarizer, if it has one, is used.
        query_budget: Where passages begin.
        scale: How stored states keep their scale, where a batch has some.
        rule: Makes the bits in place of the network's own binarizer, for ablations.
        recompute: Keep only layers' inputs for the backward pass (gradient checkpointing).
    """

    def __init__(
        self,
        network: SplitT5,
        query_budget: int,
        *,
        scale: str = "rms16",
        rule: nn.Module | None = None,
        recompute: bool = False,
    ) -> None:
        self.network, self.query_budget, self.scale = network, query_budget, scale
        self.rule = rule
        if rule is None and network.binarizer is not None:
            self.rule = CalibratedRule(network.binarizer)
        self.recompute = recompute

    def __call__(self, batch: FidBatch, record: JointStates | None = None) -> FidPass:
        """Logits of a batch's answers; ``record`` is filled if given."""
        encoded, seen, state, bits = self.encode(batch, record)
        model = self.network.model
        decoded = model.decoder(
            input_ids=model.prepare_decoder_input_ids_from_labels(batch.labels),
            encoder_hidden_states=encoded,
            encoder_attention_mask=seen,
            use_cache=False,
        )
        # The vocabulary is what is widest here, and most of a batch of answers is padding.
        hidden = decoded.last_hidden_state[batch.labels != IGNORED]
        return FidPass(vocabulary_logits(model, model.lm_head, hidden), state, bits)

    @torch.no_grad()
    def generate(self, batch: FidBatch, longest: int) -> list[list[int]]:
        """Greedy answers of a batch, each at most ``longest`` tokens, special ones included."""
        encoded, seen, _, _ = self.encode(batch)
        model: Any = self.network.model
        ids = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            attention_mask=seen, max_new_tokens=longest, do_sample=False, num_beams=1,
            use_cache=False,
        )  # fmt: skip
        return [row.tolist() for row in ids]

    def encode(
        self, batch: FidBatch, record: JointStates | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Bits | None]:
        """What each question's decoder looks at, ``[B, m S, d]``, and which of it is real.

        The other two are those of :class:`FidPass`; ``record`` is filled if given.
        """
        bias = self.network.relative_bias()
        query = self._lower(batch.query_ids, batch.query_mask, bias)
        if batch.stored is not None:
            bits = self._stored(batch)
            state = bits.residual
        else:
            state = self._lower(batch.passage_ids, batch.passage_mask, bias)
            bits = Bits(state, state)
            if self.rule is not None:
                bits = self.rule(state, self.network.model.shared(batch.passage_ids))
        encoded, mask = self._joint(batch, query, bits, bias, record)
        rows = batch.slots.clamp_min(0)
        seen = (mask[rows] & (batch.slots >= 0)[..., None]).flatten(1)
        return encoded[rows].flatten(1, 2), seen, state, None if self.rule is None else bits

    def _layer(
        self, number: int, hidden: Tensor, attend: PaddedAttention, normed: Tensor | None = None
    ) -> Tensor:
        block = self.network.blocks[number]
        if self.recompute and torch.is_grad_enabled():
            result: Tensor = checkpoint(
                encoder_layer, block, hidden, attend, normed, use_reentrant=False
            )
            return result
        return encoder_layer(block, hidden, attend, normed)

    def _lower(self, ids: Tensor, mask: Tensor, bias: RelativeBias) -> Tensor:
        """Token ids ``[n, L]`` to states after the lower layers, ``[n, L, d]``."""
        hidden: Tensor = self.network.model.encoder.dropout(self.network.model.shared(ids))
        at = torch.arange(ids.shape[1], device=ids.device)
        written_out = ids.device.type == "cpu"
        attend = PaddedAttention(bias.between(at, at), mask, written_out=written_out)
        for number in range(self.network.split_layer):
            hidden = self._layer(number, hidden, attend)
        return hidden

    def _stored(self, batch: FidBatch) -> Bits:
        """Passages' stored states, as the reader restores them."""
        assert batch.stored is not None  # noqa: S101 -- for the type checker
        mask, stored = batch.passage_mask, batch.stored
        restored = from_rows(self.network, stored.rows, self.scale, stored.guesses)
        residual = padded(restored.residual, mask)
        normed = residual if restored.normed is None else padded(restored.normed, mask)
        return Bits(normed, residual, None if restored.normed is None else normed)

    def _joint(
        self,
        batch: FidBatch,
        query: Tensor,
        bits: Bits,
        bias: RelativeBias,
        record: JointStates | None,
    ) -> tuple[Tensor, Tensor]:
        """What the decoder looks at: ``[U, S, d]``, and which of it is real, ``[U, S]``."""
        network, of = self.network, batch.question_of
        hidden = torch.cat([query[of], bits.residual], dim=1)
        mask = torch.cat([batch.query_mask[of], batch.passage_mask], dim=1)
        normed = None
        if bits.normed is not None:
            normed = torch.cat([rms_norm(network.next_norm, query)[of], bits.normed], dim=1)
        length = query.shape[1]
        at = torch.arange(hidden.shape[1], device=hidden.device)
        at[length:] += self.query_budget - length
        attend = PaddedAttention(
            bias.between(at, at), mask,
            written_out=record is not None or hidden.device.type == "cpu",
        )  # fmt: skip
        for number in range(network.split_layer, len(network.blocks)):
            hidden = self._layer(number, hidden, attend, normed)
            normed = None
            if record is not None and attend.probabilities is not None:
                record.hidden.append(hidden)
                record.probabilities.append(attend.probabilities)
        if normed is None:
            normed = rms_norm(network.model.encoder.final_layer_norm, hidden)
        return network.model.encoder.dropout(normed), mask
