"""Answers from a decoder, token by token: greedy search and beam search.

``R`` rows, ``V`` vocabulary. A generated answer is its tokens without the start and end tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from btr.readers.t5_decoder import Cache, Decoder, Memory


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer as tokens.

    Attributes:
        tokens: Ids, without the start and end tokens.
        log_probability: Of the tokens and, if it came, of the end token.
        places: Of an answer that was taken from the passages, every place with these tokens: the
            passage's number, the first character in its text and one past the last, in order.
    """

    tokens: tuple[int, ...]
    log_probability: float
    places: tuple[tuple[int, int, int], ...] = ()


def greedy(
    decoder: Decoder,
    memories: Sequence[Memory],
    *,
    longest: int,
    prompt: Sequence[int] = (),
    shortest: int = 0,
) -> list[Generated]:
    """The most probable next token, again and again, for several questions at once.

    Args:
        decoder: The decoder.
        memories: A question's.
        longest: Most tokens of an answer, at least 1.
        prompt: Tokens that every answer begins with; they are not part of it.
        shortest: Tokens before the end token may come; benchmarks force equal lengths by it.
    """
    count = len(memories)
    given = [decoder.start_token, *prompt]
    cache = Cache(decoder, count, len(given) + longest)
    ids = torch.tensor([given] * count, device=decoder.device)
    ended = [False] * count
    answers: list[list[int]] = [[] for _ in memories]
    scores = [0.0] * count
    start = 0
    for step in range(longest):
        hidden = decoder.run(ids, start, cache, memories, [1] * count)
        start += ids.shape[1]
        log_probs = decoder.log_probabilities(hidden[:, -1])
        if step < shortest:
            log_probs[:, decoder.end_token] = -torch.inf
        best, token = log_probs.max(-1)
        for i, (score, chosen) in enumerate(zip(best.tolist(), token.tolist(), strict=True)):
            if ended[i]:
                continue
            scores[i] += score
            ended[i] = chosen == decoder.end_token
            if not ended[i]:
                answers[i].append(chosen)
        if all(ended):
            break
        ids = token[:, None]
    return [Generated(tuple(a), s) for a, s in zip(answers, scores, strict=True)]


def beam_search(
    decoder: Decoder,
    memory: Memory,
    *,
    beams: int,
    longest: int,
    prompt: Sequence[int] = (),
    top: int = 1,
) -> list[Generated]:
    """The best of ``beams`` hypotheses by mean log-probability a token, as Hugging Face ranks them.

    Hugging Face's defaults (length penalty 1, no early stopping): a hypothesis that ends among the
    ``beams`` best continuations is kept with its mean; the search ends when the best running one
    could not beat the worst kept one at its present length, or at ``longest``.

    Returns:
        At most ``top`` answers, best first.
    """
    given = [decoder.start_token, *prompt]
    cache = Cache(decoder, beams, len(given) + longest)
    ids = torch.tensor([given] * beams, device=decoder.device)
    running: list[tuple[int, ...]] = [()] * beams
    # All beams are the same at first: only the first one may continue.
    scores = torch.full((beams,), -1e9, device=decoder.device)
    scores[0] = 0
    kept: list[tuple[float, Generated]] = []  # best first, of equal ones the earlier
    start = 0
    for length in range(1, longest + 1):
        hidden = decoder.run(ids, start, cache, [memory], [beams])
        start += ids.shape[1]
        total = (decoder.log_probabilities(hidden[:, -1]) + scores[:, None]).flatten()
        best, place = total.topk(2 * beams)
        vocabulary = len(total) // beams
        alive: list[tuple[float, int, int]] = []
        for rank, (score, where) in enumerate(zip(best.tolist(), place.tolist(), strict=True)):
            row, token = divmod(where, vocabulary)
            ends = token == decoder.end_token
            if not ends and length < longest:
                alive.append((score, row, token))
            elif rank < beams:
                tokens = running[row] if ends else (*running[row], token)
                kept.append((score / length, Generated(tokens, score)))
        kept = sorted(kept, key=lambda entry: -entry[0])[:beams]
        alive = alive[:beams]
        if not alive or (len(kept) == beams and alive[0][0] / length <= kept[-1][0]):
            break
        rows = torch.tensor([row for _, row, _ in alive], device=decoder.device)
        cache.reorder(rows)
        running = [(*running[row], token) for _, row, token in alive]
        scores = torch.tensor([score for score, _, _ in alive], device=decoder.device)
        ids = torch.tensor([[token] for _, _, token in alive], device=decoder.device)
    return [answer for _, answer in kept[:top]]


def sequence_log_probabilities(
    decoder: Decoder,
    memory: Memory,
    sequences: Sequence[Sequence[int]],
    prompt: Sequence[int] = (),
) -> Tensor:
    """Log-probabilities of whole answers, their end tokens included, in one call: ``[R]`` float32.

    Args:
        decoder: The decoder.
        memory: The question's.
        sequences: Tokens of each answer, without start and end tokens.
        prompt: Tokens that every answer begins with; they do not count.
    """
    given = [decoder.start_token, *prompt]
    longest = max(len(sequence) for sequence in sequences)
    filler = [given[0]] * longest
    ids = torch.tensor(
        [[*given, *sequence, *filler[len(sequence) :]] for sequence in sequences],
        device=decoder.device,
    )
    hidden = decoder.run(ids, 0, Cache(decoder, *ids.shape), [memory], [len(sequences)])
    log_probs = decoder.log_probabilities(hidden[:, len(given) - 1 :])
    sums = []
    for row, sequence in zip(log_probs, sequences, strict=True):
        wanted = torch.tensor([*sequence, decoder.end_token], device=decoder.device)
        sums.append(row[: len(wanted)].gather(1, wanted[:, None]).sum())
    return torch.stack(sums)


def prefix_log_probabilities(
    decoder: Decoder, memory: Memory, prefixes: Sequence[Sequence[int]], prompt: Sequence[int] = ()
) -> Tensor:
    """Log-probabilities of the token after each prefix, all in one call: ``[R, V]`` float32."""
    given = [decoder.start_token, *prompt]
    longest = max(len(prefix) for prefix in prefixes)
    # What stands right of a prefix is never looked at by it.
    ids = torch.tensor(
        [[*given, *prefix, *[given[0]] * (longest - len(prefix))] for prefix in prefixes],
        device=decoder.device,
    )
    cache = Cache(decoder, *ids.shape)
    hidden = decoder.run(ids, 0, cache, [memory], [len(prefixes)])
    last = torch.tensor([len(given) + len(p) - 1 for p in prefixes], device=decoder.device)
    rows = torch.arange(len(prefixes), device=decoder.device)
    return decoder.log_probabilities(hidden[rows, last])
