"""What a BERT reader sees in a question and a passage, taught to the encoder of a T5.

The encoder begins as least squares make it (:mod:`btr.train.layer_fit`). After this its last states
tell where answers begin and end, and which token stands where, and the decoder begins by copying
from them (:mod:`btr.train.copying`).

Run as ``python -m btr.train.reader_distillation --help``.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

from btr.data.questions import asked
from btr.errors import one_line_errors
from btr.models import resolve
from btr.readers.bert_checkpoint import load_network as load_bert
from btr.readers.bert_network import SplitBert
from btr.readers.bert_text import load_tokenizer
from btr.readers.checkpoint import quiet_transformers
from btr.readers.joint_states import JointStates
from btr.readers.t5_checkpoint import T5ReaderConfig, save_checkpoint
from btr.readers.t5_decoder import special_token
from btr.readers.t5_layers import rms_norm
from btr.readers.t5_network import SplitT5
from btr.readers.t5_text import FidText
from btr.train.aligned_pairs import (
    AlignedPair,
    PaddedView,
    PairTokenizer,
    pad_pairs,
    pair_batches,
)
from btr.train.copying import Seen, begin_with_copying
from btr.train.fid_examples import FidBatch
from btr.train.fid_pass import TrainingPass
from btr.train.layer_fit import fit_encoder
from btr.train.least_squares import as_linear, nearest_map
from btr.train.loop import LoopSettings
from btr.train.sources import DataSettings, Rejects, answering, parse_source, read_sources
from btr.train.stage import Places, StageLoss, StageSettings, run_stage
from btr.train.t5_from_bert import t5_from_bert
from btr.train.token_codes import TokenCodes, token_codes

DEV_PAIRS = 300
FITTED = 1000
"""Pairs that the encoder's first weights are worked out from, and the decoder's: 145,000 tokens."""


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error over the mean square of what is wanted."""
    return functional.mse_loss(found, wanted) / wanted.square().mean()


def dev_figures(loss: nn.Module, plan: Sequence[Any]) -> dict[str, float]:
    """The parts of a loss, the mean over batches; ``score`` is the negative of their sum."""
    sums: dict[str, float] = {}
    with torch.no_grad():
        for batch in plan:
            for name, value in loss(batch).items():
                sums[name] = sums.get(name, 0.0) + float(value) / len(plan)
    return {**sums, "score": -sum(sums.values())}


def as_batch(view: PaddedView) -> FidBatch:
    """Pairs as a batch of questions with a passage each, without answers."""
    numbers = torch.arange(len(view.query_ids), device=view.query_ids.device)
    return FidBatch(view.query_ids, view.query_mask, view.passage_ids, view.passage_mask,
                    numbers, numbers[:, None], view.query_ids[:, :0])  # fmt: skip


def read(teacher: SplitBert, view: PaddedView, record: JointStates | None = None) -> Tensor:
    """The extractive reader's logits of pairs, ``[B, Q + P, 2]``."""
    query = teacher.encode_query(view.query_ids, view.query_mask)
    passage = teacher.encode_passage(view.passage_ids, view.passage_mask)
    return teacher.read(query, view.query_mask, passage, view.passage_mask, record)


class ReaderDistillation(StageLoss):
    """Distance of a T5's encoder to an extractive reader, over the tokens that both see.

    Named parts: ``layers``, the relative squared error of a linear view of the states, the mean
    over layers; ``last``, that of the last layer; ``span``, KL to where the reader says that the
    answer begins and ends, by its own head on that view; ``token``, how far (by cosine) a linear
    view of what the decoder looks at is from the token's embedding; ``before``, the same for the
    code of the token before.

    Args:
        network: The T5, not split.
        teacher: The extractive reader, not split.
        settings: Of the run.
        query_budget: Where passages begin.
        views: What the linear views of the layers' states are at first.
        seen: What the first views of the last states are worked out from.
        codes: Of tokens.
    """

    network: SplitT5

    def __init__(
        self,
        network: SplitT5,
        teacher: SplitBert,
        settings: StageSettings,
        query_budget: int,
        views: Sequence[nn.Linear],
        seen: Seen,
        codes: TokenCodes,
    ) -> None:
        width = int(network.model.config.d_model)
        super().__init__(network, settings, teacher, width)
        self.run = TrainingPass(network, query_budget)
        self.views = nn.ModuleList(views)
        self.token = as_linear(nearest_map(seen.states, _named(network, seen.tokens)))
        self.before = as_linear(nearest_map(seen.states, codes.short[seen.before]))
        self.register_buffer("codes", codes.short, persistent=False)

    def forward(self, chosen: list[AlignedPair]) -> dict[str, Tensor]:
        """The parts."""
        network, teacher = self.network, self._teacher[0]
        assert isinstance(teacher, SplitBert)  # noqa: S101 -- for the type checker
        device = network.model.shared.weight.device
        batch = pad_pairs(chosen, device)
        student, seen = JointStates(), JointStates()
        encoded, *_ = self.run.encode(as_batch(batch.t5), student)
        with torch.no_grad():
            logits = read(teacher, batch.bert, seen)
        norm, errors = network.model.encoder.final_layer_norm, []
        view = encoded[:0, 0]
        for linear, hidden, wanted in zip(self.views, student.hidden, seen.hidden, strict=True):
            view = linear(rms_norm(norm, hidden[batch.of, batch.t5_place])).float()
            errors.append(relative_error(view, wanted[batch.of, batch.bert_place].float()))
        texts = batch.texts
        of, places = batch.of[texts], (batch.of[texts], batch.place)
        head = teacher.model.qa_outputs
        told = functional.linear(view[texts], head.weight.float(), head.bias.float())
        shape = (len(chosen), max(pair.text for pair in chosen))
        lowest = torch.full(shape, -1e4, device=device)
        span = sum(
            functional.kl_div(
                lowest.index_put(places, told[:, i]).log_softmax(1),
                lowest.index_put(places, logits[of, batch.bert_place[texts], i]).log_softmax(1),
                log_target=True, reduction="batchmean",
            )
            for i in range(2)
        )  # fmt: skip
        looked_at = encoded[of, batch.t5_place[texts]]
        said, behind = self.token(looked_at).float(), self.before(looked_at).float()
        named = _named(network, batch.tokens).float()
        coded = self.get_buffer("codes")[batch.before]
        return {
            "layers": torch.stack(errors).mean(),
            "last": 0.5 * errors[-1],
            "span": 0.25 * cast("Tensor", span),
            "token": 0.3 * (1 - functional.cosine_similarity(said, named, dim=-1).mean()),
            "before": 0.3 * (1 - functional.cosine_similarity(behind, coded, dim=-1).mean()),
        }


def _named(network: SplitT5, tokens: Tensor) -> Tensor:
    """What states are to say, of tokens ``[n]``: ``[n, d]``."""
    embeddings = network.model.shared.weight.detach()
    return embeddings[tokens] - embeddings.mean(0)


def read_pairs(
    settings: DataSettings, tokenizer: PairTokenizer, rejects: Rejects
) -> tuple[list[AlignedPair], list[AlignedPair]]:
    """Pairs to train on, and a few held out: each question with its first passage that answers it.

    Raises:
        InputError: A line is bad, or nothing is left.
    """
    train: list[AlignedPair] = []
    dev: list[AlignedPair] = []
    for _, question, is_dev in read_sources(settings, rejects):
        if not question.contexts or (is_dev and len(dev) == DEV_PAIRS):
            continue
        passage = next(answering(question), question.contexts[0])
        (dev if is_dev else train).append(tokenizer.pair(asked(question), passage))
    return train, dev


@torch.no_grad()
def what_is_seen(
    network: SplitT5, teacher: SplitBert, pairs: Sequence[AlignedPair], query_budget: int
) -> Seen:
    """What a decoder would look at of the pairs' texts, and where answers begin in them."""
    states, tokens, before, starts = [], [], [], []
    run, cpu = TrainingPass(network, query_budget), torch.device("cpu")
    for first in range(0, len(pairs), 32):
        batch = pad_pairs(pairs[first : first + 32], cpu)
        of = batch.of[batch.texts]
        encoded, *_ = run.encode(as_batch(batch.t5))
        states.append(encoded[of, batch.t5_place[batch.texts]])
        tokens.append(batch.tokens)
        before.append(batch.before)
        starts.append(read(teacher, batch.bert)[of, batch.bert_place[batch.texts], 0])
    return Seen(*(torch.cat(parts) for parts in (states, tokens, before, starts)))


@one_line_errors
def main() -> int:
    """Distil an extractive reader into a T5's encoder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", help="FILE or FILE=SHARE of questions with passages")
    parser.add_argument("-o", "--reader", type=Path, required=True, help="folder to make")
    parser.add_argument("--teacher", type=Path, required=True, help="the extractive reader")
    parser.add_argument("--base", default="minilm-encoder", help="the BERT that it was made from")
    parser.add_argument("--decoder-layers", type=int, default=2)
    parser.add_argument("--inner", type=int, default=1216, help="width of feed-forward layers")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="0 for whole epochs")
    parser.add_argument("--lr", type=float, default=1e-3, help="relative to a matrix's size")
    parser.add_argument("--token-budget", type=int, default=6000)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--query-budget", type=int, default=48)
    parser.add_argument("--passage-budget", type=int, default=208)
    parser.add_argument("--answer-budget", type=int, default=24)
    given = parser.parse_args()
    torch.manual_seed(1)
    config = T5ReaderConfig(
        word_embeddings=given.base, query_budget=given.query_budget,
        passage_budget=given.passage_budget, answer_budget=given.answer_budget,
    )  # fmt: skip
    folder = Path(resolve(given.base))
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token = tokenizer.sep_token
    teacher, _, taught = load_bert(given.teacher)
    with quiet_transformers():
        raw = BertModel.from_pretrained(folder, add_pooling_layer=False)
    model = t5_from_bert(raw, decoder_layers=given.decoder_layers, inner=given.inner,
                         end_token=tokenizer.sep_token_id)  # fmt: skip
    network = SplitT5(model, 0)
    network.requires_grad_(True)
    network.model.shared.requires_grad_(False)
    network.model.decoder.requires_grad_(False)
    text = FidText(tokenizer, config.query_template, config.passage_template,
                   special_token(network.model, "eos_token_id"))  # fmt: skip
    text.check_query_budget(config.query_budget, given.base)
    sources = tuple(parse_source(source) for source in given.data)
    rejects = Rejects()
    pairs = PairTokenizer(tokenizer, text, config, taught.query_budget)
    train, dev = read_pairs(DataSettings(sources), pairs, rejects)
    print(f"{len(train)} pairs; {rejects}", flush=True)
    rates = LoopSettings(given.epochs, given.lr, given.steps, relative=True)
    settings = StageSettings(
        "reader", rates, given.token_budget, dropout=0.0, precision=given.precision
    )
    some = train[:: -(-len(train) // FITTED)]
    texts = np.concatenate([pair.t5.passage for pair in some])
    start = special_token(model, "decoder_start_token_id")
    codes = token_codes(model.shared.weight, torch.from_numpy(texts), start, model.config.d_kv)
    views = fit_encoder(model, teacher, some, config.query_budget, codes, print)
    seen = what_is_seen(network, teacher, some, config.query_budget)
    loss = ReaderDistillation(network, teacher, settings, config.query_budget, views, seen, codes)
    plan = partial(pair_batches, seed=1, token_budget=given.token_budget)

    def save(to: Path, exact: nn.Module) -> None:
        assert isinstance(exact, SplitT5)  # noqa: S101 -- for the type checker
        seen = what_is_seen(exact, copy.deepcopy(teacher).cpu().float(), some, config.query_budget)
        begin_with_copying(exact.model, seen, codes.short)
        save_checkpoint(to, exact, tokenizer, config)

    run_stage(
        loss,
        settings=settings,
        plan=lambda epoch: plan(train, epoch=epoch),
        evaluate=lambda: dev_figures(loss, plan(dev, epoch=0)),
        save=save,
        places=Places(given.teacher, given.reader / "plain", given.reader / "training" / "distil"),
        recorded={"data": given.data, "teacher": str(given.teacher)},
        accelerator=Accelerator(),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
