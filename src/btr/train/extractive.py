"""The three training steps of an extractive reader (method, section 4)."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from btr.binarize import straight_through_sign
from btr.bits import put_levels, unpack_signs
from btr.errors import UsageError
from btr.evaluate.metrics import exact_match, f1_score
from btr.readers.bert import BertReader
from btr.readers.bert_checkpoint import (
    load_config,
    save_checkpoint,
)
from btr.readers.bert_network import SplitBert
from btr.readers.bert_text import load_tokenizer
from btr.readers.joint_states import JointStates
from btr.readers.spans import LONGEST_ANSWER, span_scores, top_spans
from btr.train import losses
from btr.train.batches import first_origins, padded
from btr.train.sources import Rejects
from btr.train.span_examples import SpanBatch, SpanData, SpanExample, collate, epoch_batches
from btr.train.span_sources import DevSet, SpanDataSettings, load_span_data
from btr.train.span_starts import (
    choose_trained,
    load_mode,
    start_binarized,
    start_decomposed,
    start_reader,
    start_teacher,
)
from btr.train.stage import (
    MODE_OF,
    Places,
    StageLoss,
    StageSettings,
    begin_stage,
    run_stage,
)
from btr.train.stored import WHOLE, StoredRows, StoredStates

DEV_QUESTIONS = 800
"""Most dev questions of a file: F1 within 1.7 points, in ten seconds."""


class Outputs(NamedTuple):
    """What a forward pass gives.

    Attributes:
        start: ``[B, 1 + P]`` logits; column 0 is "not answered here".
        end: The same.
        mask: Of what takes part.
        state: ``[U, P, d]`` passage states before the binarizer.
        restored: ``[U, P, d]``, what the joint layers begin with.
    """

    start: Tensor
    end: Tensor
    mask: Tensor
    state: Tensor
    restored: Tensor


def device_of(network: SplitBert) -> torch.device:
    """Where a network's weights are."""
    return network.model.qa_outputs.weight.device


def run_network(network: SplitBert, batch: SpanBatch, record: JointStates | None = None) -> Outputs:
    """Forward pass of a training batch."""
    query = network.encode_query(batch.query_ids, batch.query_mask)
    if batch.stored is not None and network.binarizer is not None:
        width = int(network.model.config.hidden_size)
        state = stored_signs(batch, batch.stored, query.dtype, width)
        restored = network.restore(state, batch.passage_ids)
    else:
        state = network.encode_passage(batch.passage_ids, batch.passage_mask)
        restored = network.binarize(state, batch.passage_ids)
    mask = batch.passage_mask[batch.passage_of]
    logits = network.read(query, batch.query_mask, restored[batch.passage_of], mask, record)
    length = batch.query_ids.shape[1]
    logits = torch.cat([logits[:, :1], logits[:, length:]], dim=1)
    full = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    return Outputs(logits[..., 0], logits[..., 1], full, state, restored)


def run_answers(
    network: SplitBert, batch: SpanBatch, record: JointStates
) -> tuple[Outputs, list[tuple[Tensor, Tensor]]]:
    """Forward pass with the distributions that make an answer: start and end, or the class.

    Returns:
        What :func:`run_network` gives, and of each distribution logits ``[B, S]`` float32 with the
        mask of what takes part.
    """
    outputs = run_network(network, batch, record)
    if network.classifier is None:
        return outputs, [(outputs.start, outputs.mask), (outputs.end, outputs.mask)]
    logits: Tensor = network.classifier(record.hidden[-1][:, 0]).float()
    return outputs, [(logits, torch.ones_like(logits, dtype=torch.bool))]


def stored_signs(batch: SpanBatch, stored: StoredRows, dtype: torch.dtype, width: int) -> Tensor:
    """What is known of the signs of passages' states, ``[U, P, d]``, -1 to 1."""
    mask = batch.passage_mask
    rows = torch.from_numpy(np.ascontiguousarray(stored.rows[:, : width // 8])).to(mask.device)
    packed = unpack_signs(rows, dtype)
    if stored.guesses is not None:
        put_levels(packed, stored.guesses.places, stored.guesses.levels)
    return padded(packed, mask)


class SpanLoss(StageLoss):
    """The loss of one stage over a batch of examples.

    Args:
        network: Is trained.
        data: What examples refer to.
        settings: Weights of the losses.
        teacher: The plain reader.
    """

    network: SplitBert

    def __init__(
        self,
        network: SplitBert,
        data: SpanData,
        settings: StageSettings,
        teacher: SplitBert | None = None,
    ) -> None:
        super().__init__(network, settings, teacher, network.model.config.hidden_size)
        if network.words is not None:
            self.recovery = None  # its own map is the projection
        self.data = data
        self.teach = partial(run_answers, teacher) if teacher is not None else None

    def forward(self, examples: list[SpanExample]) -> dict[str, Tensor]:
        """Named, weighted parts of the loss."""
        batch, settings = collate(self.data, examples).to(device_of(self.network)), self.settings
        student = JointStates()
        made, mine = run_answers(self.network, batch, student)
        parts: dict[str, Tensor] = {}
        if settings.task_weight:
            if self.network.classifier is None:
                task = losses.span_nll(made.start, made.end, made.mask, batch.spans)
            else:
                task = functional.cross_entropy(mine[0][0], batch.labels)
            parts["task"] = task * settings.task_weight
        if self.teach is not None and settings.distils:
            seen = JointStates()
            with torch.no_grad():
                _, theirs = self.teach(replace(batch, stored=None), seen)
            if settings.answer_weight:
                divergences = [
                    losses.answer_divergence(logits, taught, real)
                    for (logits, real), (taught, _) in zip(mine, theirs, strict=True)
                ]
                parts["answer"] = torch.stack(divergences).mean() * settings.answer_weight
            if settings.state_weight:
                distance = losses.query_aware_distillation(
                    student, seen, batch.query_mask, batch.passage_mask[batch.passage_of],
                    settings.distil_share,
                )  # fmt: skip
                parts["state"] = distance * settings.state_weight
        if self.recovery is not None:
            # The projection must see the bits alone, so that they are what keeps the information.
            bits = straight_through_sign(made.state)
            parts["recovery"] = settings.recovery_weight * losses.recovery_loss(
                made.state, self.recovery(bits), batch.passage_mask
            )
        elif settings.stage == "binarize" and settings.recovery_weight:
            recovered = losses.recovery_loss(
                made.state, made.restored, batch.passage_mask, relative=True
            )
            parts["recovery"] = recovered * settings.recovery_weight
        return parts


@torch.no_grad()
def evaluate_dev(network: SplitBert, dev: DevSet, settings: SpanDataSettings) -> dict[str, float]:
    """F1 and EM in percent of the best span on held-out questions; ``score`` is what to keep by.

    In a task of classes both are the share of passages that are told right.
    """
    network.eval()
    figures: dict[str, float] = {}
    f1s: dict[str, list[float]] = {}
    for name, questions in dev.questions.items():
        em: list[float] = []
        f1: list[float] = []
        rows = sorted(questions[:DEV_QUESTIONS], key=lambda row: len(row.text))
        for i in range(0, len(rows), 32):
            chunk = rows[i : i + 32]
            batch = collate(dev.data, [row.example for row in chunk]).to(device_of(network))
            outputs, answers = run_answers(network, batch, JointStates())
            if network.classifier is not None:
                told = answers[0][0].argmax(1)
                right = (told == batch.labels).float().tolist()
                em, f1 = em + right, f1 + right
                continue
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
        f1s[name] = f1
        figures[f"{name}_em"] = round(100 * float(np.mean(em)), 2)
        figures[f"{name}_f1"] = round(100 * float(np.mean(f1)), 2)
    network.train()
    return figures | {"score": settings.score(f1s)}


def train_extractive(
    settings: StageSettings,
    data_settings: SpanDataSettings,
    places: Places,
    *,
    layout: tuple[int, int] | None = None,
    store: Path | None = None,
    word_embeddings: str = "",
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Run one step and write its best checkpoint.

    Args:
        settings: The step.
        data_settings: What it learns from.
        places: Where it starts from and where it writes.
        layout: Layers below the cut and joint layers, for step 2.
        store: Where ``adapt`` finds states of passages; the others' are made first.
        word_embeddings: Name of a packaged model that the start has its word embeddings from. As
            every user has them anyway, they are neither trained nor saved again.
        accelerator: Devices, processes and trackers.

    Returns:
        The best dev figures.

    Raises:
        UsageError: The checkpoints given are not those that the step needs.
        InputError: The data is bad or empty.
    """
    accelerator = begin_stage(settings, places, accelerator)
    stage, folder, plain = settings.stage, places.start, places.plain
    found, tokenizer = load_config(folder), load_tokenizer(folder)
    if found.labels and not data_settings.labels:
        raise UsageError("this reader tells classes", where=str(folder),
                         found=", ".join(found.labels), todo="give --classes")  # fmt: skip
    rejects = Rejects()
    # Stored passages are cut where the reader cuts them, others at most there.
    longest = found.passage_budget
    if stage != "adapt":
        longest = min(longest, data_settings.passage_budget)
    data_settings = replace(data_settings, passage_budget=longest)
    builder, dev = load_span_data(data_settings, tokenizer, found.query_budget, rejects)
    data = builder.data
    if accelerator.is_main_process:
        print(f"{len(data.examples)} examples, {len(data.passages)} passages; {rejects}",
              flush=True)  # fmt: skip
    labels = data_settings.labels
    teacher = None if plain is None else start_teacher(plain, settings, found.query_budget, labels)
    if stage == "reader":
        network = start_reader(folder, found.query_budget)
    elif stage == "decompose":
        if layout is None:
            raise UsageError("step decompose needs a layout", expected="LOWER+JOINT",
                             todo="give --layout, as 4+3")  # fmt: skip
        network = start_decomposed(load_mode(folder, "plain", stage), *layout)
    elif stage == "adapt":
        network = load_mode(folder, "btr", stage)
        reader = BertReader(network, tokenizer, found, folder.name)
        data.stored = StoredStates(reader, builder.passages, store, whole=WHOLE)
        dev.data.stored = StoredStates(reader, dev.passages, store)
    elif found.mode == "btr":
        # Step 3 goes on from what it made.
        network = load_mode(folder, "btr", stage)
        if settings.rule == "words" and network.words is None:
            network = start_binarized(network, data, settings.rule)
    else:
        network = start_binarized(load_mode(folder, "decomposed", stage), data, settings.rule)
    if labels != found.labels:
        network.classifier = nn.Linear(network.model.config.hidden_size, len(labels))
    embeddings = word_embeddings or found.word_embeddings
    choose_trained(network, settings, embeddings=not embeddings)
    config = replace(
        found, mode=MODE_OF[stage], split_layer=network.split_layer, labels=labels,
        rule="calibrated" if network.words is None else "words", word_embeddings=embeddings,
    )  # fmt: skip
    return run_stage(
        SpanLoss(network, data, settings, teacher),
        settings=settings,
        plan=lambda epoch: epoch_batches(
            data,
            seed=settings.loop.seed,
            epoch=epoch,
            token_budget=settings.token_budget,
            negative_share=data_settings.negative_share,
        ),
        evaluate=partial(evaluate_dev, network, dev, data_settings),
        save=lambda to, exact: save_checkpoint(to, exact, tokenizer, config),
        places=places,
        recorded={"data": asdict(data_settings), "reader": asdict(config), "store": store},
        accelerator=accelerator,
        files=data_settings.files,
        describe=partial(first_origins, data.origins),
    )
