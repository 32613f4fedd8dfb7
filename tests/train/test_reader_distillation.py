"""Pairs as two readers see them, and one reader's states taught to the other."""

from __future__ import annotations

import pytest
import torch

from btr.data.passages import Passage
from btr.readers.bert_network import SplitBert
from btr.readers.t5_checkpoint import T5ReaderConfig
from btr.readers.t5_network import SplitT5
from btr.readers.t5_text import FidText
from btr.train.aligned_pairs import PairTokenizer, pad_pairs, pair_batches
from btr.train.loop import LoopSettings
from btr.train.optimizer import MasterAdamW
from btr.train.reader_distillation import (
    ReaderDistillation,
    read_pairs,
    what_is_seen,
)
from btr.train.sources import DataSettings, Rejects, parse_source
from btr.train.stage import StageSettings
from btr.train.t5_from_bert import t5_from_bert
from btr.train.token_codes import token_codes
from tiny_readers import tiny_model

CONFIG = T5ReaderConfig(query_budget=32, passage_budget=48)
QUESTIONS = ["where do birds rest?", "who was queen", "when was the first stone bridge built " * 3]


@pytest.fixture
def pairs(tokenizer, passages):
    text = FidText(tokenizer, CONFIG.query_template, CONFIG.passage_template, 3)
    maker = PairTokenizer(tokenizer, text, CONFIG, 24)
    long = Passage("long", "the river rises in snow and ends at a salt lake " * 9, "a title")
    return [
        maker.pair(question, passage)
        for question, passage in zip(QUESTIONS * 2, [*passages, long], strict=True)
    ]


def test_aligned_tokens_are_the_same(pairs):
    batch = pad_pairs(pairs, torch.device("cpu"))
    mine, theirs = batch.t5, batch.bert
    mine_ids = torch.cat([mine.query_ids, mine.passage_ids], 1)[batch.of, batch.t5_place]
    their_ids = torch.cat([theirs.query_ids, theirs.passage_ids], 1)[batch.of, batch.bert_place]
    assert torch.equal(mine_ids, their_ids)
    assert torch.equal(mine_ids[batch.texts], batch.tokens)
    assert (mine_ids != 0).all()
    assert len(batch.tokens) == len(batch.place) == sum(pair.text for pair in pairs)
    assert len(batch.of) == len(batch.place) + sum(pair.asked for pair in pairs)
    # Each token of a question and of a text, but for what a budget cut off.
    whole = [len(p.t5.passage) - p.t5.text - 1 for p in pairs[:5]]
    assert [pair.text for pair in pairs[:5]] == whole
    assert len(pairs[5].t5.passage) == CONFIG.passage_budget
    assert [pair.asked for pair in pairs] == [len(p.bert.query) - 2 for p in pairs]


def test_batches_hold_every_pair_once_within_the_budget(pairs):
    batches = pair_batches(pairs, seed=1, epoch=0, token_budget=120)
    assert sorted(id(pair) for batch in batches for pair in batch) == sorted(map(id, pairs))
    for batch in batches:
        longest = max(len(p.t5.query) for p in batch) + max(len(p.t5.passage) for p in batch)
        assert len(batch) == 1 or len(batch) * longest <= 120


def test_distillation_brings_a_t5_closer_to_the_reader(tokenizer, pairs):
    model = tiny_model(tokenizer)
    network = SplitT5(
        t5_from_bert(model.bert, decoder_layers=1, inner=32, end_token=3), 0
    ).requires_grad_(True)
    network.model.shared.requires_grad_(False)
    views = [torch.nn.Linear(32, 32) for _ in network.blocks]
    settings = StageSettings("reader", LoopSettings(1, 1e-2), dropout=0.0, precision="fp32")
    teacher = SplitBert(model, 0, 24)
    first = what_is_seen(network, teacher, pairs, CONFIG.query_budget)
    codes = token_codes(network.model.shared.weight, first.tokens, 0, 8)
    loss = ReaderDistillation(network, teacher, settings, CONFIG.query_budget, views, first, codes)
    loss.prepare(torch.device("cpu"), torch.float32)
    named = [(n, p) for n, p in loss.named_parameters() if p.requires_grad]
    optimizer = MasterAdamW(named, lr=1e-2, weight_decay=0, warmup=1, total=60)
    seen = []
    for step in range(60):
        parts = loss(pairs)
        torch.stack(list(parts.values())).sum().backward()
        optimizer.step(step)
        seen.append({name: value.item() for name, value in parts.items()})
    assert set(seen[0]) == {"layers", "last", "span", "token", "before"}
    # What is seen of so few tokens is told from the start.
    assert max(seen[0]["token"], seen[0]["before"]) < 0.1
    assert max(seen[-1]["token"], seen[-1]["before"]) < 0.1
    for name, factor in (("layers", 0.8), ("last", 0.8), ("span", 0.5)):
        assert 0 <= seen[-1][name] < factor * seen[0][name], name


def test_what_the_decoder_sees_is_every_token_of_the_texts(tokenizer, pairs):
    model = tiny_model(tokenizer)
    network = SplitT5(t5_from_bert(model.bert, decoder_layers=1, inner=32, end_token=3), 0).eval()
    seen = what_is_seen(network, SplitBert(model, 0, 24), pairs, 32)
    whole = [(p.t5.passage.tolist(), p.t5.text, p.t5.text + p.text) for p in pairs]
    assert seen.tokens.tolist() == [i for ids, a, b in whole for i in ids[a:b]]
    assert seen.before.tolist() == [i for ids, a, b in whole for i in ids[a - 1 : b - 1]]
    assert seen.states.shape == (len(seen.tokens), 32)
    # One pair alone gives the same.
    alone = what_is_seen(network, SplitBert(model, 0, 24), pairs[1:2], 32)
    part = slice(pairs[0].text, pairs[0].text + pairs[1].text)
    torch.testing.assert_close(alone.states, seen.states[part], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone.starts, seen.starts[part], rtol=1e-4, atol=1e-4)


def test_a_question_comes_with_a_passage_that_answers_it(tmp_path, tokenizer):
    lines = (
        f'{{"question": "who was queen {i}", "answers": ["ada"], "ctxs": [{{"title": "", "text":'
        f' "the king"}}, {{"title": "", "text": "the queen was ada {i}"}}]}}\n'
        for i in range(60)
    )
    (tmp_path / "q.jsonl").write_text("".join(lines))
    text = FidText(tokenizer, CONFIG.query_template, CONFIG.passage_template, 3)
    maker = PairTokenizer(tokenizer, text, CONFIG, 24)
    source = parse_source(str(tmp_path / "q.jsonl"))
    train, dev = read_pairs(DataSettings((source,), dev_share=0.2), maker, Rejects())
    assert train
    assert dev
    assert len(train) + len(dev) <= 60
    for pair in (*train, *dev):
        assert "ada" in tokenizer.decode(pair.t5.passage.tolist())
