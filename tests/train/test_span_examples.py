"""Training examples: answers found at the right tokens, batches complete and repeatable."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from btr.data.passages import Passage
from btr.train.span_examples import (
    SpanData,
    SpanDataBuilder,
    SpanExample,
    collate,
    epoch_batches,
)


def test_an_answer_becomes_its_tokens(tokenizer):
    builder = SpanDataBuilder(tokenizer, 24, 64)
    bridge = Passage("b", "The first bridge was built by king Harald over the river.", "Bridge")
    assert builder.add(builder.question("who built it?"), bridge, ["King Harald"])
    (example,) = builder.data.examples
    ((first, last),) = example.spans
    ids = builder.data.passages[example.passage][first : last + 1]
    assert tokenizer.decode(ids) == "king harald"
    assert not builder.add(builder.question("what?"), bridge, ["queen"])
    # An answer past the budget is not a target.
    short = SpanDataBuilder(tokenizer, 24, 12)
    assert not short.add(short.question("what?"), bridge, ["river"])


def test_collate_shares_passages_and_marks_targets():
    data = SpanData(
        questions=[np.arange(3, dtype=np.int32), np.arange(5, dtype=np.int32)],
        passages=[np.arange(4, dtype=np.int32), np.arange(6, dtype=np.int32)],
    )
    batch = collate(
        data,
        [SpanExample(0, 1, ((1, 2), (4, 4))), SpanExample(1, 1, ()), SpanExample(1, 0, ((0, 3),))],
    )
    assert batch.passage_ids.shape == (2, 6)
    assert batch.query_ids.shape == (3, 5)
    assert batch.passage_of.tolist() == [1, 1, 0]
    assert batch.spans[:, :2].tolist() == [
        [[2, 3], [5, 5]],
        [[0, 0], [-1, -1]],
        [[1, 4], [-1, -1]],
    ]
    assert (batch.spans[:, 2:] == -1).all()
    assert batch.to(torch.device("cpu")).passage_mask.sum().item() == 10


def make_data(n: int = 200) -> SpanData:
    random = np.random.default_rng(0)
    data = SpanData()
    for i in range(n):
        data.questions.append(np.zeros(random.integers(3, 9), np.int32))
        data.passages.append(np.zeros(random.integers(10, 60), np.int32))
        data.examples.append(SpanExample(i, i // 3, ((1, 2),)))
        data.negatives[i] = [n - 1]
    return data


def test_an_epoch_holds_every_example_once_and_is_repeatable():
    data = make_data()
    settings = {"seed": 3, "token_budget": 600, "negative_share": 0.3}
    batches = epoch_batches(data, epoch=0, **settings)
    flat = [e for b in batches for e in b]
    assert Counter(e for e in flat if e.spans) == Counter(data.examples)
    negatives = [e for e in flat if not e.spans]
    assert 20 < len(negatives) < 100
    assert all(e.passage == 199 for e in negatives)
    assert epoch_batches(data, epoch=0, **settings) == batches
    assert epoch_batches(data, epoch=1, **settings) != batches
    for batch in batches:
        ids = collate(data, batch)
        padded = len(batch) * (ids.query_ids.shape[1] + ids.passage_ids.shape[1])
        assert padded <= 600 or len({e.passage for e in batch}) == 1
