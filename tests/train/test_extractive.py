"""The three steps on tiny files: each writes a checkpoint of its mode that loads and answers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from btr.data.passages import Passage
from btr.errors import InputError, UsageError
from btr.readers.bert import BertReader
from btr.readers.bert_network import SplitBert
from btr.train.extractive import (
    StepSettings,
    run_network,
    start_binarized,
    start_decomposed,
    train_stage,
)
from btr.train.span_examples import SpanData, SpanExample, collate
from tiny_readers import tiny_model

TEXT = "The first bridge number {n} was built by king Harald over the wide lake."


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("squad", "nq_bm25"):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as out:
            for n in range(60):
                text = TEXT.format(n=n) if name == "squad" else "In the north: " + TEXT.format(n=n)
                context = {"id": f"{name}{n}", "title": "Bridge", "text": text}
                other = {"id": f"x{n}", "title": "Lake", "text": f"Lake {n} is salt."}
                marked = [context] if name == "squad" else [
                    context | {"hasanswer": True}, other | {"hasanswer": False}
                ]  # fmt: skip
                record = {"question": f"who built bridge {n}?", "answers": ["King Harald"]}
                out.write(json.dumps(record | {"ctxs": marked}) + "\n")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


SETTINGS = {"mix": "squad:1,nq_bm25:1", "epochs": 1, "token_budget": 600, "dev_share": 0.3}


def test_three_steps_give_three_readers(tmp_path, data, base):
    common = {"data_folders": [data], "base": base}
    figures = train_stage(
        StepSettings(stage="reader", **SETTINGS), output=tmp_path / "plain", **common
    )
    assert 0 <= figures["squad_f1"] <= 100
    plain = tmp_path / "plain" / "checkpoint"
    train_stage(
        StepSettings(stage="decompose", lower=3, joint=2, answer_weight=1.0, state_weight=0.2,
                     **SETTINGS),
        output=tmp_path / "decomposed", plain=plain, **common,
    )  # fmt: skip
    decomposed = tmp_path / "decomposed" / "checkpoint"
    train_stage(
        StepSettings(stage="binarize", answer_weight=1.0, recovery_weight=0.1, **SETTINGS),
        output=tmp_path / "btr", plain=plain, decomposed=decomposed, **common,
    )  # fmt: skip
    passage = Passage("p", TEXT.format(n=1), "Bridge")
    for mode, split, depth in (("plain", 0, 4), ("decomposed", 3, 5), ("btr", 3, 5)):
        reader = BertReader.from_pretrained(tmp_path / mode / "checkpoint")
        assert reader.mode == mode
        assert reader.split_layer == split
        assert len(reader.network.lower) + len(reader.network.joint) == depth
        assert reader.read("who built it?", [passage]).answers
        log = (tmp_path / mode / "log.jsonl").read_text().splitlines()
        losses = json.loads(log[0])
        wanted = {"plain": {"span"}, "decomposed": {"span", "answer", "state"},
                  "btr": {"span", "answer", "recovery"}}  # fmt: skip
        assert wanted[mode] <= losses.keys()


def test_missing_pieces_are_named(tmp_path, data, base):
    common = {"data_folders": [data], "base": base, "output": tmp_path / "out"}
    with pytest.raises(UsageError, match="give --plain"):
        train_stage(StepSettings(stage="decompose", **SETTINGS), **common)
    with pytest.raises(InputError, match=r"no training file cloze\.jsonl\.gz"):
        train_stage(StepSettings(mix="cloze:1"), **common)


def batch_of(tokens: int = 9) -> tuple[SpanData, list[SpanExample]]:
    ids = torch.arange(5, 5 + tokens).numpy()
    data = SpanData(questions=[ids[:4]], passages=[ids, ids[::-1].copy()])
    return data, [SpanExample(0, 0, ((1, 2),)), SpanExample(0, 1, ((1, 2),))]


def test_the_papers_split_starts_from_the_same_layers(tokenizer):
    plain = SplitBert(tiny_model(tokenizer), 0, 24)
    split = start_decomposed(plain, 2, 2)
    ours = split.model.bert.encoder.layer.state_dict()
    for name, value in plain.model.bert.encoder.layer.state_dict().items():
        assert torch.equal(value, ours[name])
    assert split.split_layer == 2


def test_extra_layers_below_the_cut_start_close_to_the_identity(tokenizer):
    plain = SplitBert(tiny_model(tokenizer), 0, 24)
    data, examples = batch_of()
    with torch.no_grad():
        shallow = run_network(start_decomposed(plain, 2, 2).eval(), collate(data, examples))
        deep = run_network(start_decomposed(plain, 3, 2).eval(), collate(data, examples))
    # The norms' spread is estimated over dimensions, so it is close, not equal.
    apart = (shallow[3] - deep[3]).norm() / shallow[3].norm()
    assert apart < 0.35


def test_binarizing_starts_from_the_least_squares_fit(tokenizer):
    split = start_decomposed(SplitBert(tiny_model(tokenizer), 0, 24), 2, 2).eval()
    data, examples = batch_of()
    data.examples.extend(examples)
    network = start_binarized(split, data)
    assert split.binarizer is None
    batch = collate(data, examples)
    with torch.no_grad():
        _, _, _, state, restored = run_network(network, batch)
    error = (state - restored)[batch.passage_mask].square().mean()
    plain_rule = (state - torch.where(state > 0, 1.0, -1.0))[batch.passage_mask].square().mean()
    assert error < plain_rule
