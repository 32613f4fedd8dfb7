"""A T5 of the shape of a BERT: its tokenizer and word embeddings, its layers in the decoder.

No pretrained T5 comes as a package, but a BERT does. The encoder is left as it comes, for
:mod:`btr.train.layer_fit` to fill. All layers have some heads more than the BERT's, which it uses.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from transformers import BertModel, T5Config, T5ForConditionalGeneration
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.t5.modeling_t5 import T5Block, T5DenseActDense, T5LayerFF

from btr.readers.t5_layers import cross_attention, self_attention

LOOKED_AT = (1, 0, 0, 0)
"""T5's buckets of the tokens that the heads look at which a BERT does not have: the one before,
itself."""

FURTHER_HEADS = len(LOOKED_AT)


def t5_from_bert(
    bert: BertModel, *, decoder_layers: int, inner: int, end_token: int
) -> T5ForConditionalGeneration:
    """A T5 with a BERT's matrices in its decoder and random ones in its encoder.

    Args:
        bert: The BERT.
        decoder_layers: Layers of the decoder; they begin as the BERT's last ones, each layer's
            attention as both of a decoder layer's.
        inner: Width of the feed-forward layers: the neurons with the largest weights are kept.
        end_token: Closes texts and answers: ``[SEP]``.
    """
    shape = bert.config
    described: dict[str, Any] = {
        "vocab_size": shape.vocab_size, "d_model": shape.hidden_size,
        "d_kv": shape.hidden_size // shape.num_attention_heads, "d_ff": inner,
        "num_layers": shape.num_hidden_layers, "num_decoder_layers": decoder_layers,
        "num_heads": shape.num_attention_heads + FURTHER_HEADS, "feed_forward_proj": "gelu",
        "tie_word_embeddings": True, "dropout_rate": 0.0, "pad_token_id": 0,
        "decoder_start_token_id": 0, "eos_token_id": end_token,
    }  # fmt: skip
    model = T5ForConditionalGeneration(T5Config(**described))
    layers = [layer for layer in bert.encoder.layer if isinstance(layer, BertLayer)]
    decoder = [block for block in model.decoder.block if isinstance(block, T5Block)]
    with torch.no_grad():
        model.shared.weight.copy_(bert.embeddings.word_embeddings.weight)
        for block, layer in zip(decoder, layers[-decoder_layers:], strict=True):
            _copy_layer(block, layer)
        # Logits are a state times the embeddings over the root of their width: with a BERT's, which
        # are short, none would stand out. This gives them the spread that a T5's begin with.
        length = float(model.shared.weight.norm(dim=1).mean())
        model.decoder.final_layer_norm.weight.fill_(math.sqrt(shape.hidden_size) / length)
    return model


def _copy_layer(block: T5Block, layer: BertLayer) -> None:
    """Fill a block of a decoder."""
    attention, inner, outer = layer.attention, layer.intermediate.dense, layer.output.dense
    norm = attention.output.LayerNorm.weight
    for heads, before in (
        (self_attention(block).SelfAttention, self_attention(block).layer_norm),
        (cross_attention(block).EncDecAttention, cross_attention(block).layer_norm),
    ):
        # T5 does not divide its logits by the root of a head's width.
        width = len(attention.self.query.weight)
        heads.q.weight[:width] = attention.self.query.weight / math.sqrt(heads.key_value_proj_dim)
        heads.k.weight[:width] = attention.self.key.weight
        heads.v.weight[:width] = attention.self.value.weight
        heads.o.weight[:, :width] = attention.output.dense.weight
        before.weight.copy_(norm)
    feed = cast("T5LayerFF", block.layer[-1])
    dense = cast("T5DenseActDense", feed.DenseReluDense)
    kept = kept_neurons(layer, dense.wi.out_features)
    dense.wi.weight.copy_(inner.weight[kept])
    dense.wo.weight.copy_(outer.weight[:, kept])
    feed.layer_norm.weight.copy_(norm)


def kept_neurons(layer: BertLayer, count: int) -> Tensor:
    """Which neurons of a layer's feed-forward part a narrower one has: those of largest weights."""
    size = layer.intermediate.dense.weight.norm(dim=1) * layer.output.dense.weight.norm(dim=0)
    largest: Tensor = size.topk(count).indices
    return largest.sort().values
