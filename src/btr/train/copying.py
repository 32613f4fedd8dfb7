"""A decoder that begins by copying: its last cross-attention worked out instead of learned.

A decoder made of a BERT's layers knows neither where to look for an answer nor how to write what it
looks at, and learns the two together slowly: after 900 steps of training on questions its loss was
still 4.7 a token. If the encoder's states tell both by a linear map (:mod:`btr.train.
reader_distillation` sees to that), least squares find the maps in seconds.

``N`` tokens, ``d`` width.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Block, T5LayerFF

from btr.errors import IncompatibleError
from btr.readers.t5_decoder import special_token
from btr.readers.t5_layers import cross_attention, self_attention

RIDGE = 10.0
"""Added to the squares of the states' components, which sum to thousands."""

SHARPNESS = 3.0
"""What logits of where an answer begins are multiplied by."""

LOUDNESS = 40.0
"""Length of what is copied against that of the token written last."""

QUIET = 0.1
"""What all else in the decoder is multiplied by, so that it begins by adding little."""


@torch.no_grad()
def begin_with_copying(
    model: T5ForConditionalGeneration, states: Tensor, tokens: Tensor, starts: Tensor
) -> None:
    """Let a decoder's first token be the one where an answer is said to begin.

    In the last layer's cross-attention every head has one component more that counts: its key is
    the logit of a beginning, its query the start token. Values are the states, and the output is
    the embedding that a state is linearly nearest to.

    Args:
        model: With tied embeddings; its decoder is changed.
        states: ``[N, d]`` what the decoder looks at, of texts' tokens.
        tokens: ``[N]`` int64, what stands there.
        starts: ``[N]`` logits of an answer beginning there.

    Raises:
        IncompatibleError: The heads together are not as wide as the model.
    """
    blocks = [block for block in model.decoder.block if isinstance(block, T5Block)]
    copying = cross_attention(blocks[-1]).EncDecAttention
    width = int(model.config.d_model)
    if copying.inner_dim != width:
        raise IncompatibleError("the decoder's heads can't copy whole states",
                                expected=f"{width} wide", found=str(copying.inner_dim))  # fmt: skip
    named = model.shared.weight.double()
    named = functional.normalize(named - named.mean(0), dim=1)
    states = states.double()
    squares = states.T @ states + RIDGE * torch.eye(width, dtype=torch.float64)

    def fitted(wanted: Tensor) -> Tensor:
        """The linear map from states that comes nearest."""
        found: Tensor = torch.linalg.solve(squares, states.T @ wanted)
        return found

    names = fitted(named[tokens])
    # What all tokens have in common says nothing, and would be the loudest in a mean of many.
    common = functional.normalize((states @ names).mean(0), dim=0)
    names -= torch.outer(names @ common, common)
    beginning = fitted((starts - starts.mean()).double())

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
    copying.q.weight *= QUIET
    copying.k.weight *= QUIET
    first = slice(0, width, copying.key_value_proj_dim)
    start = named[special_token(model, "decoder_start_token_id")]
    # A norm before the query has made the start token's state as long as the root of the width.
    copying.q.weight[first] = (SHARPNESS / math.sqrt(width) * start).to(copying.q.weight)
    copying.k.weight[first] = beginning.to(copying.k.weight)
    copying.v.weight.copy_(torch.eye(width))
    copying.o.weight.copy_(LOUDNESS * names.T)
