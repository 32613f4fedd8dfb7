"""The three training steps of an extractive reader (method, section 4).

1. ``reader``: the ordinary reader; span loss.
2. ``decompose``: split at ``lower`` layers with ``joint`` further ones, started from step 1 and
   distilled from it.
3. ``binarize``: the same with the binarizer, started from step 2; span loss and recovery loss.

Run as ``python -m btr.train.extractive --help``.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertForQuestionAnswering
from transformers.models.bert.modeling_bert import BertLayer

from btr.binarize import PostNormBinarizer, straight_through_sign
from btr.errors import UsageError
from btr.evaluate.metrics import exact_match, f1_score
from btr.models import PACKAGED, resolve
from btr.readers.base import Mode
from btr.readers.bert_checkpoint import BertReaderConfig, load_network, save_checkpoint
from btr.readers.bert_network import JointStates, SplitBert, bert_layers
from btr.readers.bert_text import load_tokenizer
from btr.readers.spans import LONGEST_ANSWER, span_scores, top_spans
from btr.train import losses
from btr.train.dropout import make_pool, use_pooled_dropout
from btr.train.loop import Loop, LoopSettings
from btr.train.optimizer import MasterAdamW
from btr.train.span_examples import (
    SpanBatch,
    SpanData,
    SpanExample,
    collate,
    epoch_batches,
)
from btr.train.span_sources import DataSettings, DevSet, load_dev, load_train

MODE_OF: dict[str, Mode] = {"reader": "plain", "decompose": "decomposed", "binarize": "btr"}


DEV_QUESTIONS = 800
"""Most dev questions of a source: F1 within 1.7 points, in ten seconds."""


@dataclass(frozen=True)
class StepSettings(DataSettings):
    """What one training step does; 0 switches a loss off."""

    stage: str = "reader"
    lower: int = 0
    joint: int = 0
    epochs: int = 3
    lr: float = 1.5e-4
    token_budget: int = 6000
    negative_share: float = 0.2
    state_weight: float = 0.0
    answer_weight: float = 0.0
    recovery_weight: float = 0.0
    distil_share: float = 0.5
    dropout: float = 0.1


def device_of(network: SplitBert) -> torch.device:
    """Where a network's weights are."""
    return network.model.qa_outputs.weight.device


def run_network(
    network: SplitBert, batch: SpanBatch, record: JointStates | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Forward pass of a training batch.

    Returns:
        Start and end logits ``[B, 1 + P]`` (column 0: not answered here), their mask, and the
        passage states ``[U, P, d]`` before and after the binarizer.
    """
    query = network.encode_query(batch.query_ids, batch.query_mask)
    state = network.encode_passage(batch.passage_ids, batch.passage_mask)
    restored = state if network.binarizer is None else network.binarizer(state)
    mask = batch.passage_mask[batch.passage_of]
    logits = network.read(query, batch.query_mask, restored[batch.passage_of], mask, record)
    length = batch.query_ids.shape[1]
    logits = torch.cat([logits[:, :1], logits[:, length:]], dim=1)
    full = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    return logits[..., 0], logits[..., 1], full, state, restored


class StageLoss:
    """The loss of one stage over one batch of examples."""

    def __init__(
        self,
        network: SplitBert,
        data: SpanData,
        settings: StepSettings,
        teacher: SplitBert | None,
        recovery: nn.Linear | None,
    ) -> None:
        self.network, self.data, self.settings = network, data, settings
        self.teacher, self.recovery = teacher, recovery

    def __call__(self, examples: list[SpanExample]) -> dict[str, Tensor]:
        """Named, weighted parts of the loss on a batch of examples."""
        batch, settings = collate(self.data, examples).to(device_of(self.network)), self.settings
        student = JointStates()
        start, end, mask, state, _restored = run_network(self.network, batch, student)
        parts = {"span": losses.span_nll(start, end, mask, batch.spans)}
        if self.teacher is not None and (settings.state_weight or settings.answer_weight):
            seen = JointStates()
            with torch.no_grad():
                t_start, t_end, _, _, _ = run_network(self.teacher, batch, seen)
            if settings.answer_weight:
                parts["answer"] = (
                    losses.answer_divergence(start, t_start, mask)
                    + losses.answer_divergence(end, t_end, mask)
                ) * (settings.answer_weight / 2)
            if settings.state_weight:
                parts["state"] = self._state_loss(student, seen, batch) * settings.state_weight
        if self.recovery is not None:
            # The projection must see the bits alone, so that they are what keeps the information.
            bits = straight_through_sign(state)
            parts["recovery"] = settings.recovery_weight * losses.recovery_loss(
                state, self.recovery(bits), batch.passage_mask
            )
        return parts

    def _state_loss(self, student: JointStates, teacher: JointStates, batch: SpanBatch) -> Tensor:
        length, depth = batch.query_ids.shape[1], len(student.hidden)
        mask = batch.passage_mask[batch.passage_of]
        depth = min(depth, len(teacher.hidden))
        tokens = losses.query_aware_tokens(
            teacher.probabilities[-depth:], batch.query_mask, mask, self.settings.distil_share
        )
        return losses.state_distance(
            [h[:, length:] for h in student.hidden[-depth:]],
            [h[:, length:] for h in teacher.hidden[-depth:]],
            tokens,
        )


@torch.no_grad()
def evaluate_dev(network: SplitBert, dev: DevSet) -> dict[str, float]:
    """F1 and EM in percent of the best span on held-out questions; ``score`` is what to keep by.

    ``score`` weighs squad and nq F1 equally: they are the two evaluations that matter.
    """
    network.eval()
    figures: dict[str, float] = {}
    for name, questions in dev.questions.items():
        em: list[float] = []
        f1: list[float] = []
        rows = sorted(questions[:DEV_QUESTIONS], key=lambda row: len(row.text))
        for i in range(0, len(rows), 32):
            chunk = rows[i : i + 32]
            batch = collate(dev.data, [row.example for row in chunk]).to(device_of(network))
            outputs = run_network(network, batch)
            start, end, mask = (x.cpu() for x in outputs[:3])
            for j, row in enumerate(chunk):
                allowed = torch.zeros_like(mask[j : j + 1])
                allowed[:, 1 + row.text_start : 1 + row.text_start + len(row.offsets)] = True
                one = slice(j, j + 1)
                scores = span_scores(start[one], end[one], allowed, LONGEST_ANSWER)
                _, first, last = top_spans(scores, top=1)
                a, b = int(first[0, 0]) - 1 - row.text_start, int(last[0, 0]) - 1 - row.text_start
                answer = row.text[row.offsets[a][0] : row.offsets[b][1]]
                em.append(exact_match(answer, row.answers))
                f1.append(f1_score(answer, row.answers))
        figures[f"{name}_em"] = round(100 * float(np.mean(em)), 2)
        figures[f"{name}_f1"] = round(100 * float(np.mean(f1)), 2)
    network.train()
    figures["score"] = round(sum(figures[f"{name}_f1"] for name in dev.questions) / 2, 3)
    return figures


def start_reader(base: str, query_budget: int) -> SplitBert:
    """Step 1 starts from a pretrained BERT, with a new span head."""
    model = BertForQuestionAnswering.from_pretrained(resolve(base))
    return SplitBert(model, 0, query_budget)


def start_decomposed(plain: SplitBert, lower: int, joint: int) -> SplitBert:
    """Step 2 starts from the plain reader.

    With ``n`` its layers, the joint part is its last ``joint`` layers and the lower part the
    ``n - joint`` before them (the paper's split), cut or followed by layers that start close to
    the identity so that ``lower`` is reached. Depth below the cut is free at query time.
    """
    layers = bert_layers(plain.model)
    below = layers[: len(layers) - joint][:lower]
    chosen = [*below, *[below[-1]] * (lower - len(below)), *layers[-joint:]]
    config = copy.deepcopy(plain.model.config)
    config.num_hidden_layers = lower + joint
    model = BertForQuestionAnswering(config)
    model.bert.embeddings.load_state_dict(plain.model.bert.embeddings.state_dict())
    model.qa_outputs.load_state_dict(plain.model.qa_outputs.state_dict())
    for mine, theirs in zip(bert_layers(model), chosen, strict=True):
        mine.load_state_dict(theirs.state_dict())
    for extra in bert_layers(model)[len(below) : lower]:
        make_near_identity(extra, below[-1].output.LayerNorm)
    return SplitBert(model, lower, plain.query_budget)


@torch.no_grad()
def make_near_identity(layer: BertLayer, norm: nn.LayerNorm) -> None:
    """Let a post-norm layer pass on what the layer before it, with this last norm, gives it.

    Attention and feed-forward add nothing at first. The norms then see ``gamma z + beta`` with
    ``z`` of variance 1 and give it back its own mean and spread over the dimensions.
    """
    for branch in (layer.attention.output, layer.output):
        nn.init.zeros_(branch.dense.weight)
        nn.init.zeros_(branch.dense.bias)
        spread = norm.weight.square().mean() + norm.bias.var(unbiased=False)
        branch.LayerNorm.weight.fill_(float(spread.sqrt()))
        branch.LayerNorm.bias.fill_(float(norm.bias.mean()))


@torch.no_grad()
def start_binarized(decomposed: SplitBert, data: SpanData) -> SplitBert:
    """Step 3 starts from step 2, the binarizer from the least-squares fit on a sample of states."""
    network = copy.deepcopy(decomposed)
    network.binarizer = PostNormBinarizer(network.model.config.hidden_size)
    batch = collate(data, data.examples[:: max(1, len(data.examples) // 256)][:256])
    states = network.encode_passage(batch.passage_ids, batch.passage_mask)
    network.binarizer.calibrate(states[batch.passage_mask])
    return network


def train_stage(
    settings: StepSettings,
    *,
    data_folders: Sequence[Path],
    output: Path,
    base: str,
    start: Path | None = None,
    plain: Path | None = None,
    decomposed: Path | None = None,
) -> dict[str, float]:
    """Run one step and write its best checkpoint to ``output/checkpoint``.

    Returns:
        The best dev figures.
    """
    torch.manual_seed(settings.seed)
    query_budget = BertReaderConfig.query_budget
    tokenizer = load_tokenizer(Path(resolve(base)))
    data = load_train(data_folders, tokenizer, settings, query_budget)
    dev = load_dev(data_folders, tokenizer, settings, query_budget)
    print(f"{len(data.examples)} examples, {len(data.passages)} passages", flush=True)
    teacher = recovery = None
    if settings.stage == "reader":
        network = load_network(start)[0] if start else start_reader(base, query_budget)
    elif plain is None:
        raise UsageError(f"step {settings.stage} needs the plain reader", todo="give --plain")
    elif settings.stage == "decompose":
        teacher = load_network(plain)[0]
        network = start_decomposed(teacher, settings.lower, settings.joint)
    elif decomposed is None:
        raise UsageError("step binarize starts from step decompose", todo="give --decomposed")
    else:
        network = start_binarized(load_network(decomposed)[0], data)
        teacher = load_network(plain)[0]
        if settings.recovery_weight:
            width = network.model.config.hidden_size
            recovery = nn.Linear(width, width)
            nn.init.eye_(recovery.weight)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device).bfloat16().train().requires_grad_(True)
    network.model.bert.embeddings.word_embeddings.requires_grad_(False)
    use_pooled_dropout(network, make_pool(settings.dropout, settings.seed, torch.bfloat16, device))
    if teacher is not None:
        teacher.to(device).bfloat16().eval().requires_grad_(False)
    named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    if recovery is not None:
        recovery.to(device).bfloat16()
        named += [(f"recovery.{n}", p) for n, p in recovery.named_parameters()]
    # A packaged base is there wherever btr is; a folder of the user's may move.
    config = BertReaderConfig.fitting(
        network.model.config,
        MODE_OF[settings.stage],
        network.split_layer,
        word_embeddings=base if base in PACKAGED else "",
    )
    loop_settings = LoopSettings(settings.epochs, settings.lr, seed=settings.seed)
    output.mkdir(parents=True, exist_ok=True)
    (output / "settings.json").write_text(json.dumps(asdict(settings), indent=2) + "\n")

    def make_optimizer(total: int) -> MasterAdamW:
        return MasterAdamW(
            named,
            lr=loop_settings.lr,
            weight_decay=loop_settings.weight_decay,
            warmup=loop_settings.warmup,
            total=total,
        )

    def keep() -> None:
        # The masters, not their 16-bit shadows: half of the precision would be lost otherwise.
        exact = copy.deepcopy(network).cpu().float()
        exact.load_state_dict(
            {**exact.state_dict(), **{n: m.cpu() for n, m in loop.optimizer.masters.items()
                                      if not n.startswith("recovery.")}}
        )  # fmt: skip
        save_checkpoint(output / "checkpoint", exact, tokenizer, config)

    loop = Loop(
        loop_settings,
        plan=lambda epoch: epoch_batches(
            data,
            seed=settings.seed,
            epoch=epoch,
            token_budget=settings.token_budget,
            negative_share=settings.negative_share,
        ),
        loss=StageLoss(network, data, settings, teacher, recovery),
        make_optimizer=make_optimizer,
        evaluate=partial(evaluate_dev, network, dev),
        keep=keep,
        folder=output,
    )
    return loop.run()


def main() -> None:
    """Command line of one training step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--stage", required=True, choices=["reader", "decompose", "binarize"])
    parser.add_argument("--data", type=Path, nargs="+", required=True,
                        help="folders with the training files")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--base", default="minilm-encoder")
    parser.add_argument("--start", type=Path, help="checkpoint to begin step 1 with, for --base")
    parser.add_argument("--plain", type=Path, help="checkpoint of step 1 (start and teacher)")
    parser.add_argument("--decomposed", type=Path, help="checkpoint of step 2")
    defaults = StepSettings()
    for name, value in asdict(defaults).items():
        if name != "stage":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    settings = replace(defaults, **{k: given[k] for k in asdict(defaults)})
    best = train_stage(
        settings,
        data_folders=given["data"],
        output=given["output"],
        base=given["base"],
        start=given["start"],
        plain=given["plain"],
        decomposed=given["decomposed"],
    )
    print(json.dumps(best))


if __name__ == "__main__":
    main()
