"""Which questions are trained on, and which are held out."""

from __future__ import annotations

import gzip
import json

from btr.train.span_examples import in_dev
from btr.train.span_sources import DataSettings, load_dev, load_train

SHARE = 0.3


def test_a_held_out_question_is_in_train_with_none_of_its_passages(tmp_path, tokenizer):
    """Several passages answer a question; one of them held out must not leave it in train."""
    records = []
    for n in range(80):
        texts = [f"Place {part}: the bridge {n} was built by king Harald." for part in range(3)]
        contexts = [{"title": "Bridge", "text": t, "hasanswer": True} for t in texts]
        records.append({"question": f"who built bridge {n}?", "answers": ["king Harald"],
                        "ctxs": contexts})  # fmt: skip
    for name in ("squad", "nq_bm25"):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)
    settings = DataSettings(mix="squad:1,nq_bm25:1", dev_share=SHARE)
    train = load_train([tmp_path], tokenizer, settings, 48)
    dev = load_dev([tmp_path], tokenizer, settings, 48)
    first = [in_dev(r["ctxs"][0]["text"], SHARE) for r in records]
    later = [any(in_dev(c["text"], SHARE) for c in r["ctxs"][1:]) for r in records]
    assert 0 < sum(first) < len(records)
    assert any(later)
    assert {name: len(rows) for name, rows in dev.questions.items()} == {
        "squad": sum(first), "nq_bm25": sum(first),
    }  # fmt: skip
    trained = {tuple(train.questions[e.question]) for e in train.examples}
    held_out = {tuple(dev.data.questions[row.example.question])
                for rows in dev.questions.values() for row in rows}  # fmt: skip
    assert trained
    assert held_out
    assert not trained & held_out
