"""A decoder that begins by copying: its last cross-attention worked out instead of learned.

A decoder made of a BERT's layers knows neither where to look for an answer nor how to write what it
looks at, and learns the two together slowly: after 900 steps of training on questions its loss was
still 4.7 a token. If the encoder's states tell both by a linear map, and what stands before each
token (:mod:`btr.train.layer_fit` and :mod:`btr.train.reader_distillation` see to that), least
squares find the maps in seconds.

``N`` tokens, ``d`` width, ``V`` words, ``w`` width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Block, T5LayerFF

from btr.errors import IncompatibleError
from btr.readers.t5_decoder import special_token
from btr.readers.t5_layers import cross_attention, self_attention
from btr.train.least_squares import nearest_map

SHARPNESS = 3.0
"""What logits of where an answer begins are multiplied by."""

CERTAINTY = 20.0
"""The logit of a place that stands exactly behind the token written last."""

LOUDNESS = 40.0
"""Length of what is copied against that of the token written last."""

QUIET = 0.01
"""What all else in the decoder is multiplied by, so that it begins by adding little."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a decoder would look at, of texts' tokens.

    Attributes:
        states: ``[N, d]`` states.
        tokens: ``[N]`` int64, what stands there.
        before: ``[N]`` int64, what stands before.
        starts: ``[N]`` logits of an answer beginning there.
    """

    states: Tensor
    tokens: Tensor
    before: Tensor
    starts: Tensor


@torch.no_grad()
def begin_with_copying(model: T5ForConditionalGeneration, seen: Seen, codes: Tensor) -> None:
    """Let a decoder write the token where an answer is said to begin, and go on behind it.

    Of the last layer's cross-attention every head's query is the code of the token written last,
    and its keys are the codes of what stands before each place; a beginning of an answer stands
    behind the start token. Values are the states, and the output is the embedding that a state is
    linearly nearest to.

    Args:
        model: With tied embeddings; its decoder is changed.
        seen: What to work it out from.
        codes: ``[V, w]`` short ones of tokens (:mod:`btr.train.token_codes`).

    Raises:
        IncompatibleError: The heads together are narrower than the model.
    """
    blocks = [block for block in model.decoder.block if isinstance(block, T5Block)]
    copying = cross_attention(blocks[-1]).EncDecAttention
    width = int(model.config.d_model)
    if copying.inner_dim < width:
        raise IncompatibleError("the decoder's heads can't copy whole states",
                                expected=f"{width} wide", found=str(copying.inner_dim))  # fmt: skip
    embeddings = model.shared.weight
    named = functional.normalize(embeddings - embeddings.mean(0), dim=1)
    states = seen.states
    names = nearest_map(states, named[seen.tokens])
    # What all tokens have in common says nothing, and would be the loudest in a mean of many.
    common = functional.normalize((states @ names).mean(0), dim=0)
    names -= torch.outer(names @ common, common)
    behind = nearest_map(states, codes[seen.before])
    beginning = nearest_map(states, seen.starts[:, None] - seen.starts.mean())
    start = special_token(model, "decoder_start_token_id")
    behind += SHARPNESS / CERTAINTY * beginning * codes[start]
    # As often as a tenth of all tokens: one row would not count.
    written = torch.cat([seen.tokens, torch.full((len(seen.tokens) // 10,), start)])
    asked = nearest_map(functional.rms_norm(embeddings, (width,))[written], codes[written])

    for block in blocks:
        for layer, heads in (
            (self_attention(block), self_attention(block).SelfAttention),
            (cross_attention(block), cross_attention(block).EncDecAttention),
        ):
            heads.o.weight *= QUIET
            layer.layer_norm.weight.fill_(1.0)
        feed = cast("T5LayerFF", block.layer[-1])
        feed.DenseReluDense.wo.weight *= QUIET
        feed.layer_norm.weight.fill_(1.0)
    copying.q.weight.copy_((CERTAINTY * asked).T.repeat(copying.n_heads, 1))
    copying.k.weight.copy_(behind.T.repeat(copying.n_heads, 1))
    copying.v.weight[:width] = torch.eye(width)
    copying.o.weight.zero_()
    copying.o.weight[:, :width] = LOUDNESS * names.T
