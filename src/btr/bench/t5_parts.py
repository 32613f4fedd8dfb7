"""The parts of a Fusion-in-Decoder question against what each could cost at best.

Each figure is a ratio of two things timed turn by turn in one process: its median over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration

from btr.bench.t5 import PAPER
from btr.bench.t5_shapes import HEAD_WIDTH, T5Shape
from btr.bits import unpack_signs
from btr.merge import match, merge_count, merge_mean
from btr.readers.t5_decoder import Cache, Decoder, Memory
from btr.readers.t5_engine import FidEngine
from btr.readers.t5_few_rows import PackedLinear
from btr.readers.t5_generate import greedy
from btr.readers.t5_layers import cross_attention
from btr.readers.t5_network import Restored, SplitT5

PASSAGES, QUERY, PASSAGE = 40, 40, 150
KEYS = 3904
"""What the decoder looks at after the paper's intra-passage merging of 40 passages."""


@torch.inference_mode()
def parts(
    shape: T5Shape,
    model: T5ForConditionalGeneration,
    *,
    rounds: int = 7,
    progress: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Time every part.

    Returns:
        Rows of ``part``, ``ms``, ``against``, ``against_ms``, ``ratio`` (and its range), ``goal``.
    """
    found = []
    measured = [
        *_decoding(shape, model), _unpacking(shape), _packing(shape, model), _matching(shape, model)
    ]  # fmt: skip
    for number, part in enumerate(measured):
        found.append(_row(part, *_timed(part.run, part.other, rounds)))
        progress(number)
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """Two things to time against each other; ``share`` of the first one counts."""

    name: str
    run: Callable[[], object]
    against: str
    other: Callable[[], object]
    goal: float
    share: float = 1.0


def _decoding(shape: T5Shape, model: T5ForConditionalGeneration) -> list[_Part]:
    """A decode step against reading its weights, in 8 bits, and for eight questions."""
    decoder, int8 = Decoder(model), Decoder(model, int8=True)
    linears: list[Any] = [decoder.head]
    for block in decoder.blocks:
        cross = cross_attention(block).EncDecAttention
        once = {id(cross.k), id(cross.v)}  # used once a question, not in every step
        kinds = (nn.Linear, PackedLinear)
        linears += [m for m in block.modules() if isinstance(m, kinds) and id(m) not in once]
    inputs = [torch.randn(1, m.in_features).to(model.shared.weight.dtype) for m in linears]

    def weights() -> None:
        for linear, x in zip(linears, inputs, strict=True):
            linear(x)

    def step(chosen: Decoder, memories: list[Memory]) -> Callable[[], Tensor]:
        cache = Cache(chosen, len(memories), 16)
        ids = torch.full((len(memories), 1), 5)
        return lambda: chosen.logits(chosen.run(ids, 8, cache, memories, [1] * len(memories)))

    many, few = _memory(shape, model, KEYS), _memory(shape, model, 64)
    one = step(decoder, [many])
    return [
        _Part(f"decode step, {KEYS} keys", one, "its weights alone", weights, 1.15),
        _Part("decode step, 8-bit", step(int8, [many]), "in the model's dtype", one, 0.6),
        _Part("decode step of 8 questions, each", step(decoder, [few] * 8), "one question's",
              step(decoder, [few]), 0.15, 1 / 8),
    ]  # fmt: skip


def _memory(shape: T5Shape, model: T5ForConditionalGeneration, keys: int) -> Memory:
    dtype = model.shared.weight.dtype
    states = [torch.randn(shape.heads, keys, HEAD_WIDTH).to(dtype) for _ in range(shape.layers)]
    sizes: list[Tensor | None] = [torch.zeros(keys) for _ in range(shape.layers)]
    return Memory(states, [s.clone() for s in states], sizes, (keys,))


def _unpacking(shape: T5Shape) -> _Part:
    tokens = PASSAGES * PASSAGE
    packed = np.random.default_rng(0).integers(0, 256, (tokens, shape.width // 8), dtype=np.uint8)
    signs = torch.empty((tokens, shape.width), dtype=torch.bfloat16)
    copy = torch.empty_like(signs)
    return _Part(
        "unpacking the signs of a question", lambda: unpack_signs(packed, torch.bfloat16),
        "a memcpy of the result", lambda: copy.copy_(signs), 1.2,
    )  # fmt: skip


def _packing(shape: T5Shape, model: T5ForConditionalGeneration) -> _Part:
    """The joint layers over passages of many lengths, against as many tokens in equal ones."""
    engine = FidEngine(SplitT5(model, shape.split_layer), scale="rms16", query_budget=QUERY)
    draw = np.random.default_rng(0)
    ragged = draw.normal(PASSAGE, 25, PASSAGES).round().clip(8).astype(int).tolist()
    equal = [round(float(np.mean(ragged)))] * PASSAGES
    query = torch.randn(QUERY, shape.width).to(engine.dtype)

    def run(lengths: list[int]) -> Callable[[], object]:
        given = [Restored(torch.randn(n, shape.width).to(engine.dtype)) for n in lengths]
        return lambda: engine.network.run_joint([query], [given], [QUERY])

    return _Part("joint layers, lengths 150 +- 25", run(ragged), "equal lengths", run(equal), 1.06)


def _matching(shape: T5Shape, model: T5ForConditionalGeneration) -> _Part:
    """All matching and merging of a question against the whole question with it."""
    dtype = model.shared.weight.dtype
    engine = FidEngine(
        SplitT5(model, shape.split_layer, binarized=True), scale="rms16", query_budget=QUERY
    )
    draw = np.random.default_rng(0)
    ids = [draw.integers(2, 32000, PASSAGE).tolist() for _ in range(PASSAGES)]
    restored = engine.restore(engine.encode(ids))
    query = draw.integers(2, 32000, QUERY).tolist()

    def question() -> None:
        memories = engine.remember([query], [restored], PAPER)
        greedy(engine.decoder, memories, longest=10, shortest=10)

    def matching() -> None:
        lengths = [QUERY + PASSAGE] * PASSAGES
        for _ in range(shape.layers - shape.split_layer):
            counts = [merge_count(n, PAPER.intra) for n in lengths]
            states = inputs[sum(lengths)]
            found = match(states, lengths, counts)
            merge_mean(states, sizes[: len(states)], found)
            lengths = list(found.lengths)
        total = sum(lengths)
        for _ in range(1, (shape.layers + PAPER.every - 1) // PAPER.every):
            states = inputs[total]
            found = match(states[:, :HEAD_WIDTH], [total], [merge_count(total, PAPER.cross)])
            merge_mean(states, sizes[:total], found)
            total = found.lengths[0]

    inputs = _States(shape.width, dtype)
    sizes = torch.ones(PASSAGES * (QUERY + PASSAGE))
    return _Part("matching and merging of a question", matching, "the question", question, 0.02)


class _States(dict[int, Tensor]):
    """Random states of as many tokens as asked for, made once."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width, self.dtype = width, dtype

    def __missing__(self, tokens: int) -> Tensor:
        self[tokens] = torch.randn(tokens, self.width).to(self.dtype)
        return self[tokens]


def _timed(
    mine: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of both, turn by turn, the first round not counted."""
    results: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for run, times in zip((mine, theirs), results, strict=True):
            started = time.perf_counter()
            run()
            if number:
                times.append(1e3 * (time.perf_counter() - started))
    return results


def _row(part: _Part, mine: list[float], theirs: list[float]) -> dict[str, Any]:
    ratios = [part.share * a / b for a, b in zip(mine, theirs, strict=True)]
    return {
        "part": part.name,
        "ms": round(part.share * statistics.median(mine), 3),
        "against": part.against,
        "against_ms": round(statistics.median(theirs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "goal": part.goal,
    }
