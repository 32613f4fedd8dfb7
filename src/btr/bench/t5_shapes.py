"""T5 shapes with random weights, and what a question costs them in arithmetic and bytes.

Speed does not depend on the values of weights, so no checkpoint is needed to measure it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from btr.machine import default_device
from btr.merge import merge_count
from btr.readers.base import Merging


@dataclass(frozen=True, slots=True)
class T5Shape:
    """A T5 v1.1.

    Attributes:
        width: ``d``.
        inner: Width of the feed-forward part.
        layers: Of the encoder; the decoder has as many.
        heads: Each 64 wide.
        split_layer: The paper's cut, or the same share of the layers.
    """

    width: int
    inner: int
    layers: int
    heads: int
    split_layer: int


SHAPES = {
    "tiny": T5Shape(256, 1024, 4, 4, 3),
    "small": T5Shape(512, 1024, 8, 6, 6),
    "base": T5Shape(768, 2048, 12, 12, 9),
    "large": T5Shape(1024, 2816, 24, 16, 20),
}
VOCABULARY = 32128
HEAD_WIDTH = 64


def random_t5(shape: T5Shape, dtype: torch.dtype, seed: int = 0) -> T5ForConditionalGeneration:
    """A T5 with small random weights, in eval mode, on a GPU where there is one."""
    described: dict[str, Any] = dict(  # noqa: C408 - names as the configuration has them
        vocab_size=VOCABULARY, d_model=shape.width, d_kv=HEAD_WIDTH, d_ff=shape.inner,
        num_layers=shape.layers, num_heads=shape.heads, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.device("meta"):
        model: Any = T5ForConditionalGeneration(T5Config(**described))
    device = default_device()
    model.to_empty(device=device)
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(seed)
    nn.Module.to(model, dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name:
                weight.fill_(1)
            else:
                weight.normal_(0, shape.width**-0.5, generator=generator)
    result: T5ForConditionalGeneration = model.eval().requires_grad_(False)
    return result


@dataclass(frozen=True, slots=True)
class Cost:
    """What a question costs at least.

    Attributes:
        gflop: Floating-point operations, in thousand millions.
        decode_mb: Million bytes that decoding reads: weights, keys and values, in every step.
    """

    gflop: float
    decode_mb: float


def cost(
    shape: T5Shape,
    *,
    passages: int,
    query: int,
    passage: int,
    answer: int,
    split_layer: int,
    merging: Merging,
    weight_bytes: float,
    state_bytes: int,
) -> Cost:
    """The least that a question needs, whatever runs it.

    A token costs a layer ``8 d^2`` for projections, ``6 d d_ff`` for the gated feed-forward part
    and ``4 T d`` for attention to ``T`` tokens; a key and value cost ``4 d^2``.

    Args:
        shape: Of the network.
        passages: A question.
        query: Tokens of the question.
        passage: Tokens of every passage.
        answer: Decoded tokens.
        split_layer: Encoder layers that were computed beforehand.
        merging: Runtime compression.
        weight_bytes: Of one decoder weight.
        state_bytes: Of one element of a key or value.
    """
    inside = HEAD_WIDTH * shape.heads
    token = 8 * shape.width * inside + 6 * shape.width * shape.inner
    flop = split_layer * query * (token + 4 * query * inside)
    length = query + passage
    for _ in range(shape.layers - split_layer):
        flop += passages * length * (token + 4 * length * inside)
        length -= merge_count(length, merging.intra)
    keys, seen = passages * length, 0
    for layer in range(shape.layers):
        if layer and layer % merging.every == 0:
            keys -= merge_count(keys, merging.cross)
        flop += 4 * shape.width * inside * keys
        seen += keys
    step = shape.layers * (token + 4 * shape.width * inside) + 2 * shape.width * VOCABULARY
    flop += answer * (step + 4 * seen * inside)
    weights = step // 2 * weight_bytes
    read = answer * (weights + 2 * seen * inside * state_bytes)
    return Cost(flop / 1e9, read / 1e6)
