"""The split BERT network: lower layers apart, joint layers together (method, section 2).

``B`` questions, ``U`` distinct passages, ``Q`` and ``P`` their padded lengths, ``d`` the width.
A network has ``n`` layers of which the first ``split_layer`` are the lower ones. ``split_layer`` 0
is the plain reader, and then the whole network equals ``BertForQuestionAnswering`` on
``[CLS] question [SEP] passage [SEP]`` with the position ids of :func:`positions`.

A passage token sits at the same offset from the query whatever the query's length: positions
``0 .. query_budget - 1`` belong to the query, ``query_budget ..`` to the passage.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertForQuestionAnswering
from transformers.models.bert.modeling_bert import BertLayer

from btr.binarize import PostNormBinarizer, WordResidual, straight_through_sign
from btr.readers.bert_layers import PaddedAttention, run_layer
from btr.readers.joint_states import JointStates


def bert_layers(model: BertForQuestionAnswering) -> list[BertLayer]:
    """The encoder's layers, first to last."""
    return [layer for layer in model.bert.encoder.layer if isinstance(layer, BertLayer)]


class SplitBert(nn.Module):
    """A Hugging Face extractive BERT, split at ``split_layer``.

    Args:
        model: With its span head.
        split_layer: Layers below the cut.
        query_budget: Positions kept for the query.
        binarizer: Of passage states.
        labels: Classes that a second head tells from the state of ``[CLS]``; 0 for no such head.
    """

    def __init__(
        self,
        model: BertForQuestionAnswering,
        split_layer: int,
        query_budget: int,
        *,
        binarizer: PostNormBinarizer | WordResidual | None = None,
        labels: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.binarizer = model, binarizer
        self.classifier = nn.Linear(model.config.hidden_size, labels) if labels else None
        self.split_layer, self.query_budget = split_layer, query_budget
        self.heads: int = model.config.num_attention_heads

    @property
    def lower(self) -> list[BertLayer]:
        """Layers ``1 .. k``: query and passage apart."""
        return bert_layers(self.model)[: self.split_layer]

    @property
    def joint(self) -> list[BertLayer]:
        """Layers ``k + 1 .. n``: query and passage together."""
        return bert_layers(self.model)[self.split_layer :]

    @property
    def words(self) -> WordResidual | None:
        """What tokens' words make expect, where bits are of the rest."""
        return self.binarizer if isinstance(self.binarizer, WordResidual) else None

    @property
    def vocabulary(self) -> nn.Embedding:
        """The word embeddings."""
        found: nn.Embedding = self.model.bert.embeddings.word_embeddings
        return found

    def binarize(self, states: Tensor, ids: Tensor) -> Tensor:
        """Passage states ``[..., d]`` and their tokens ``[...]`` to what is restored of their bits.

        Continuous states stay as they are.
        """
        if self.words is not None:
            expected = self.words.expected(self.vocabulary(ids))
            return self.words.restore(straight_through_sign(states - expected), expected)
        restored: Tensor = states if self.binarizer is None else self.binarizer(states)
        return restored

    def restore(self, signs: Tensor, ids: Tensor) -> Tensor:
        """Signs ``[..., d]`` of stored passages and their tokens ``[...]`` to states."""
        if isinstance(self.binarizer, WordResidual):
            return self.binarizer.restore(signs, self.binarizer.expected(self.vocabulary(ids)))
        return signs if self.binarizer is None else self.binarizer.restore(signs)

    def embed(self, ids: Tensor, first_position: int, segment: int) -> Tensor:
        """``[..., T]`` token ids to ``[..., T, d]`` input states, counted from ``first``."""
        positions = torch.arange(first_position, first_position + ids.shape[-1], device=ids.device)
        states: Tensor = self.model.bert.embeddings(
            input_ids=ids,
            token_type_ids=torch.full_like(ids, segment),
            position_ids=positions.expand_as(ids),
        )
        return states

    def encode_query(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Query states after the lower layers: ids and mask ``[B, Q]`` to ``[B, Q, d]``."""
        return self._run_lower(self.embed(ids, 0, 0), mask)

    def encode_passage(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Passage states after the lower layers, before binarizing: ``[U, P]`` to ``[U, P, d]``."""
        return self._run_lower(self.embed(ids, self.query_budget, 1), mask)

    def _run_lower(self, hidden: Tensor, mask: Tensor) -> Tensor:
        attend = PaddedAttention(mask, self.heads, hidden.dtype)
        for layer in self.lower:
            hidden = run_layer(layer, hidden, attend)
        return hidden

    def read(
        self,
        query: Tensor,
        query_mask: Tensor,
        passage: Tensor,
        passage_mask: Tensor,
        record: JointStates | None = None,
    ) -> Tensor:
        """Joint layers and span head.

        Args:
            query: ``[B, Q, d]`` query states.
            query_mask: ``[B, Q]`` bool, True for real tokens.
            passage: ``[B, P, d]`` passage states (restored, if binarized).
            passage_mask: ``[B, P]`` bool.
            record: Filled with every joint layer's outputs and attention, if given.

        Returns:
            ``[B, Q + P, 2]`` float32 start and end logits.
        """
        hidden = torch.cat([query, passage], dim=1)
        attend = PaddedAttention(
            torch.cat([query_mask, passage_mask], dim=1), self.heads, hidden.dtype
        )
        for layer in self.joint:
            hidden = run_layer(layer, hidden, attend)
            if record is not None and attend.probabilities is not None:
                record.hidden.append(hidden)
                record.probabilities.append(attend.probabilities)
        logits: Tensor = self.model.qa_outputs(hidden)
        return logits.float()
