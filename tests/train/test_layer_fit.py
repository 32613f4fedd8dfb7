"""A T5's encoder worked out from a BERT reader's states."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from btr.data.passages import Passage
from btr.readers.bert_network import SplitBert, bert_layers
from btr.readers.joint_states import JointStates
from btr.readers.t5_checkpoint import T5ReaderConfig
from btr.readers.t5_layers import rms_norm, self_attention
from btr.readers.t5_network import SplitT5
from btr.readers.t5_text import FidText
from btr.train.aligned_pairs import PairTokenizer, counterparts, pad_pairs
from btr.train.fid_pass import TrainingPass
from btr.train.layer_fit import fit_encoder, shared_biases
from btr.train.least_squares import nearest_map
from btr.train.reader_distillation import as_batch, read
from btr.train.t5_from_bert import t5_from_bert
from btr.train.token_codes import token_codes
from tiny_readers import tiny_model

CONFIG = T5ReaderConfig(query_budget=24, passage_budget=64)


@pytest.fixture
def maker(tokenizer):
    text = FidText(tokenizer, CONFIG.query_template, CONFIG.passage_template, 3)
    return PairTokenizer(tokenizer, text, CONFIG, 24)


def test_tokens_of_the_templates_stand_for_the_marks(tokenizer, maker):
    for title in ("the bridge", ""):
        pair = maker.pair("who was queen", Passage("p", "the king was ada", title))
        batch = pad_pairs([pair], torch.device("cpu"))
        theirs = torch.cat([batch.bert.query_ids, batch.bert.passage_ids], 1)[0]
        mine = torch.cat([batch.t5.query_ids, batch.t5.passage_ids], 1)[0]
        found = theirs[torch.from_numpy(counterparts(pair, batch.bert.query_ids.shape[1]))]
        same = found == mine
        assert int(same.sum()) == pair.asked + pair.title + pair.text + 1  # the end token
        assert {tokenizer.cls_token_id, tokenizer.sep_token_id} == set(found[~same].tolist())
        assert (pair.title > 0) == bool(title)


def test_heads_that_want_the_same_bias_get_one_number():
    torch.manual_seed(0)
    biases, often = torch.randn(5, 8), torch.rand(8) + 0.1
    share = often.sqrt() / often.sqrt().sum()
    biases -= (biases * share).sum(-1, keepdim=True)
    orders = [torch.randperm(5) for _ in range(3)]
    # A constant on all distances changes no attention.
    wanted = torch.stack([biases[order] for order in orders]) + torch.randn(3, 5, 1)
    found, shared = shared_biases(wanted, often)
    for mine, order in zip(wanted, found, strict=True):
        centred = mine - (mine * share).sum(-1, keepdim=True)
        torch.testing.assert_close(centred[order], shared)


def seen_by_both(network, teacher, pairs):
    """States of every layer for the tokens that both have: lists of ``[n, d]``."""
    batch, student, reader = pad_pairs(pairs, torch.device("cpu")), JointStates(), JointStates()
    with torch.no_grad():
        TrainingPass(network, CONFIG.query_budget).encode(as_batch(batch.t5), student)
        read(teacher, batch.bert, reader)
    norm = network.model.encoder.final_layer_norm
    mine = [rms_norm(norm, hidden)[batch.of, batch.t5_place] for hidden in student.hidden]
    return mine, [hidden[batch.of, batch.bert_place] for hidden in reader.hidden]


def test_the_encoder_sees_what_the_reader_sees(tokenizer, maker):
    torch.manual_seed(0)
    model = tiny_model(tokenizer, width=48, heads=12)
    # A random BERT tells positions apart as well as words, and looks at one token alone.
    model.bert.embeddings.position_embeddings.weight.data *= 0.1
    for layer in bert_layers(model):
        layer.attention.self.query.weight.data *= 0.2
    words = "the river rises in snow and ends at a salt lake who was queen built stone bridge"
    draw = [words.split()[i] for i in torch.randint(16, (4600,))]
    pairs = [
        maker.pair(" ".join(draw[i : i + 5]), Passage("p", " ".join(draw[i + 7 : i + 37]), "birds"))
        for i in range(0, 4500, 45)
    ]
    fitted, unseen = pairs[:90], pairs[90:]
    teacher = SplitBert(model, 0, 24).eval()
    network = SplitT5(t5_from_bert(model.bert, decoder_layers=1, inner=64, end_token=3), 0).eval()
    embeddings = network.model.shared.weight.clone()
    lines = []
    words = torch.cat([torch.from_numpy(pair.t5.passage) for pair in fitted])
    codes = token_codes(embeddings, words, 0, network.model.config.d_kv)
    views = fit_encoder(network.model, teacher, fitted, CONFIG.query_budget, codes, lines.append)
    assert torch.equal(network.model.shared.weight, embeddings)
    mine, theirs = seen_by_both(network, teacher, unseen)
    assert len(views) == len(mine) == len(theirs)
    with torch.no_grad():
        for view, states, wanted in zip(views, mine, theirs, strict=True):
            assert (view(states) - wanted).square().mean() < 0.5 * wanted.var(0).mean()
    assert len(lines) == 2 * len(views)
    # Which token stands where, and before.
    for wanted, back in ((codes.long, 0), (codes.short, 1)):
        found = []
        for chosen in (fitted, unseen):
            batch = pad_pairs(chosen, torch.device("cpu"))
            states = seen_by_both(network, teacher, chosen)[0][-1][batch.texts]
            found.append((states, wanted[batch.before if back else batch.tokens]))
        (given, wanted), (states, codes_there) = found
        said = states @ nearest_map(given, wanted)
        assert functional.cosine_similarity(said, codes_there, dim=1).mean() > 0.9
    # What the last line says of the pairs that were fitted is what the network gives for them.
    mine, theirs = seen_by_both(network, teacher, fitted)
    with torch.no_grad():
        off = (views[-1](mine[-1]) - theirs[-1]).square().sum() / theirs[-1].square().sum()
    assert abs(float(off) - float(lines[-1].split()[-1])) < 0.05
    owner = self_attention(network.blocks[0]).SelfAttention
    assert owner.relative_attention_bias.weight.abs().max() > 0
