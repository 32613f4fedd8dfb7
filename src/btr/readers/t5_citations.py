"""Where a generated answer comes from: the passages the decoder looked at, and where it stands."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch

from btr.data.passages import Passage
from btr.readers.base import Answer, Citation
from btr.readers.t5_decoder import Cache, Decoder, Memory
from btr.readers.t5_generate import Generated
from btr.readers.t5_text import FidText

_PARTS = re.compile(r"\w+|[^\w\s]")


def cite(
    generated: Generated,
    passages: Sequence[Passage],
    weights: Sequence[float],
    text: FidText,
    calibration: tuple[float, float] | None,
    choice: str = "",
) -> Answer:
    """An answer with the passages that it draws on, strongest first.

    Passages in which it stands come before all others, however much the decoder looked at those.
    What stands in a passage is quoted from there, in its own spelling. An answer that was taken
    from the passages is quoted from where its tokens stand, in the passage that was looked at most.

    Args:
        generated: The answer's tokens.
        passages: What was read, at least one.
        weights: Each passage's share of the decoder's attention.
        text: The reader's tokens.
        calibration: As in :func:`confidence`.
        choice: The answer's own text where it was one of several given: it is quoted from nowhere.
    """
    if choice:
        ranked = sorted(zip(weights, passages, strict=True), key=lambda pair: -pair[0])
        cited = tuple(Citation(passage, weight) for weight, passage in ranked)
        probability = math.exp(generated.log_probability)
        return Answer(choice, probability, cited[0].passage, None, None, cited)
    if generated.places:
        spots = _taken_from(generated.places, passages, weights)
    else:
        said = text.decode(generated.tokens)
        spots = [find_words(said, passage.text) for passage in passages]
    citations = [
        Citation(passage, weight, *(spot or ()))
        for passage, weight, spot in zip(passages, weights, spots, strict=True)
    ]
    citations.sort(key=lambda c: (c.start is None, -c.weight))
    best = citations[0]
    if best.start is not None:
        said = best.passage.text[best.start : best.end]
    probability = confidence(generated.log_probability, calibration)
    return Answer(said, probability, best.passage, best.start, best.end, tuple(citations))


def confidence(log_probability: float, calibration: tuple[float, float] | None) -> float:
    """Probability of an answer, or with a calibration the probability that it is right.

    Args:
        log_probability: Of its tokens and the end token.
        calibration: Slope and intercept of the log-odds of being right.
    """
    if calibration is None:
        return min(1.0, math.exp(log_probability))
    slope, intercept = calibration
    # An answer can be as improbable as exp(-1000): its log-odds are cut where a float ends.
    return 1 / (1 + math.exp(-max(-700.0, slope * log_probability + intercept)))


def _taken_from(
    places: Sequence[tuple[int, int, int]], passages: Sequence[Passage], weights: Sequence[float]
) -> list[tuple[int, int] | None]:
    """Where an answer that was taken from the passages stands in each of them, or None."""
    firsts = {number: (start, end) for number, start, end in reversed(places)}
    texts = {n: passages[n].text[start:end].casefold() for n, (start, end) in firsts.items()}
    said = texts[max(sorted(texts), key=lambda n: weights[n])]
    # The same tokens may be other words, where the tokenizer knows neither.
    return [firsts[n] if texts.get(n) == said else None for n in range(len(passages))]


def find_words(answer: str, passage: str) -> tuple[int, int] | None:
    """Characters of the first place where an answer stands in a passage as whole words, or None.

    Capitals and the spaces between words and marks don't count: tokenizers lose them.
    """
    parts = _PARTS.findall(answer)
    if not parts:
        return None
    pattern = r"\s*".join(map(re.escape, parts))
    before = r"(?<!\w)" if parts[0][0].isalnum() else ""
    after = r"(?!\w)" if parts[-1][-1].isalnum() else ""
    found = re.search(before + pattern + after, passage, re.IGNORECASE)
    return found and found.span()


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
