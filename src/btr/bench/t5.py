"""Fusion-in-Decoder readers of a shape timed against each other, technique by technique.

``m`` passages a question. All contenders share weights, dtype, attention kernels, packing and the
decode loop; all get what could be known beforehand (token ids, stored rows). The baselines:

- **B0**: Hugging Face's T5 and its ``generate``;
- **B1**: btr's own reader, nothing below the cut and nothing merged: the optimised plain reader;
- **B2**: B1 with half of the passages;
- DeFormer: the decomposed reader on continuous states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from btr.bench.race import Contender
from btr.bench.t5_shapes import VOCABULARY, T5Shape, cost
from btr.readers.base import Merging
from btr.readers.batches import Clock
from btr.readers.t5_engine import FidEngine
from btr.readers.t5_generate import greedy
from btr.readers.t5_network import NO_MERGING, SplitT5

PAPER = Merging(intra=0.2, cross=0.2, every=3)
SHORTER = 0.2
"""Share of a passage's tokens that offline merging leaves out (method, section 5)."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Questions of one form, as token ids.

    Attributes:
        queries: Every question.
        passages: Every question's passages.
        answer: Tokens that are generated, no more and no less.
    """

    queries: Sequence[Sequence[int]]
    passages: Sequence[Sequence[Sequence[int]]]
    answer: int


def make_workload(
    *, questions: int, passages: int, query: int, passage: int, spread: float, answer: int
) -> Workload:
    """Random token ids.

    Args:
        questions: How many.
        passages: A question.
        query: Tokens of a question.
        passage: Mean tokens of a passage.
        spread: Standard deviation of that.
        answer: Generated tokens.
    """
    draw = np.random.default_rng(0)

    def text(length: int) -> list[int]:
        ids: list[int] = draw.integers(2, VOCABULARY, length).tolist()
        return ids

    lengths = draw.normal(passage, spread, (questions, passages)).round().clip(8).astype(int)
    return Workload(
        [text(query) for _ in range(questions)],
        [[text(n) for n in row] for row in lengths.tolist()],
        answer,
    )


class HuggingFaceFid:
    """B0: FiD as one writes it with Hugging Face's T5, passages padded to the longest."""

    def __init__(self, model: T5ForConditionalGeneration, work: Workload) -> None:
        self.model: Any = model
        self.answer = work.answer
        self.inputs = [
            [[*query, *ids] for ids in given]
            for query, given in zip(work.queries, work.passages, strict=True)
        ]

    @torch.inference_mode()
    def run(self, task: int) -> Mapping[str, float]:
        """Answer a question; returns its stages in milliseconds."""
        clock = Clock()
        rows = self.inputs[task]
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        hidden = self.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        clock.lap("joint")
        self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden.flatten(0, 1)[None]),
            attention_mask=mask.flatten()[None], do_sample=False, num_beams=1,
            min_new_tokens=self.answer, max_new_tokens=self.answer,
        )  # fmt: skip
        clock.lap("decode")
        return clock.stages_ms


class EngineFid:
    """btr's reader on token ids.

    Args:
        engine: The reader.
        work: What to answer.
        merging: Runtime compression.
        passages: How many of a question's passages to read; None for all.
        shorter: Share of each passage's rows to leave out, as if merged offline.
        int8: Decode with 8-bit weights.
    """

    def __init__(
        self,
        engine: FidEngine,
        work: Workload,
        *,
        merging: Merging = NO_MERGING,
        passages: int | None = None,
        shorter: float = 0.0,
        int8: bool = False,
    ) -> None:
        self.engine, self.work, self.merging = engine, work, merging
        self.stepper = engine.stepper(int8=int8)
        self.ids = [given[:passages] for given in work.passages]
        self.rows: list[list[NDArray[np.uint8]]] | None = None
        if engine.network.split_layer:
            self.rows = [
                [part[: len(part) - int(shorter * len(part))] for part in engine.encode(given)]
                for given in self.ids
            ]

    def run(self, task: int) -> Mapping[str, float]:
        """Answer a question; returns its stages in milliseconds."""
        clock = Clock()
        if self.rows is None:
            restored = self.engine.embed(self.ids[task])
            clock.lap("passages")
        else:
            restored = self.engine.restore(self.rows[task])
            clock.lap("unpack")
        memories = self.engine.remember([self.work.queries[task]], [restored], self.merging, clock)
        with torch.inference_mode():
            greedy(self.stepper, memories, longest=self.work.answer,
                   shortest=self.work.answer)  # fmt: skip
        clock.lap("decode")
        return clock.stages_ms


def contenders(
    shape: T5Shape, model: T5ForConditionalGeneration, work: Workload, *, merging: Merging = PAPER
) -> tuple[list[Contender], Contender]:
    """Every technique switched on in turn, and the contender that ratios are to (B1).

    Args:
        shape: The model's.
        model: With weights in the dtype to measure.
        work: What to answer.
        merging: The runtime compression to measure.
    """
    k, passages = shape.split_layer, len(work.passages[0])
    query, passage = len(work.queries[0]), round(np.mean([len(p) for p in work.passages[0]]))
    budget = query

    def engine(layer: int, *, bits: bool) -> FidEngine:
        network = SplitT5(model, layer, binarized=bits)
        return FidEngine(network, scale="rms16", query_budget=budget)

    size = model.shared.weight.element_size()

    def floor(
        layer: int,
        merged: Merging,
        count: int = passages,
        tokens: int = passage,
        weight: int = size,
    ) -> dict[str, float]:
        least = cost(
            shape, passages=count, query=query, passage=tokens, answer=work.answer,
            split_layer=layer, merging=merged, weight_bytes=weight, state_bytes=size,
        )  # fmt: skip
        return {"gflop": round(least.gflop, 4), "decode_mb": round(least.decode_mb, 3)}

    plain, continuous, bits = engine(0, bits=False), engine(k, bits=False), engine(k, bits=True)
    intra = Merging(intra=merging.intra)
    half, short = passages // 2, passage - int(SHORTER * passage)
    base = Contender("B1: plain, optimised", "t5", "plain", [], EngineFid(plain, work).run,
                     floor(0, NO_MERGING))  # fmt: skip
    field = [
        Contender("B0: Hugging Face T5 and generate", "t5", "plain", ["hugging face"],
                  HuggingFaceFid(model, work).run, floor(0, NO_MERGING)),
        base,
        Contender(f"B2: B1 with {half} passages", "t5", "plain", ["fewer passages"],
                  EngineFid(plain, work, passages=half).run, floor(0, NO_MERGING, half)),
        Contender("DeFormer: decomposed, float16 states", "t5", "decomposed", ["decomposition"],
                  EngineFid(continuous, work).run, floor(k, NO_MERGING)),
        Contender("decomposed, bits", "t5", "btr", ["decomposition", "bits"],
                  EngineFid(bits, work).run, floor(k, NO_MERGING)),
        Contender("+ intra-passage merging", "t5", "btr", ["decomposition", "bits", "intra"],
                  EngineFid(bits, work, merging=intra).run, floor(k, intra)),
        Contender("BTR: + cross-passage merging", "t5", "btr",
                  ["decomposition", "bits", "intra", "cross"],
                  EngineFid(bits, work, merging=merging).run, floor(k, merging)),
        Contender("+ passages shortened offline", "t5", "btr",
                  ["decomposition", "bits", "intra", "cross", "offline"],
                  EngineFid(bits, work, merging=merging, shorter=SHORTER).run,
                  floor(k, merging, tokens=short)),
        Contender("+ 8-bit decoding", "t5", "btr",
                  ["decomposition", "bits", "intra", "cross", "offline", "int8"],
                  EngineFid(bits, work, merging=merging, shorter=SHORTER, int8=True).run,
                  floor(k, merging, tokens=short, weight=1)),
        Contender("B1 with 8-bit decoding", "t5", "plain", ["int8"],
                  EngineFid(plain, work, int8=True).run, floor(0, NO_MERGING, weight=1)),
    ]  # fmt: skip
    return field, base
