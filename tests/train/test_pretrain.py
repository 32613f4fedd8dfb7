"""Pretraining batches: windows of documents, held out whole, split into query and passage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from btr.data.passages import Passage
from btr.errors import UsageError
from btr.readers.t5_network import SplitT5
from btr.train.fid_examples import IGNORED
from btr.train.fid_pass import TrainingPass
from btr.train.pretrain import WindowBatches, sentinels_of, text_windows
from tiny_t5 import t5_tokenizer, tiny_t5

BUDGET = 8


def passages(documents: int = 40, each: int = 3) -> list[Passage]:
    return [
        Passage(f"{d}#{i}", "the lake is wide and the bridge was built of stone " * 2, f"T{d}")
        for d in range(documents) for i in range(each)
    ]  # fmt: skip


def test_windows_hold_whole_documents_and_nothing_twice():
    tokenizer = t5_tokenizer()
    train, dev = text_windows(passages(), tokenizer, 30, 0.2)
    assert train
    assert dev
    assert all(len(w) <= 30 for w in train + dev)
    each = len(tokenizer(passages()[0].text, add_special_tokens=False).input_ids) * 3
    left_out = each % 30 if each % 30 < 16 else 0
    assert sum(map(len, train + dev)) == 40 * (each - left_out)


def batches(windows: list[np.ndarray]) -> WindowBatches:
    return WindowBatches(windows, seed=1, query_budget=BUDGET, sentinels=[3, 4], end_token=1)


def test_batches_are_corrupted_anew_every_epoch_and_the_same_every_time():
    windows = [np.arange(5, 65, dtype=np.int32) for _ in range(7)]
    plan = batches(windows)
    first = plan.epoch(0, 200)
    assert sorted(w.number for b in first for w in b) == list(range(7))
    assert all(len(b) <= 3 for b in first)
    assert first == plan.epoch(0, 200)
    one, again, later = (plan.collate(plan.epoch(e, 200)[0][:1]) for e in (0, 0, 1))
    assert torch.equal(one.labels, again.labels)
    same = one.labels.shape == later.labels.shape and torch.equal(one.labels, later.labels)
    assert not (same and torch.equal(one.query_ids, later.query_ids))
    assert one.query_ids.shape[1] == BUDGET
    assert (one.labels != IGNORED).all()


def test_with_nothing_below_the_cut_it_is_t5s_own_pretraining():
    """Query and passage are one text there: the loss is that of the Hugging Face model on it."""
    model = tiny_t5(t5_tokenizer())
    plan = batches([np.arange(5, 35, dtype=np.int32)])
    batch = plan.collate(plan.epoch(0, 100)[0])
    with torch.no_grad():
        logits = TrainingPass(SplitT5(model, 0).eval(), BUDGET)(batch).logits
        text = torch.cat([batch.query_ids, batch.passage_ids], dim=1)
        wanted = model(input_ids=text, labels=batch.labels).logits
    torch.testing.assert_close(logits, wanted.flatten(0, 1), rtol=1e-4, atol=1e-4)


def test_sentinels_come_from_the_vocabulary():
    tokenizer = t5_tokenizer()
    marks = [tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in (0, 1)]
    assert sentinels_of(tokenizer) == marks
    tokenizer.get_vocab = lambda: {"a": 0}
    with pytest.raises(UsageError, match="no tokens to mark spans"):
        sentinels_of(tokenizer)
