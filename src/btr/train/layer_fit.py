"""A T5 encoder that sees what a BERT reader sees, worked out layer by layer by least squares.

A BERT norms behind its residual and learns positions; a T5 norms before, knows distances alone, and
has no biases. Copied weights therefore give other states, and training has to find everything anew.
Here each matrix of the T5 is solved for in turn: from what it gets, the T5's own states so far, to
what the BERT's matrix gives for the same token. What the layers before got wrong is part of that,
and made up for as far as it goes.

A decoder that copies has to know which token stands where, and which one before; the last states of
a BERT say little of either. So every layer has four heads more than the BERT's, one that looks at
the token before and three that look at the token itself and pass on what the layers before have
found: the directions in which states differ least hold the codes of both tokens
(:mod:`btr.train.token_codes`).

``d`` width, ``H`` heads, ``T`` tokens of a pair as the BERT sees it, ``S`` as the T5 does,
``w`` width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5ForConditionalGeneration
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.t5.modeling_t5 import (
    T5Attention,
    T5Block,
    T5DenseActDense,
    T5LayerFF,
    T5LayerNorm,
)

from btr.readers import bert_layers
from btr.readers.bert_network import SplitBert
from btr.readers.t5_layers import rms_norm, self_attention
from btr.train import fid_pass
from btr.train.aligned_pairs import AlignedPair, counterparts, pad_pairs
from btr.train.least_squares import RIDGE, LeastSquares, as_linear
from btr.train.t5_from_bert import FURTHER_HEADS, LOOKED_AT, kept_neurons
from btr.train.token_codes import TokenCodes

BATCH = 25
"""Pairs computed together."""

ATTENTION = 12.0
"""What a further head adds to the logit of the token that it looks at: among 300 others, 0.998 of
the attention."""

LOUDNESS = 0.4
"""Length of the codes, against how far states are from their mean."""


@dataclass(eq=False)
class _Pairs:
    """A batch in the midst of both networks.

    Attributes:
        mask: ``[B, S]`` bool, real tokens of the T5.
        place: ``[B, S]`` int64, each one's counterpart in the BERT's sequence.
        bucket: ``[S, S]`` int64, of T5's distances.
        theirs: ``[B, T, d]`` the BERT's states.
        attend: The BERT's attention.
        hidden: ``[B, S, d]`` the T5's residual stream.
        ideal: ``[B, S, d]`` what that should be: the BERT's states before their norm, by the linear
            map that the layers before have come to.
        short: ``[B, S, w]`` codes of the tokens.
        told: ``[B, S, 3 w]`` what states are to say: the short code of the token before, 0 where
            there is none, and the token's long one.
    """

    mask: Tensor
    place: Tensor
    bucket: Tensor
    theirs: Tensor
    attend: bert_layers.PaddedAttention
    hidden: Tensor
    ideal: Tensor
    short: Tensor
    told: Tensor

    @property
    def pairs(self) -> Tensor:
        """``[B, S, S]`` bool, pairs of real tokens."""
        return self.mask[:, :, None] & self.mask[:, None]

    @property
    def distances(self) -> Tensor:
        """int64 ``[n]``, the bucket of each of :attr:`pairs`."""
        return self.bucket.expand(len(self.mask), -1, -1)[self.pairs]

    def at(self, states: Tensor) -> Tensor:
        """States of the BERT's ``[B, T, ...]`` for the T5's real tokens ``[n, ...]``."""
        rows = torch.arange(len(states))[:, None]
        return states[rows, self.place][self.mask]

    def put(self, states: Tensor) -> Tensor:
        """The inverse of a choice of real tokens: ``[n, d]`` to ``[B, S, d]``, 0 elsewhere."""
        whole = states.new_zeros(*self.mask.shape, states.shape[-1])
        whole[self.mask] = states
        return whole


@torch.no_grad()
def fit_encoder(
    model: T5ForConditionalGeneration,
    teacher: SplitBert,
    pairs: Sequence[AlignedPair],
    query_budget: int,
    codes: TokenCodes,
    note: Callable[[str], None] = lambda _: None,
) -> list[nn.Linear]:
    """Make a T5's encoder see what an extractive reader sees.

    A T5 has one bias a head for the distance of two tokens, in all its layers. So each layer of the
    BERT is first fitted with biases of its own, then its heads are put into an order in which
    those of one number want similar ones in all layers, and all is fitted again with their mean,
    and with codes in the directions that the first fit has left quiet.

    Args:
        model: With layers and width of the teacher, its word embeddings and the further heads
            in each layer; its encoder is overwritten, but for the embeddings.
        teacher: The reader, not split.
        pairs: What to look at: some hundred, of all lengths.
        query_budget: Where the T5's passages begin.
        codes: Of the vocabulary's tokens.
        note: Called with a line a layer.

    Returns:
        For every layer the map from the T5's states, normed, to the reader's: ``[d]`` to ``[d]``.
    """
    blocks = [block for block in model.encoder.block if isinstance(block, T5Block)]
    ordered = sorted(pairs, key=lambda pair: len(pair.t5.passage))
    batches = [ordered[first : first + BATCH] for first in range(0, len(ordered), BATCH)]
    owner = self_attention(blocks[0]).SelfAttention
    for block in blocks:
        self_attention(block).layer_norm.weight.fill_(1)
        cast("T5LayerFF", block.layer[-1]).layer_norm.weight.fill_(1)
    model.encoder.final_layer_norm.weight.fill_(1)

    as_it_is = [torch.arange(teacher.heads)] * len(blocks)
    few = [_begin(model, teacher, batch, query_budget, codes) for batch in batches[::3]]
    first = _fit_layers(model, teacher, few, as_it_is, None, note)
    often = _occurrences(few, owner.relative_attention_num_buckets)
    orders, shared = shared_biases(torch.stack(first.biases), often)
    owner.relative_attention_bias.weight.copy_(_with_further_heads(shared).T)
    every = [_begin(model, teacher, batch, query_budget, codes) for batch in batches]
    given = _Given(shared, first.quietest(every[0].told.shape[-1]))
    return _fit_layers(model, teacher, every, orders, given, note).views


def shared_biases(wanted: Tensor, often: Tensor) -> tuple[list[Tensor], Tensor]:
    """One bias a head for all layers.

    Args:
        wanted: ``[L, H, buckets]`` what each layer's heads would have.
        often: ``[buckets]`` how often each distance occurs.

    Returns:
        For every layer ``[H]`` which of its heads comes where; ``[H, buckets]`` the biases.
    """
    share = often.sqrt() / often.sqrt().sum()
    wanted = wanted - (wanted * share).sum(-1, keepdim=True)
    orders = [torch.arange(wanted.shape[1]) for _ in wanted]
    # From the layer with the largest ones; the mean then moves to all.
    shared = wanted[int((wanted.square() * share).sum((1, 2)).argmax())]
    for _ in range(10):
        for layer, mine in enumerate(wanted):
            cost = ((shared[:, None] - mine[None]).square() * share).sum(-1)
            orders[layer] = _assigned(cost)
        shared = torch.stack([w[o] for w, o in zip(wanted, orders, strict=True)]).mean(0)
    return orders, shared


def _assigned(cost: Tensor) -> Tensor:
    """Which column each row gets, so that no exchange of two makes the sum of costs smaller."""
    chosen = list(range(len(cost)))
    table = cost.tolist()
    better = True
    while better:
        better = False
        for i in range(len(chosen)):
            for j in range(i):
                a, b = chosen[i], chosen[j]
                if table[i][b] + table[j][a] < table[i][a] + table[j][b] - 1e-9:
                    chosen[i], chosen[j], better = b, a, True
    return torch.tensor(chosen)


def _begin(
    model: T5ForConditionalGeneration,
    teacher: SplitBert,
    pairs: Sequence[AlignedPair],
    query_budget: int,
    codes: TokenCodes,
) -> _Pairs:
    """A batch before the first layer of both."""
    batch = pad_pairs(pairs, torch.device("cpu"))
    theirs, mine = batch.bert, batch.t5
    ids = torch.cat([mine.query_ids, mine.passage_ids], 1)
    mask = torch.cat([mine.query_mask, mine.passage_mask], 1)
    place = torch.zeros_like(ids)
    for row, pair in enumerate(pairs):
        place[row, mask[row]] = torch.from_numpy(counterparts(pair, theirs.query_ids.shape[1]))
    at = torch.cat([torch.arange(mine.query_ids.shape[1]),
                    query_budget + torch.arange(mine.passage_ids.shape[1])])  # fmt: skip
    owner = self_attention(cast("T5Block", model.encoder.block[0])).SelfAttention
    bucket = T5Attention._relative_position_bucket(  # type: ignore[no-untyped-call]
        at[None, :] - at[:, None], num_buckets=owner.relative_attention_num_buckets,
        max_distance=owner.relative_attention_max_distance,
    )  # fmt: skip
    query = teacher.encode_query(theirs.query_ids, theirs.query_mask)
    passage = teacher.encode_passage(theirs.passage_ids, theirs.passage_mask)
    states = torch.cat([query, passage], 1)
    seen = torch.cat([theirs.query_mask, theirs.passage_mask], 1)
    hidden: Tensor = model.shared(ids)
    attend = bert_layers.PaddedAttention(seen, teacher.heads, states.dtype)
    short = codes.short[ids]
    behind = mask[:, :-1] & (bucket.diagonal(-1) == LOOKED_AT[0])
    before = functional.pad(short[:, :-1] * behind[..., None], (0, 0, 1, 0))
    told = torch.cat([before, codes.long[ids]], -1)
    return _Pairs(mask, place, bucket, states, attend, hidden, hidden, short, told)


@dataclass(frozen=True, slots=True)
class _Given:
    """What a second fit takes from a first one.

    Attributes:
        bias: ``[H, buckets]`` for all layers.
        quiet: ``[d, 3 w]`` directions that are to hold what states say of tokens.
    """

    bias: Tensor
    quiet: Tensor


@dataclass
class _Found:
    """What a fit ends with.

    Attributes:
        biases: ``[H, buckets]`` that each layer was fitted with.
        views: The map of each layer's states to the teacher's.
        spread: ``[d, d]`` the covariance of ideal streams as shares of its trace, summed over
            layers; of a first fit.
    """

    biases: list[Tensor]
    views: list[nn.Linear]
    spread: Tensor

    def quietest(self, count: int) -> Tensor:
        """The directions in which streams differ least, ``[d, count]``."""
        directions: Tensor = torch.linalg.eigh(self.spread).eigenvectors[:, :count]
        return directions.float()


def _fit_layers(
    model: T5ForConditionalGeneration,
    teacher: SplitBert,
    batches: Sequence[_Pairs],
    orders: Sequence[Tensor],
    given: _Given | None,
    note: Callable[[str], None],
) -> _Found:
    """Fit all layers; if nothing is given, each with a bias of its own, and no codes."""
    found = _Found([], [], torch.zeros((), dtype=torch.float64))
    norm = model.encoder.final_layer_norm
    blocks = [block for block in model.encoder.block if isinstance(block, T5Block)]
    layers = [layer for layer in teacher.joint if isinstance(layer, BertLayer)]
    bias, quiet = (None, None) if given is None else (given.bias, given.quiet)
    for number, (block, layer, order) in enumerate(zip(blocks, layers, orders, strict=True)):
        found.biases.append(_fit_attention(block, layer, batches, order, bias, quiet))
        _fit_feed_forward(block, layer, batches, quiet)
        if given is None:
            streams = _ideals(batches).double()
            streams -= streams.mean(0)
            found.spread = found.spread + streams.T @ streams / streams.square().sum()
        view = _fit_view(norm, batches)
        found.views.append(view)
        off, size = 0.0, 0.0
        for batch in batches:
            target = batch.at(batch.theirs)
            off += float((view(_normed(norm, batch)) - target).square().sum())
            size += float(target.square().sum())
        note(f"layer {number + 1}: relative squared error {off / size:.3f}")
    return found


def _fit_attention(
    block: T5Block,
    layer: BertLayer,
    batches: Sequence[_Pairs],
    order: Tensor,
    shared: Tensor | None,
    quiet: Tensor | None,
) -> Tensor:
    """Fit a layer's attention; the bias ``[H, buckets]`` that it was fitted with."""
    norm, heads = self_attention(block).layer_norm, self_attention(block).SelfAttention
    part = layer.attention
    width = heads.key_value_proj_dim
    columns = (order[:, None] * width + torch.arange(width)).flatten()
    scale = 1 / math.sqrt(width)  # T5 does not divide its logits
    fit = LeastSquares()
    for batch in batches:
        x = batch.theirs
        wanted = (scale * part.self.query(x), part.self.key(x), part.self.value(x))
        theirs = [batch.at(states)[:, columns] for states in wanted]
        further = torch.cat([batch.short, batch.told], -1)[batch.mask]
        more = (torch.zeros_like(further), torch.zeros_like(further), further)
        given = _normed(norm, batch)
        fit.add(given, torch.cat([x for both in zip(theirs, more, strict=True) for x in both], 1))
    found = fit.solve().T.chunk(3)
    for linear, weight in zip((heads.q, heads.k, heads.v), found, strict=True):
        linear.weight.copy_(weight)

    used = _own_bias(block, layer, batches) if shared is None else shared
    biases = _with_further_heads(used).T.contiguous()
    contexts, added = [], []
    for batch in batches:
        normed = batch.put(_normed(norm, batch))
        between = functional.embedding(batch.bucket, biases).permute(2, 0, 1)
        attend = fid_pass.PaddedAttention(between, batch.mask, written_out=True)
        contexts.append(attend(heads.q(normed), heads.k(normed), heads.v(normed))[batch.mask])
        x = batch.theirs
        context = batch.attend(part.self.query(x), part.self.key(x), part.self.value(x))
        added.append(part.output.dense(context))
        batch.attend.probabilities = None
    _move_ideal(batches, added)
    heads.o.weight.copy_(_reach_ideal(batches, contexts, RIDGE, quiet, tell=True).T)
    for batch, more in zip(batches, added, strict=True):
        batch.theirs = part.output.LayerNorm(batch.theirs + more)
    return used


def _with_further_heads(bias: Tensor) -> Tensor:
    """Biases ``[H, buckets]`` with those of the further heads."""
    further = bias.new_zeros(FURTHER_HEADS, bias.shape[1])
    further[torch.arange(FURTHER_HEADS), LOOKED_AT] = ATTENTION
    return torch.cat([bias, further])


def _own_bias(block: T5Block, layer: BertLayer, batches: Sequence[_Pairs]) -> Tensor:
    """What the BERT's logits have more, by head (in its own order) and distance."""
    norm, heads = self_attention(block).layer_norm, self_attention(block).SelfAttention
    part, count = layer.attention, layer.attention.self.num_attention_heads
    scale = 1 / math.sqrt(heads.key_value_proj_dim)
    sums = torch.zeros(count, heads.relative_attention_num_buckets)
    for batch in batches:
        normed = batch.put(_normed(norm, batch))
        mine = _logits(heads.q(normed), heads.k(normed), heads.n_heads)[:, :count]
        theirs = _logits(scale * part.self.query(batch.theirs), part.self.key(batch.theirs), count)
        rows = torch.arange(len(mine))[:, None, None]
        theirs = theirs.permute(0, 2, 3, 1)[rows, batch.place[:, :, None], batch.place[:, None]]
        missing = theirs - mine.permute(0, 2, 3, 1)
        # What a token looks at does not change with what is added to all its logits.
        mean = (missing * batch.pairs[..., None]).sum(2, keepdim=True)
        missing = missing - mean / batch.pairs.sum(2)[..., None, None].clamp(min=1)
        sums.index_add_(1, batch.distances, missing[batch.pairs].T)
    return sums / _occurrences(batches, sums.shape[1]).clamp(min=1)


def _occurrences(batches: Sequence[_Pairs], buckets: int) -> Tensor:
    """How often each distance of two tokens occurs, ``[buckets]``."""
    counts = [torch.bincount(batch.distances, minlength=buckets) for batch in batches]
    return torch.stack(counts).sum(0).float()


def _fit_feed_forward(
    block: T5Block, layer: BertLayer, batches: Sequence[_Pairs], quiet: Tensor | None
) -> None:
    feed = cast("T5LayerFF", block.layer[-1])
    norm, dense = feed.layer_norm, cast("T5DenseActDense", feed.DenseReluDense)
    kept = kept_neurons(layer, dense.wi.out_features)
    fit = LeastSquares()
    for batch in batches:
        fit.add(_normed(norm, batch), batch.at(layer.intermediate.dense(batch.theirs))[:, kept])
    dense.wi.weight.copy_(fit.solve().T)
    inner = [dense.act(dense.wi(_normed(norm, batch))) for batch in batches]
    added = [layer.output.dense(layer.intermediate(batch.theirs)) for batch in batches]
    _move_ideal(batches, added)
    dense.wo.weight.copy_(_reach_ideal(batches, inner, RIDGE / 10, quiet, tell=False).T)
    for batch, more in zip(batches, added, strict=True):
        batch.theirs = layer.output.LayerNorm(batch.theirs + more)


def _move_ideal(batches: Sequence[_Pairs], added: Sequence[Tensor]) -> None:
    """What the T5's stream should be once a part of a layer is through.

    Args:
        batches: Their ideal streams move on.
        added: ``[B, T, d]`` what the BERT adds to its states, of every batch.
    """
    stream = LeastSquares()
    for batch in batches:
        stream.add(_affine(batch.at(batch.theirs)), batch.ideal[batch.mask])
    into = stream.solve(RIDGE / 10)
    for batch, theirs in zip(batches, added, strict=True):
        batch.ideal = batch.put(_affine(batch.at(batch.theirs + theirs)) @ into)


def _reach_ideal(
    batches: Sequence[_Pairs],
    made: Sequence[Tensor],
    ridge: float,
    quiet: Tensor | None,
    *,
    tell: bool,
) -> Tensor:
    """Let the T5's streams take in what a part of a layer has made, to come near the ideal ones.

    Args:
        batches: Their streams move on.
        made: ``[n, a]`` of the T5, of every batch.
        ridge: Of the solution.
        quiet: ``[d, 3 w]`` directions for what states say of tokens.
        tell: The part can say it. One that can't leaves what the directions hold.

    Returns:
        ``[a, d]`` the map of what was made into the stream.
    """
    fit, length = LeastSquares(), 0.0
    if quiet is not None and tell:
        streams = _ideals(batches)
        length = LOUDNESS * float((streams - streams.mean(0)).norm(dim=1).mean())
    for batch, mine in zip(batches, made, strict=True):
        wanted = batch.ideal
        if quiet is not None:
            told = length * batch.told if tell else batch.hidden @ quiet
            wanted = wanted + (told - wanted @ quiet) @ quiet.T
        fit.add(mine, (wanted - batch.hidden)[batch.mask])
    found = fit.solve(ridge)
    for batch, mine in zip(batches, made, strict=True):
        batch.hidden = batch.hidden + batch.put(mine @ found)
    return found


def _ideals(batches: Sequence[_Pairs]) -> Tensor:
    """Ideal streams of all real tokens, ``[n, d]``."""
    return torch.cat([batch.ideal[batch.mask] for batch in batches])


def _fit_view(norm: T5LayerNorm, batches: Sequence[_Pairs]) -> nn.Linear:
    fit = LeastSquares()
    for batch in batches:
        fit.add(_affine(_normed(norm, batch)), batch.at(batch.theirs))
    found = fit.solve(RIDGE / 10)
    return as_linear(found[:-1], found[-1])


def _normed(norm: T5LayerNorm, batch: _Pairs) -> Tensor:
    """Real tokens of the stream behind a norm, ``[n, d]``."""
    return rms_norm(norm, batch.hidden[batch.mask])


def _affine(states: Tensor) -> Tensor:
    return torch.cat([states, torch.ones_like(states[..., :1])], -1)


def _logits(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    q, k = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (queries, keys))
    logits: Tensor = q @ k.transpose(2, 3)
    return logits
