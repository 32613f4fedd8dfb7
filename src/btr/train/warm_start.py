"""A T5 from a BERT: weights copied, then the encoder distilled from the BERT's own states.

No pretrained T5 comes as a package, but a BERT does. Its layers become a T5's: the tokenizer and
word embeddings as they are, attention and feed-forward matrices copied into encoder and decoder.
What a T5 lacks (biases, norms behind the residual, learned positions) makes the copy a rough one,
so the encoder is then trained to give, layer by layer, the states that the BERT gives.

Run as ``python -m btr.train.warm_start --help``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel, T5Config, T5ForConditionalGeneration
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.t5.modeling_t5 import T5Block, T5DenseActDense, T5LayerFF

from btr.data.ledger import Ledger
from btr.data.sources import read_passages
from btr.models import resolve
from btr.readers.bert_text import load_tokenizer
from btr.readers.checkpoint import quiet_transformers
from btr.readers.t5_checkpoint import T5ReaderConfig, save_checkpoint
from btr.readers.t5_layers import cross_attention, encoder_layer, rms_norm, self_attention
from btr.readers.t5_network import SplitT5
from btr.train.corruption import Ids
from btr.train.fid_pass import PaddedAttention
from btr.train.loop import LoopSettings
from btr.train.pretrain import Window, WindowBatches, text_windows
from btr.train.span_examples import pad
from btr.train.stage import Places, StageLoss, StageSettings, run_stage


def t5_from_bert(
    bert: BertModel, *, decoder_layers: int, inner: int, end_token: int
) -> T5ForConditionalGeneration:
    """A T5 with a BERT's matrices.

    Args:
        bert: The BERT.
        decoder_layers: Layers of the decoder; they begin as the BERT's last ones, each layer's
            attention as both of a decoder layer's.
        inner: Width of the feed-forward layers: the neurons with the largest weights are kept.
        end_token: Closes texts and answers: ``[SEP]``.
    """
    shape = bert.config
    described: dict[str, Any] = {
        "vocab_size": shape.vocab_size, "d_model": shape.hidden_size,
        "d_kv": shape.hidden_size // shape.num_attention_heads, "d_ff": inner,
        "num_layers": shape.num_hidden_layers, "num_decoder_layers": decoder_layers,
        "num_heads": shape.num_attention_heads, "feed_forward_proj": "gelu",
        "tie_word_embeddings": True, "dropout_rate": 0.0, "pad_token_id": 0,
        "decoder_start_token_id": 0, "eos_token_id": end_token,
    }  # fmt: skip
    model = T5ForConditionalGeneration(T5Config(**described))
    layers = [layer for layer in bert.encoder.layer if isinstance(layer, BertLayer)]
    encoder, decoder = (
        [block for block in stack.block if isinstance(block, T5Block)]
        for stack in (model.encoder, model.decoder)
    )
    with torch.no_grad():
        model.shared.weight.copy_(bert.embeddings.word_embeddings.weight)
        norm: Tensor = bert.embeddings.LayerNorm.weight
        for block, layer in zip(encoder, layers, strict=True):
            norm = _copy_layer(block, layer, norm)
        model.encoder.final_layer_norm.weight.copy_(norm)
        for block, layer in zip(decoder, layers[-decoder_layers:], strict=True):
            _copy_layer(block, layer, layer.attention.output.LayerNorm.weight)
        # Logits are a state times the embeddings over the root of their width: with a BERT's, which
        # are short, none would stand out. This gives them the spread that a T5's begin with.
        length = float(model.shared.weight.norm(dim=1).mean())
        model.decoder.final_layer_norm.weight.fill_(math.sqrt(shape.hidden_size) / length)
    return model


def _copy_layer(block: T5Block, layer: BertLayer, norm: Tensor) -> Tensor:
    """Fill a block; ``norm`` is the weight of the norm before it, the result that behind it."""
    attention, inner, outer = layer.attention, layer.intermediate.dense, layer.output.dense
    own = [(self_attention(block).SelfAttention, self_attention(block).layer_norm)]
    if block.is_decoder:
        own.append((cross_attention(block).EncDecAttention, cross_attention(block).layer_norm))
    for heads, before in own:
        # T5 does not divide its logits by the root of a head's width.
        heads.q.weight.copy_(attention.self.query.weight / math.sqrt(heads.key_value_proj_dim))
        heads.k.weight.copy_(attention.self.key.weight)
        heads.v.weight.copy_(attention.self.value.weight)
        heads.o.weight.copy_(attention.output.dense.weight)
        before.weight.copy_(norm)
    feed = cast("T5LayerFF", block.layer[-1])
    dense = cast("T5DenseActDense", feed.DenseReluDense)
    kept = kept_neurons(layer, dense.wi.out_features)
    dense.wi.weight.copy_(inner.weight[kept])
    dense.wo.weight.copy_(outer.weight[:, kept])
    feed.layer_norm.weight.copy_(attention.output.LayerNorm.weight)
    after: Tensor = layer.output.LayerNorm.weight
    return after


def kept_neurons(layer: BertLayer, count: int) -> Tensor:
    """Which neurons of a layer's feed-forward part a narrower one has: those of largest weights."""
    size = layer.intermediate.dense.weight.norm(dim=1) * layer.output.dense.weight.norm(dim=0)
    largest: Tensor = size.topk(count).indices
    return largest.sort().values


def linear_views(layers: int, width: int) -> nn.ModuleList:
    """A linear map for every layer's states, the identity at first.

    A BERT's states have a mean that a T5's norm cannot make: its bias is in the view.
    """
    views = nn.ModuleList()
    for _ in range(layers):
        view = nn.Linear(width, width)
        nn.init.eye_(view.weight)
        nn.init.zeros_(view.bias)
        views.append(view)
    return views


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


class StateDistillation(StageLoss):
    """Squared error between a BERT's states and a linear view of a T5's, layer by layer.

    Args:
        network: The T5.
        bert: The teacher.
        windows: Token ids of texts.
        settings: Of the run.
        open_token: ``[CLS]``, which begins what the BERT reads.
        end_token: ``[SEP]``, which ends it.
    """

    network: SplitT5

    def __init__(
        self,
        network: SplitT5,
        bert: BertModel,
        windows: Sequence[Ids],
        settings: StageSettings,
        open_token: int,
        end_token: int,
    ) -> None:
        width = int(network.model.config.d_model)
        super().__init__(network, settings, bert, width)
        self.windows, self.marks = windows, (open_token, end_token)
        self.views = linear_views(len(network.blocks), width)

    def forward(self, chosen: list[Window]) -> dict[str, Tensor]:
        """The mean relative error over layers."""
        network, (bert,) = self.network, self._teacher
        assert bert is not None  # noqa: S101 -- for the type checker
        device = network.model.shared.weight.device
        rows = [self.windows[w.number] for w in chosen]
        ids, mask = (x.to(device) for x in pad(rows))
        with torch.no_grad():
            wanted = _bert_states(bert, ids, mask, self.marks)
        hidden: Tensor = network.model.shared(ids)
        at = torch.arange(ids.shape[1], device=device)
        bias = network.relative_bias().between(at, at)
        attend = PaddedAttention(bias, mask, written_out=device.type == "cpu")
        errors = []
        norm = network.model.encoder.final_layer_norm
        for block, view, target in zip(network.blocks, self.views, wanted, strict=True):
            hidden = encoder_layer(block, hidden, attend)
            seen = view(rms_norm(norm, hidden))[mask].float()
            errors.append(relative_error(seen, target[mask].float()))
        # What the decoder will look at is the last state itself, without a view.
        last = rms_norm(norm, hidden)[mask].float()
        target = wanted[-1][mask].float()
        angle = 1 - functional.cosine_similarity(last, target - target.mean(0), dim=-1).mean()
        return {"layers": torch.stack(errors).mean(), "last": angle}


def _bert_states(
    bert: nn.Module, ids: Tensor, mask: Tensor, marks: tuple[int, int]
) -> list[Tensor]:
    """A BERT's states of texts ``[n, T]`` after every layer, each ``[n, T, d]``."""
    first = torch.full_like(ids[:, :1], marks[0])
    whole = torch.cat([first, ids, torch.zeros_like(first)], dim=1)
    lengths = mask.sum(1)
    whole[torch.arange(len(ids)), 1 + lengths] = marks[1]
    reach = torch.arange(whole.shape[1], device=ids.device) < (lengths + 2)[:, None]
    states = bert(whole, attention_mask=reach.long(), output_hidden_states=True).hidden_states
    return [state[:, 1:-1] for state in states[1:]]


def main() -> None:
    """Make a T5 from a packaged BERT and distil its encoder on texts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("texts", type=Path, nargs="+", help="files and folders of text")
    parser.add_argument("-o", "--reader", type=Path, required=True, help="folder to make")
    parser.add_argument("--base", default="minilm-encoder", help="the BERT")
    parser.add_argument("--decoder-layers", type=int, default=2)
    parser.add_argument("--inner", type=int, default=1216, help="width of feed-forward layers")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=0, help="0 for whole epochs")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--token-budget", type=int, default=6000)
    given = parser.parse_args()
    torch.manual_seed(1)
    folder = Path(resolve(given.base))
    tokenizer = load_tokenizer(folder)
    with quiet_transformers():
        bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
    bert.set_attn_implementation("eager")
    model = t5_from_bert(bert, decoder_layers=given.decoder_layers, inner=given.inner,
                         end_token=tokenizer.sep_token_id)  # fmt: skip
    tokenizer.eos_token = tokenizer.sep_token
    network = SplitT5(model, 0)
    network.requires_grad_(True)
    model.shared.requires_grad_(False)
    model.decoder.requires_grad_(False)
    with Ledger() as ledger:
        passages = read_passages(given.texts, ledger=ledger)
        train, dev = text_windows(passages, tokenizer, 254, 0.01)
    settings = StageSettings("reader", LoopSettings(given.epochs, given.lr, given.steps),
                             given.token_budget, dropout=0.0)  # fmt: skip
    loss, look = (
        StateDistillation(network, bert, windows, settings, tokenizer.cls_token_id,
                          tokenizer.sep_token_id)
        for windows in (train, dev[:256])
    )  # fmt: skip
    look.views = loss.views
    batches, looked_at = (
        WindowBatches(windows, seed=1, query_budget=1, sentinels=(), end_token=0)
        for windows in (train, dev[:256])
    )
    config = T5ReaderConfig(word_embeddings=given.base)

    def save(to: Path, exact: nn.Module) -> None:
        assert isinstance(exact, SplitT5)  # noqa: S101 -- for the type checker
        save_checkpoint(to, exact, tokenizer, config)

    run_stage(
        loss,
        settings=settings,
        plan=partial(batches.epoch, token_budget=given.token_budget),
        evaluate=lambda: dev_figures(look, looked_at.epoch(0, given.token_budget)),
        save=save,
        places=Places(folder, given.reader / "plain", given.reader / "training" / "warm-start"),
        recorded={"texts": [str(t) for t in given.texts], "inner": given.inner},
        accelerator=Accelerator(),
    )


if __name__ == "__main__":
    main()
