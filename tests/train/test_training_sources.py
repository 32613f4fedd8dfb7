"""Which questions are trained on, which are held out, and what is counted as useless."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from btr.data.questions import read_questions
from btr.errors import InputError, UsageError
from btr.readers.bert_text import tokenize_query
from btr.train import dev_split
from btr.train.sources import DataSettings, Rejects, Source, find_answers, held_out, parse_source
from btr.train.span_sources import SpanDataSettings, load_span_data
from cli_lines import one_line

SHARE = 0.3


def write(path: Path, records: list[dict]) -> Source:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Source(path)


def bridges(count: int = 80) -> list[dict]:
    """Questions that three passages answer each, after one that does not."""
    records = []
    for n in range(count):
        texts = [f"Place {part}: the bridge {n} was built by king Harald." for part in range(3)]
        contexts = [{"title": "Bridge", "text": t} for t in [f"Lake {n} is salt.", *texts]]
        records.append({"question": f"who built bridge {n}?", "answers": ["king Harald"],
                        "ctxs": contexts})  # fmt: skip
    return records


def test_a_held_out_question_is_in_train_with_none_of_its_passages(tmp_path, tokenizer):
    """Several passages answer a question; one of them held out must not leave it in train."""
    records = bridges()
    settings = SpanDataSettings((write(tmp_path / "a.jsonl", records),), dev_share=SHARE,
                                positives=2)  # fmt: skip
    builder, dev = load_span_data(settings, tokenizer, 48, Rejects())
    train = builder.data
    first = [held_out(r["ctxs"][1]["text"], SHARE) for r in records]
    later = [any(held_out(c["text"], SHARE) for c in r["ctxs"][2:]) for r in records]
    assert 0 < sum(first) < len(records)
    assert any(later)
    assert len(dev.questions["a"]) == sum(first)
    trained = {tuple(train.questions[e.question]) for e in train.examples}
    asked = {tuple(dev.data.questions[row.example.question]) for row in dev.questions["a"]}
    assert trained
    assert asked
    assert not trained & asked
    held = {tuple(p) for p in dev.data.passages}
    assert not held & {tuple(p) for p in train.passages}


def test_the_dev_split_can_be_written(tmp_path, capsys):
    records = bridges(400)
    source = write(tmp_path / "a.jsonl", records)
    out = tmp_path / "dev.jsonl.gz"
    assert dev_split.main([str(out), str(source.path)]) == 0
    share = DataSettings(()).dev_share
    held = [r for r in records if held_out(r["ctxs"][1]["text"], share)]
    written = list(read_questions(out))
    assert 0 < len(written) < len(records)
    assert [q.question for q in written] == [r["question"] for r in held]
    assert [[p.text for p in q.contexts] for q in written] == [
        [c["text"] for c in r["ctxs"]] for r in held
    ]
    assert capsys.readouterr().out == f"{len(held)} questions\n"
    assert dev_split.main([str(out), str(source.path), "--dev-share", "0.2"]) == 0
    assert len(list(read_questions(out))) > 2 * len(held)
    assert dev_split.main([str(tmp_path / "x.gz"), str(tmp_path / "none.jsonl")]) == 3
    assert "none.jsonl" in one_line(capsys.readouterr().err)
    assert not (tmp_path / "x.gz").exists()
    with pytest.raises(SystemExit) as ended:
        dev_split.main([str(out), str(source.path), "--dev-share", "4"])
    assert ended.value.code == 2
    assert "--dev-share is above 0" in capsys.readouterr().err


def test_passages_without_the_answer_are_negatives(tmp_path, tokenizer):
    sources = (write(tmp_path / "a.jsonl", bridges()),)
    for positives in (1, 2):
        settings = SpanDataSettings(sources, dev_share=0.1, positives=positives)
        builder, _ = load_span_data(settings, tokenizer, 48, Rejects())
        train = builder.data
        per_question = len(train.examples) / len({e.question for e in train.examples})
        assert positives - 0.3 < per_question <= positives
        assert train.negatives
        assert not set(map(tuple, train.negatives.values())) & {
            (e.passage,) for e in train.examples
        }


def test_a_dev_file_leaves_train_whole(tmp_path, tokenizer):
    records = bridges()
    sources = (write(tmp_path / "train.jsonl", records[:60]),)
    settings = SpanDataSettings(sources, dev=(write(tmp_path / "dev.jsonl", records[60:]).path,))
    builder, dev = load_span_data(settings, tokenizer, 48, Rejects())
    train = builder.data
    assert len({e.question for e in train.examples}) == 60
    assert {name: len(rows) for name, rows in dev.questions.items()} == {"dev": 20}


def test_useless_questions_are_counted(tmp_path, tokenizer):
    records = bridges()
    records[3]["answers"] = []
    records[4]["answers"] = [" "]
    records[5]["ctxs"] = []
    records[6]["ctxs"] = records[6]["ctxs"][:1]
    rejects = Rejects()
    sources = (write(tmp_path / "a.jsonl", records),)
    load_span_data(SpanDataSettings(sources, dev_share=0.1), tokenizer, 48, rejects)
    assert (rejects.without_answer, rejects.without_passage) == (2, 1)
    assert rejects.without_answer_in_passage >= 1


def test_bad_data_is_named_with_file_and_line(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(r) for r in bridges(5)]
    path.write_text("\n".join([*lines[:2], json.dumps({"text": "no question"}), *lines[2:]]))
    with pytest.raises(InputError, match=r"a\.jsonl, line 3"):
        load_span_data(SpanDataSettings((Source(path),)), tokenizer, 48, Rejects())
    empty = SpanDataSettings((write(path, [{"question": "q", "answers": [], "ctxs": []}]),))
    with pytest.raises(InputError, match=r"no question to train on.*1 questions without an"):
        load_span_data(empty, tokenizer, 48, Rejects())


def test_passages_must_hold_answers(tmp_path, tokenizer):
    useless = [r | {"ctxs": r["ctxs"][:1]} for r in bridges(20)]
    train, dev = write(tmp_path / "train.jsonl", bridges(20)), tmp_path / "dev.jsonl"
    for n, settings, message in (
        (20, SpanDataSettings((write(dev, useless),), dev_share=SHARE), "to train on holds"),
        (20, SpanDataSettings((train,), dev=(dev,)), r"to look at holds an answer: \S*dev\.jsonl;"),
    ):
        with pytest.raises(InputError, match=f"{message}.*{n} whose passages hold no answer"):
            load_span_data(settings, tokenizer, 48, Rejects())


def test_a_class_of_the_dev_file_alone_is_named(tmp_path, tokenizer):
    records = [r | {"answers": [["yes", "no"][i % 2]]} for i, r in enumerate(bridges(6))]
    train = write(tmp_path / "train.jsonl", records)
    dev = write(tmp_path / "dev.jsonl", [*records[:2], records[3] | {"answers": ["perhaps"]}])
    settings = SpanDataSettings((train,), dev=(dev.path,), labels=("no", "yes"))
    with pytest.raises(InputError, match="dev: question 3; expected no, yes, found perhaps"):
        load_span_data(settings, tokenizer, 48, Rejects())


def test_a_choice_needs_no_passage_and_is_trained_on_as_it_is_asked(tmp_path, tokenizer):
    """Training and reading give the network the same text, and the same nothing for a passage."""
    record = {"question": "what?", "options": ["salt", "snow"], "answer": "B"}
    source = write(tmp_path / "exam.jsonl", [record | {"question": f"what {n}?"} for n in range(9)])
    settings = SpanDataSettings((source,), dev=(source.path,), labels=("A", "B"))
    builder, dev = load_span_data(settings, tokenizer, 48, Rejects())
    assert len(builder.data.examples) == len(dev.questions["exam"]) == 9
    wanted = tokenize_query(tokenizer, "what 0? (A) salt (B) snow", 48)
    assert builder.data.questions[0].tolist() == wanted
    assert dev.data.questions[0].tolist() == wanted
    assert [ids.tolist() for ids in builder.data.passages] == [[tokenizer.sep_token_id]]
    assert {example.label for example in builder.data.examples} == {1}
    rejects = Rejects()
    with pytest.raises(InputError, match="18 without a passage"):
        load_span_data(replace(settings, labels=()), tokenizer, 48, rejects)


def test_every_dev_question_weighs_the_same():
    f1 = {"large": [1.0, 1.0, 0.0, 0.0], "small": [1.0]}
    assert SpanDataSettings(()).score(f1) == 60
    assert SpanDataSettings((), score_on=("small",)).score(f1) == 100
    with pytest.raises(UsageError, match="no dev questions to score on: tiny"):
        SpanDataSettings((), score_on=("tiny",)).score(f1)


def test_sources_are_files_with_shares():
    assert parse_source("a/b.jsonl.gz") == Source(Path("a/b.jsonl.gz"), 1.0)
    assert parse_source("b.jsonl=0.25") == Source(Path("b.jsonl"), 0.25)
    assert parse_source("b.jsonl=0.25").name == "b"
    for bad in ("b.jsonl=2", "b.jsonl=x", "b.jsonl=0"):
        with pytest.raises(UsageError, match="bad share"):
            parse_source(bad)


def test_answers_are_whole_words_in_any_case():
    text = "In 1990 the Cat sat. A concatenated cat, and cat's."
    spans = find_answers(text, ["cat", "the  cat"])
    assert [text[a:b] for a, b in spans] == ["the Cat", "Cat", "cat", "cat"]
    assert find_answers("It cost 3,000 (about).", ["(about)"]) == [(14, 21)]
    assert find_answers("nothing here", ["", "absent"]) == []
    # Letters that lower case alone would not bring together.
    assert find_answers("at 300 \u212aELVIN", ["kelvin"]) == [(7, 13)]
    assert find_answers("THE SUN", ["the \u017fun"]) == [(0, 7)]


def test_dev_is_a_split_by_passage():
    texts = [f"passage {i}" for i in range(5000)]
    share = sum(held_out(t, 0.1) for t in texts) / len(texts)
    assert 0.08 < share < 0.12
    assert [held_out(t, 0.1) for t in texts] == [held_out(t, 0.1) for t in texts]
