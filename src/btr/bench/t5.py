"""Fusion-in-Decoder readers of a shape timed against each other, technique by technique.

``m`` passages a question. All contenders share weights, dtype, attention kernels, packing and the
decode loop; all get what could be known beforehand (token ids, stored rows). The baselines:

- **B0**: Hugging Face's T5 and its ``generate``;
- **B1**: btr's own reader, nothing below the cut and nothing merged: the optimised plain reader;
- **B2**: B1 with half of the passages;
- DeFormer: the decomposed reader on continuous states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from btr.bench.race import Contender, Race
from btr.bench.t5_shapes import SHAPES, VOCABULARY, cost
from btr.readers.base import Merging
from btr.readers.batches import Clock
from btr.readers.t5_engine import FidEngine
from btr.readers.t5_generate import greedy
from btr.readers.t5_network import NO_MERGING, SplitT5

PAPER = Merging(intra=0.2, cross=0.2, every=3)
PAPER_RATIOS = {
    "base": {"plain": 1.0, "DeFormer": 2.2, "intra": 2.4, "BTR": 3.1},
    "large": {"plain": 1.0, "BTR": 4.0},
}
"""Queries a second over plain Atlas on an A100, NaturalQuestions (the paper's tables; "intra" is
its row without cross-passage merging, 24.6 over 10.2)."""

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
        device = self.model.device
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
        mask = torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device
        )
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
    name: str, model: T5ForConditionalGeneration, work: Workload, *, merging: Merging = PAPER
) -> Race:
    """Every technique switched on in turn; ratios are to B1, and to B0.

    Beside its time a row has what it must compute and read at least (``gflop``, ``decode_mb``), how
    long that takes at the speed of this machine's own products and reads (``floor_ms``), and the
    paper's ratio where it has one (``paper_ratio``).

    Args:
        name: The shape, one of ``SHAPES``.
        model: Of that shape, with weights in the dtype to measure.
        work: What to answer.
        merging: The runtime compression to measure.
    """
    shape = SHAPES[name]
    k, passages = shape.split_layer, len(work.passages[0])
    query, passage = len(work.queries[0]), round(np.mean([len(p) for p in work.passages[0]]))
    half, short = passages // 2, passage - int(SHORTER * passage)
    size = model.shared.weight.element_size()
    speed = machine_speed(model)

    def engine(layer: int, *, bits: bool = False) -> FidEngine:
        network = SplitT5(model, layer, binarized=bits)
        return FidEngine(network, scale="rms16", query_budget=query)

    def row(
        label: str,
        techniques: Sequence[str],
        run: Callable[[int], Mapping[str, float]],
        *,
        layer: int = k,
        merged: Merging = NO_MERGING,
        count: int = passages,
        tokens: int = passage,
        paper: str = "",
    ) -> Contender:
        mode = "plain" if not layer else "btr" if "bits" in techniques else "decomposed"
        least = cost(
            shape, passages=count, query=query, passage=tokens, answer=work.answer,
            split_layer=layer, merging=merged, weight_bytes=1 if "int8" in techniques else size,
            state_bytes=size,
        )  # fmt: skip
        extra = {
            "gflop": round(least.gflop, 4),
            "decode_mb": round(least.decode_mb, 3),
            "floor_ms": round(least.gflop / speed.tflops + least.decode_mb / speed.gbytes, 2),
            "paper_ratio": PAPER_RATIOS.get(name, {}).get(paper),
        }
        return Contender(label, "t5", mode, techniques, run, extra)

    plain, continuous, bits = engine(0), engine(k), engine(k, bits=True)
    intra, one_bit = Merging(intra=merging.intra), ["decomposition", "bits"]
    all_merged = [*one_bit, "intra", "cross"]
    base = row("B1: plain, optimised", [], EngineFid(plain, work).run, layer=0, paper="plain")
    unmodified = row("B0: Hugging Face T5 and generate", ["hugging face"],
                     HuggingFaceFid(model, work).run, layer=0)  # fmt: skip
    field = [
        unmodified,
        base,
        row(f"B2: B1 with {half} passages", ["fewer passages"],
            EngineFid(plain, work, passages=half).run, layer=0, count=half),
        row("DeFormer: decomposed, float16 states", ["decomposition"],
            EngineFid(continuous, work).run, paper="DeFormer"),
        row("decomposed, bits", one_bit, EngineFid(bits, work).run),
        row("+ intra-passage merging", [*one_bit, "intra"],
            EngineFid(bits, work, merging=intra).run, merged=intra, paper="intra"),
        row("BTR: + cross-passage merging", all_merged,
            EngineFid(bits, work, merging=merging).run, merged=merging, paper="BTR"),
        row("+ passages shortened offline", [*all_merged, "offline"],
            EngineFid(bits, work, merging=merging, shorter=SHORTER).run, merged=merging,
            tokens=short),
    ]  # fmt: skip
    if model.device.type == "cpu":
        field += [
            row("+ 8-bit decoding", [*all_merged, "offline", "int8"],
                EngineFid(bits, work, merging=merging, shorter=SHORTER, int8=True).run,
                merged=merging, tokens=short),
            row("B1 with 8-bit decoding", ["int8"],
                EngineFid(plain, work, int8=True).run, layer=0),
        ]  # fmt: skip
    return Race(field, base, unmodified)


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """What this machine reaches on the model's own weights, with its present threads.

    Attributes:
        tflops: Of a product with thousands of rows, in 10^12 a second.
        gbytes: Bytes a second that are read of the weights, in 10^9.
    """

    tflops: float
    gbytes: float


@torch.inference_mode()
def machine_speed(model: T5ForConditionalGeneration, seconds: float = 0.3) -> MachineSpeed:
    """Measure products and reads with a T5's weights for about ``seconds`` each.

    The least times, since floors are made of them. Of two ways to read weights the faster one
    counts: a product with one row, and their greatest word, which on a CPU takes a third of that.
    """
    weight = model.shared.weight
    matrix = weight[:4096]
    many = torch.randn(4096, weight.shape[1], device=weight.device).to(weight.dtype)
    flop = 2 * many.shape[0] * matrix.numel()
    once = _least_seconds(lambda: functional.linear(many, matrix), seconds)
    read = min(
        _least_seconds(lambda: functional.linear(many[:1], weight), seconds),
        _least_seconds(lambda: weight.view(torch.int64).max(), seconds),
    )
    return MachineSpeed(flop / once / 1e12, weight.numel() * weight.element_size() / read / 1e9)


def _least_seconds(run: Callable[[], object], seconds: float) -> float:
    """Least time of a call, of calls for about ``seconds``."""
    times: list[float] = []
    run()
    while sum(times) < seconds:
        clock = Clock()
        run()
        clock.lap("run")
        times.append(clock.stages_ms["run"] / 1e3)
    return min(times)
