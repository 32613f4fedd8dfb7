"""The three training steps of a Fusion-in-Decoder reader (method, section 4).

``U`` passages of a batch, ``P`` padded tokens of one, ``d`` width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase
from transformers.models.t5.modeling_t5 import T5Attention

from btr.binarize import WordResidual
from btr.data.questions import Question, asked
from btr.errors import UsageError
from btr.evaluate.metrics import exact_match, f1_score
from btr.readers.batches import by_length
from btr.readers.joint_states import JointStates
from btr.readers.t5 import T5Reader
from btr.readers.t5_checkpoint import T5ReaderConfig, load_network, save_checkpoint
from btr.readers.t5_decoder import special_token
from btr.readers.t5_layers import rms_norm, self_attention
from btr.readers.t5_network import SplitT5
from btr.readers.t5_text import FidText
from btr.train import losses
from btr.train.batches import first_origins
from btr.train.fid_examples import (
    IGNORED,
    FidBatch,
    FidDataBuilder,
    FidDataSettings,
    Ids,
    collate,
    epoch_batches,
    load_fid_data,
)
from btr.train.fid_pass import TrainingPass
from btr.train.rules import Bits, TanhRule, naive_rule
from btr.train.sources import Rejects
from btr.train.stage import (
    MODE_OF,
    STARTS_FROM,
    Places,
    StageLoss,
    StageSettings,
    begin_stage,
    run_stage,
)
from btr.train.stored import WHOLE, StoredStates
from btr.train.word_fit import check_vocabulary, fit_words

FITTED = 400
"""Passages that a binarizer is fitted to: 50,000 tokens for the 2 d + 1 unknowns of a dimension."""

DEV_QUESTIONS = 200
"""Most dev questions of a file that are answered at every look."""


class FidLoss(StageLoss):
    """The loss of one stage over a batch of examples.

    Args:
        network: Is trained.
        collate: Examples to a batch.
        settings: Weights of the losses.
        config: The reader's configuration.
        teacher: The plain reader.
        rule: Makes the bits in place of the network's own binarizer, for ablations.
        recompute: Gradient checkpointing.
    """

    network: SplitT5

    def __init__(
        self,
        network: SplitT5,
        collate: Callable[[list[Any]], FidBatch],
        settings: StageSettings,
        config: T5ReaderConfig,
        *,
        teacher: SplitT5 | None = None,
        rule: nn.Module | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__(network, settings, teacher, network.model.config.d_model)
        if network.words is not None:
            self.recovery = None  # its own map is the projection
        self.collate, self.rule = collate, rule
        self.run = TrainingPass(
            network, config.query_budget, scale=config.scale, rule=rule, recompute=recompute
        )
        self.teach = TrainingPass(teacher, config.query_budget) if teacher is not None else None

    def at(self, progress: float) -> None:
        """Tell an annealed rule how far training is."""
        if isinstance(self.rule, TanhRule):
            self.rule.progress = progress

    def forward(self, examples: list[Any]) -> dict[str, Tensor]:
        """Named, weighted parts of the loss."""
        device = self.network.model.shared.weight.device
        settings, batch = self.settings, self.collate(examples).to(device)
        # With no layer above the cut there are no joint states to compare.
        split = self.network.split_layer < len(self.network.blocks)
        wants_states = self.teach is not None and bool(settings.state_weight) and split
        student = JointStates() if wants_states else None
        made = self.run(batch, student)
        parts: dict[str, Tensor] = {}
        if settings.task_weight:
            labels = batch.labels[batch.labels != IGNORED]
            task = functional.cross_entropy(made.logits, labels)
            parts["task"] = task * settings.task_weight
        if self.teach is not None and settings.distils:
            seen = JointStates() if wants_states else None
            with torch.no_grad():
                wanted = self.teach(replace(batch, stored=None), seen)
            if settings.answer_weight:
                divergence = losses.answer_divergence(made.logits, wanted.logits)
                parts["answer"] = divergence * settings.answer_weight
            if student is not None and seen is not None:
                distance = losses.query_aware_distillation(
                    student, seen, batch.query_mask[batch.question_of], batch.passage_mask,
                    settings.distil_share, relative=True,
                )  # fmt: skip
                parts["state"] = distance * settings.state_weight
        if settings.recovery_weight and made.bits is not None:
            recovered = self._recovery_loss(made.state, made.bits, batch.passage_mask)
            parts["recovery"] = recovered * settings.recovery_weight
        return parts

    def _recovery_loss(self, state: Tensor, bits: Bits, mask: Tensor) -> Tensor:
        if self.recovery is not None:
            # The projection must see the bits alone, so that they are what keeps the information.
            return losses.recovery_loss(state, self.recovery(bits.signs), mask, relative=True)
        wanted = rms_norm(self.network.next_norm, state)
        restored = bits.residual if bits.normed is None else bits.normed
        return losses.recovery_loss(wanted, restored, mask, relative=True)


@torch.no_grad()
def evaluate_dev(
    network: SplitT5,
    tokenizer: PreTrainedTokenizerBase,
    config: T5ReaderConfig,
    dev: Mapping[str, Sequence[Question]],
    settings: FidDataSettings,
    stored: StoredStates | None = None,
) -> dict[str, float]:
    """EM and F1 in percent on held-out questions, read as users will read, from stored states."""
    network.eval()
    reader = T5Reader(network, tokenizer, config, "dev")

    def answer(question: Question) -> str:
        passages = question.contexts[: settings.passages]
        states = None if stored is None else stored.of(passages)
        reading = reader.read(asked(question), passages, states)
        return reading.answers[0].text if reading.answers else ""

    figures = _score(answer, dev, settings)
    network.train()
    return figures


def evaluate_rule(
    loss: FidLoss,
    text: FidText,
    config: T5ReaderConfig,
    dev: Mapping[str, Sequence[Question]],
    settings: FidDataSettings,
) -> dict[str, float]:
    """The same of a network whose rule no reader has, by the pass that trains it."""
    loss.eval()
    device = loss.network.model.shared.weight.device

    def answer(question: Question) -> str:
        builder = FidDataBuilder(text, config)
        builder.add(replace(question, contexts=question.contexts[: settings.passages]))
        batch = collate(builder.data, builder.data.examples).to(device)
        return text.decode(loss.run.generate(batch, config.answer_budget)[0])

    figures = _score(answer, dev, settings)
    loss.train()
    return figures


def _score(
    answer: Callable[[Question], str],
    dev: Mapping[str, Sequence[Question]],
    settings: FidDataSettings,
) -> dict[str, float]:
    """EM and F1 in percent by file, and the score."""
    figures: dict[str, float] = {}
    f1s: dict[str, list[float]] = {}
    for name, questions in dev.items():
        pairs = [(answer(q), q.answers) for q in questions[:DEV_QUESTIONS]]
        f1s[name] = [f1_score(text, right) for text, right in pairs]
        em = 100 * float(np.mean([exact_match(text, right) for text, right in pairs]))
        f1 = 100 * float(np.mean(f1s[name]))
        figures |= {f"{name}_em": round(em, 2), f"{name}_f1": round(f1, 2)}
    return figures | {"score": settings.score(f1s)}


def start_split(
    plain: SplitT5, split_layer: int, *, binarized: bool, words: WordResidual | None = None
) -> SplitT5:
    """A copy of a reader's weights, split at another layer, to be trained.

    Attention's own dropout is left out: its masks are many times as large as the hidden states'.
    """
    model = copy.deepcopy(plain.model)
    model.set_attn_implementation("eager")
    for module in model.modules():
        if isinstance(module, T5Attention):
            module.dropout = 0.0
    network = SplitT5(model, split_layer, binarized=binarized, words=copy.deepcopy(words))
    return network.requires_grad_(True)


@torch.no_grad()
def some_states(network: SplitT5, passages: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Word embeddings of passages' tokens, and what is binarized of them: ``[N, d]`` each.

    Of so many passages, spread evenly.
    """
    chosen = passages[:: -(-len(passages) // FITTED)]
    embeddings, states = [], []
    for batch in by_length([len(ids) for ids in chosen]):
        ids = torch.cat([torch.as_tensor(chosen[i], dtype=torch.long) for i in batch])
        hidden = network.run_lower(ids, [len(chosen[i]) for i in batch])
        embeddings.append(network.model.shared(ids))
        states.append(rms_norm(network.next_norm, hidden))
    return torch.cat(embeddings), torch.cat(states)


def freeze_stored(network: SplitT5) -> None:
    """Keep as they are all weights that stored states depend on, and how questions are read below.

    They are the embeddings, the lower layers with the relative position bias, the norm that the
    binarizer stands behind, and what words make it expect.
    """
    model = network.model
    bias = self_attention(network.blocks[0]).SelfAttention.relative_attention_bias
    parts: list[nn.Module] = [model.shared, bias]
    if network.words is not None:
        parts.append(network.words.mean)
    for part in (*parts, *network.blocks[: network.split_layer], network.next_norm):
        part.requires_grad_(False)


def train_fid(
    settings: StageSettings,
    data_settings: FidDataSettings,
    places: Places,
    *,
    layout: tuple[int, int] | None = None,
    config: T5ReaderConfig | None = None,
    store: Path | None = None,
    recompute: bool = False,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Run one step and write its best checkpoint.

    Args:
        settings: The step.
        data_settings: What it learns from.
        places: Where it starts from and where it writes.
        layout: Encoder layers below the cut and joint ones, for step 2 (paper: 9 + 3, 20 + 4).
        config: Budgets and templates of a new reader, for step 1.
        store: Where ``adapt`` finds states of passages; the others' are made first.
        recompute: Gradient checkpointing.
        accelerator: Devices, processes and trackers.

    Returns:
        The best dev figures.

    Raises:
        UsageError: The checkpoints given are not those that the step needs, or a budget is too
            small for the template.
        InputError: The data is bad or empty.
    """
    accelerator = begin_stage(settings, places, accelerator)
    stage = settings.stage
    network, tokenizer, found = load_network(places.start)
    config = _config_of(settings, found, config, layout, network, places.start)
    binarized = config.mode == "btr"
    words = network.words
    if config.rule == "words" and words is None:
        words = WordResidual(network.model.config.d_model)
    start_words = words is not network.words
    network = start_split(network, config.split_layer, binarized=binarized, words=words)
    teacher = None
    if places.plain is not None:
        teacher, _, taught = load_network(places.plain)
        if (taught.mode, taught.query_budget, taught.positions) != (
            "plain", config.query_budget, "budget",
        ):  # fmt: skip
            raise UsageError("the teacher does not fit", where=str(places.plain),
                             expected=f"a plain reader with query budget {config.query_budget}",
                             found=f"{taught.mode}, {taught.query_budget}, {taught.positions}",
                             todo="give the checkpoint of step 1")  # fmt: skip
        teacher = start_split(teacher, 0, binarized=False)
    end_token = special_token(network.model, "eos_token_id")
    text = FidText(tokenizer, config.query_template, config.passage_template, end_token)
    text.check_query_budget(config.query_budget, str(places.start))
    rejects = Rejects()
    # Those that every user has anyway are neither trained nor saved again.
    network.model.shared.requires_grad_(not config.word_embeddings)
    builder, dev = load_fid_data(data_settings, text, config, rejects)
    data = builder.data
    if start_words and network.words is not None:
        fit_words(network.words, *some_states(network, data.passages))
    dev_states = None
    if stage == "adapt":
        freeze_stored(network)
        reader = T5Reader(network.eval(), tokenizer, config, str(places.start))
        data.stored = StoredStates(reader, builder.passages, store, whole=WHOLE)
        looked_at = dict.fromkeys(
            passage
            for questions in dev.values()
            for question in questions[:DEV_QUESTIONS]
            for passage in question.contexts[: data_settings.passages]
        )
        dev_states = StoredStates(reader, list(looked_at), store)
    if accelerator.is_main_process:
        print(f"{len(data.examples)} questions, {len(data.passages)} passages; {rejects}",
              flush=True)  # fmt: skip

    def save(folder: Path, exact: SplitT5) -> None:
        # An ablation's network is not kept: there is no reader for it.
        if rule is None:
            save_checkpoint(folder, exact, tokenizer, config)

    rule = naive_rule(settings.rule, network.model.config.d_model) if binarized else None
    loss = FidLoss(
        network, partial(collate, data), settings, config, teacher=teacher, rule=rule,
        recompute=recompute,
    )  # fmt: skip
    look = partial(evaluate_dev, network, tokenizer, config, dev, data_settings, dev_states)
    if rule is not None:
        look = partial(evaluate_rule, loss, text, config, dev, data_settings)
    return run_stage(
        loss,
        settings=settings,
        plan=lambda epoch: epoch_batches(
            data, seed=settings.loop.seed, epoch=epoch, token_budget=settings.token_budget
        ),
        evaluate=look,
        save=save,
        places=places,
        recorded={"data": asdict(data_settings), "reader": asdict(config), "store": store},
        accelerator=accelerator,
        files=data_settings.files,
        describe=partial(first_origins, data.origins),
    )


def _config_of(
    settings: StageSettings,
    found: T5ReaderConfig,
    given: T5ReaderConfig | None,
    layout: tuple[int, int] | None,
    network: SplitT5,
    start: Path,
) -> T5ReaderConfig:
    """The configuration of the checkpoint that a step makes."""
    stage = settings.stage
    wanted = STARTS_FROM[stage]
    # A reader that was pretrained in the mode it is to have goes on in it.
    if found.mode not in (wanted, MODE_OF[stage]):
        raise UsageError(f"step {stage} starts from a {wanted} checkpoint", where=str(start),
                         found=found.mode)  # fmt: skip
    if stage == "reader":
        # A model that was no reader before takes the settings given; positions must leave room
        # for any question, or its passages' states could never be stored.
        return replace(
            given or found, mode="plain", split_layer=0, positions="budget",
            calibration=None, word_embeddings=found.word_embeddings,
        )  # fmt: skip
    if stage == "binarize" and settings.rule == "words":
        check_vocabulary(len(network.model.shared.weight))
        found = replace(found, rule="words")
    if stage in ("binarize", "adapt") or found.mode == MODE_OF[stage]:
        return replace(found, mode=MODE_OF[stage], calibration=None)
    layers = len(network.blocks)
    if layout is None or sum(layout) != layers:
        split = max(1, layers * 3 // 4)
        raise UsageError("step decompose needs a layout of all encoder layers",
                         expected=f"LOWER+JOINT that sum to {layers}",
                         found="+".join(map(str, layout or ())),
                         todo=f"give --layout {split}+{layers - split}")  # fmt: skip
    return replace(found, mode=MODE_OF["decompose"], split_layer=layout[0], calibration=None)
