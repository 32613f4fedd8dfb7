"""Pretraining a T5 for 1-bit passages from the ground up (method, section 8.3).

Span corruption on any text, with the split and the binarizer in the network from the start. A
window of text is corrupted whole; its first tokens, as many as a question may have, are read as the
query and the rest as the passage, so that both are completed from each other. With no layer below
the cut this is T5's own pretraining, which is what to compare with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from btr.data.ledger import Ledger
from btr.data.passages import Passage
from btr.data.sources import read_passages
from btr.errors import InputError, UsageError
from btr.readers.base import Mode
from btr.readers.t5_checkpoint import T5ReaderConfig, load_network, save_checkpoint
from btr.readers.t5_decoder import special_token
from btr.readers.t5_network import SplitT5
from btr.train.batches import length_batches
from btr.train.corruption import Ids, corrupt
from btr.train.fid import FidLoss, start_split
from btr.train.fid_examples import FidBatch, FidData, FidExample, collate
from btr.train.sources import held_out
from btr.train.stage import Places, StageSettings, begin_stage, run_stage

SHORTEST = 16
"""Tokens that a window must have; shorter ends of documents are left out."""

DEV_WINDOWS = 256
"""Most held-out windows that are looked at."""


@dataclass(frozen=True)
class Window:
    """A window of text in one epoch, which decides how it is corrupted."""

    number: int
    epoch: int


def text_windows(
    passages: Iterable[Passage], tokenizer: PreTrainedTokenizerBase, longest: int, dev_share: float
) -> tuple[list[Ids], list[Ids]]:
    """Texts to windows of at most ``longest`` tokens: those to train on, and the held-out ones.

    Passages that follow each other in one document, or under one title, are joined. A document is
    held out as a whole.
    """
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    train: list[Ids] = []
    dev: list[Ids] = []
    for (document, title), group in groupby(passages, key=_document):
        texts = [passage.text for passage in group]
        encoded = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        ids = np.concatenate([np.asarray(e.ids, np.int32) for e in encoded])
        held = held_out(title or document or texts[0], dev_share)
        windows = dev if held else train
        windows += [
            ids[first : first + longest]
            for first in range(0, len(ids), longest)
            if len(ids) - first >= SHORTEST
        ]
    return train, dev


def _document(passage: Passage) -> tuple[str, str]:
    # Lines of a file are documents of their own unless they share a title.
    return ("" if passage.title else passage.document), passage.title


def sentinels_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens to mark spans with: T5's ``<extra_id_0>`` ..., or a BERT vocabulary's unused ones.

    Raises:
        UsageError: The vocabulary has neither.
    """
    vocabulary = tokenizer.get_vocab()
    for form in ("<extra_id_{}>", "[unused{}]"):
        found = [vocabulary[name] for i in range(100) if (name := form.format(i)) in vocabulary]
        if found:
            return found
    raise UsageError("the vocabulary has no tokens to mark spans with",
                     expected="<extra_id_0> or [unused0]")  # fmt: skip


class WindowBatches:
    """Windows to batches, corrupted anew in every epoch.

    Args:
        windows: Token ids.
        seed: With window and epoch, all of the randomness.
        query_budget: Tokens that are read as the query.
        sentinels: Mark spans.
        end_token: Closes passages and targets.
    """

    def __init__(
        self,
        windows: Sequence[Ids],
        *,
        seed: int,
        query_budget: int,
        sentinels: Sequence[int],
        end_token: int,
    ) -> None:
        self.windows, self.seed, self.query_budget = windows, seed, query_budget
        self.sentinels, self.end_token = sentinels, end_token

    def collate(self, chosen: Sequence[Window]) -> FidBatch:
        """Corrupt windows and pad them."""
        data = FidData()
        for i, window in enumerate(chosen):
            random = np.random.default_rng([self.seed, window.epoch, window.number])
            ids = self.windows[window.number]
            source, target = corrupt(ids, random, self.sentinels, self.end_token)
            data.questions.append(source[: self.query_budget])
            end = np.array([self.end_token], np.int32)
            data.passages.append(np.concatenate([source[self.query_budget :], end]))
            data.answers.append(target)
            data.examples.append(FidExample(i, (i,), (i,)))
        return collate(data, data.examples)

    def epoch(self, number: int, token_budget: int) -> list[list[Window]]:
        """The batches of an epoch; windows of similar length share one."""
        random = np.random.default_rng([self.seed, number])
        lengths = [len(w) for w in self.windows]

        def cost(chosen: Sequence[Window]) -> int:
            return len(chosen) * max(lengths[w.number] for w in chosen)

        groups = [[Window(i, number)] for i in range(len(lengths))]
        return length_batches(groups, lengths, random, cost=cost, token_budget=token_budget)


def pretrain(
    settings: StageSettings,
    sources: Sequence[Path],
    places: Places,
    *,
    mode: Mode,
    layout: tuple[int, int] | None = None,
    config: T5ReaderConfig | None = None,
    scratch: bool = False,
    dev_share: float = 0.01,
    recompute: bool = False,
    accelerator: Accelerator | None = None,
) -> dict[str, float]:
    """Pretrain a network in the mode that its readers are to have.

    Args:
        settings: Length, rates, precision; of the losses only the task's counts.
        sources: Files and folders, as ``btr index`` takes them.
        places: Where it starts from and writes.
        mode: "plain" for T5's own pretraining.
        layout: Encoder layers below the cut and joint ones, of the other modes.
        config: Budgets; windows have as many tokens as a question and a passage together.
        scratch: Take the start's shape and tokenizer and draw new weights.
        dev_share: Of the documents that are held out.
        recompute: Gradient checkpointing.
        accelerator: Devices, processes and trackers.

    Returns:
        The best dev figures: ``nll`` a target token, and ``score``, its negative.

    Raises:
        InputError: There is too little text.
        UsageError: The vocabulary has no sentinels, or the split does not fit.
    """
    accelerator = begin_stage(settings, places, accelerator)
    network, tokenizer, found = load_network(places.start)
    config = _config(config or found, mode, layout, len(network.blocks))
    config = replace(config, word_embeddings="" if scratch else found.word_embeddings)
    if scratch:
        network = SplitT5(T5ForConditionalGeneration(network.model.config), 0)
    network = start_split(network, config.split_layer, binarized=mode == "btr")
    network.model.shared.requires_grad_(not config.word_embeddings)
    longest = config.query_budget + config.passage_budget - 1
    with Ledger() as ledger:
        passages = read_passages(sources, ledger=ledger)
        train, dev = text_windows(passages, tokenizer, longest, dev_share)
    ledger.check()
    if not train or not dev:
        raise InputError("too little text to pretrain on", expected="windows to train on and some "
                         "held out", found=f"{len(train)} and {len(dev)}",
                         todo="give more documents, or raise --dev-share")  # fmt: skip
    if accelerator.is_main_process:
        tokens = sum(map(len, train))
        print(f"{len(train)} windows, {tokens} tokens; {len(dev)} held out", flush=True)
    batches, looked_at = (
        WindowBatches(
            windows, seed=settings.loop.seed, query_budget=config.query_budget,
            sentinels=sentinels_of(tokenizer),
            end_token=special_token(network.model, "eos_token_id"),
        )
        for windows in (train, dev[:DEV_WINDOWS])
    )  # fmt: skip

    recorded = {
        "sources": sources, "text sha256": _digest([*train, *dev]), "scratch": scratch,
        "reader": asdict(config),
    }  # fmt: skip
    loss = FidLoss(network, batches.collate, settings, config, recompute=recompute)
    return run_stage(
        loss,
        settings=settings,
        plan=lambda epoch: batches.epoch(epoch, settings.token_budget),
        evaluate=partial(_evaluate, loss, looked_at, settings.token_budget),
        save=lambda folder, exact: save_checkpoint(folder, exact, tokenizer, config),
        places=places,
        recorded=recorded,
        accelerator=accelerator,
    )


def _config(
    given: T5ReaderConfig, mode: Mode, layout: tuple[int, int] | None, layers: int
) -> T5ReaderConfig:
    """The configuration of the checkpoint that pretraining makes."""
    if mode == "plain" and layout is not None:
        raise UsageError("a plain network has no layout", todo="leave --layout out, or name a mode")
    if mode != "plain" and (layout is None or sum(layout) != layers):
        raise UsageError("pretraining needs a layout of all encoder layers",
                         expected=f"LOWER+JOINT that sum to {layers}",
                         found="+".join(map(str, layout or ())), todo="give --layout",
                         )  # fmt: skip
    lower = layout[0] if layout else 0
    return replace(given, mode=mode, split_layer=lower, positions="budget", calibration=None)


def _digest(windows: Sequence[Ids]) -> str:
    """Of what is learned from: who goes on with other text would not give what one run gives."""
    digest = hashlib.sha256()
    for window in windows:
        digest.update(len(window).to_bytes(8, "little"))
        digest.update(np.asarray(window, "<i4").tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _evaluate(loss: FidLoss, dev: WindowBatches, token_budget: int) -> dict[str, float]:
    """Negative log-likelihood of a held-out target token."""
    loss.eval()
    total = count = 0.0
    for chosen in dev.epoch(0, token_budget):
        labels = sum(len(dev.windows[w.number]) for w in chosen)
        total += float(loss(chosen)["task"]) * labels
        count += labels
    loss.train()
    return {"nll": round(total / count, 4), "score": -round(total / count, 4)}
