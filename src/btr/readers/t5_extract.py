"""The most probable spans of what was read, as answers with their places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from btr.readers.span_search import search_spans
from btr.readers.t5_decoder import Decoder, Memory
from btr.readers.t5_generate import Generated, prefix_log_probabilities
from btr.readers.t5_text import SpanTokens


def likeliest_spans(
    decoder: Decoder,
    memory: Memory,
    passages: Sequence[SpanTokens],
    *,
    longest: int,
    top: int,
    prompt: Sequence[int] = (),
) -> list[Generated]:
    """The most probable spans of the passages under the decoder, exactly, whole words each.

    Args:
        decoder: The decoder.
        memory: The question's.
        passages: What was read of the passages' texts.
        longest: Most tokens of an answer.
        top: Most answers.
        prompt: Tokens that every answer begins with; they are not part of it.

    Returns:
        At most ``top`` answers, best first, each with its places. Of tokens that spell the same
        text in different ways the most probable are given.
    """

    def place(number: int, first: int, last: int) -> tuple[int, int, int]:
        offsets = passages[number].offsets
        return number, offsets[first][0], offsets[last][1]

    def says(number: int, first: int, last: int) -> str:
        _, start, end = place(number, first, last)
        return passages[number].text[start:end]

    def score(prefixes: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
        log_probs = prefix_log_probabilities(decoder, memory, prefixes, prompt)
        scores: NDArray[np.float32] = log_probs.cpu().numpy()
        return scores

    found, _ = search_spans(
        [p.ids for p in passages], [p.begins for p in passages], [p.ends for p in passages], score,
        end_token=decoder.end_token, longest=longest, top=top, says=says,
    )  # fmt: skip
    return [
        Generated(
            span.tokens,
            span.log_probability,
            tuple(place(n, first, first + len(span.tokens) - 1) for n, first in span.places),
        )
        for span in found
    ]
