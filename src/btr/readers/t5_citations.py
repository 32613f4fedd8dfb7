"""Where a generated answer comes from: the passages the decoder looked at, and where it stands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from btr.data.passages import Passage
from btr.readers.base import Answer, Citation
from btr.readers.t5_decoder import Cache, Decoder, Memory
from btr.readers.t5_generate import Generated
from btr.readers.t5_text import FidText, word_edges


def cite(
    generated: Generated,
    passages: Sequence[Passage],
    weights: Sequence[float],
    text: FidText,
) -> Answer:
    """An answer with the passages that it draws on, strongest first.

    Passages in which it stands come before all others, however much the decoder looked at those.
    What stands in a passage is quoted from there, in its own spelling.

    Args:
        generated: The answer's tokens.
        passages: What was read, at least one.
        weights: Each passage's share of the decoder's attention.
        text: The reader's tokens.
    """
    citations = [
        Citation(passage, weight, *(find_words(generated.tokens, passage.text, text) or ()))
        for passage, weight in zip(passages, weights, strict=True)
    ]
    citations.sort(key=lambda c: (c.start is None, -c.weight))
    best = citations[0]
    said = text.decode(generated.tokens)
    if best.start is not None:
        said = best.passage.text[best.start : best.end]
    probability = min(1.0, math.exp(generated.log_probability))
    return Answer(said, probability, best.passage, best.start, best.end, tuple(citations))


def find_words(tokens: Sequence[int], passage: str, text: FidText) -> tuple[int, int] | None:
    """Characters of the first occurrence of some tokens as whole words, or None."""
    ids, offsets = text.encode(passage)
    if not tokens or len(tokens) > len(ids):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(np.array(ids), len(tokens))
    begins, ends = word_edges(passage, offsets)
    for first in np.flatnonzero((windows == np.array(tokens)).all(1)).tolist():
        last = first + len(tokens) - 1
        if begins[first] and ends[last]:
            return offsets[first][0], offsets[last][1]
    return None


@torch.inference_mode()
def passage_weights(
    generated: Generated, memory: Memory, decoder: Decoder, prompt: Sequence[int]
) -> list[float]:
    """Each passage's share of the decoder's attention, over all heads and tokens of an answer.

    Of the layers before the first cross-passage merging: later a token may be several passages'.
    One decoder call for all tokens, about as long as one step.
    """
    given = [decoder.start_token, *prompt, *generated.tokens]
    ids = torch.tensor([given], device=decoder.device)
    mass = torch.zeros((1, len(given), memory.keys[0].shape[1]), device=decoder.device)
    decoder.run(ids, 0, Cache(decoder, *ids.shape), [memory], [1], mass=mass)
    sums = torch.stack([part.sum() for part in torch.split(mass.sum((0, 1)), list(memory.lengths))])
    shares: list[float] = (sums / sums.sum()).tolist()
    return shares
