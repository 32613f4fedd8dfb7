"""Continued answers: verbatim, whole words, of passages that hold the answer alone."""

from __future__ import annotations

import gzip
import json

from btr.data.passages import Passage
from btr.data.questions import Question
from btr.train.continuations import continued, main

TEXT = "The old bridge was designed by Ada Stone in 1873. It has nine arches, and a tower."


def question(answer: str, text: str = TEXT) -> Question:
    return Question("q", "Who?", (answer,), (Passage("p", title="T", text=text),))


def test_answers_go_on_in_their_passage_to_the_end_of_a_word():
    (record,) = continued([question("ada stone")], length=16)
    assert record["answers"] == ["Ada Stone in 1873"]
    (record,) = continued([question("Ada Stone")])
    assert record["answers"] == ["Ada Stone in 1873. It has nine arches, and a tower."]
    (record,) = continued([question("Ada Stone in 1873. It has")], length=5)
    assert record["answers"] == ["Ada Stone in 1873. It has"]


def test_questions_without_the_answer_in_their_passage_are_left_out():
    bare = Question("q", "Who?", ("Ada Stone",))
    assert [*continued([question("Bea Stone"), bare])] == []


def test_the_command_writes_what_training_reads(tmp_path, capsys):
    data = tmp_path / "train.jsonl"
    context = {"id": "p", "title": "T", "text": TEXT}
    data.write_text(json.dumps({"question": "Who?", "answers": ["Ada Stone"], "ctxs": [context]}))
    out = tmp_path / "continued.jsonl.gz"
    assert main([str(out), str(data), str(data)]) == 0
    assert capsys.readouterr().out == "2 questions\n"
    with gzip.open(out, "rt") as lines:
        records = [json.loads(line) for line in lines]
    assert [r["ctxs"] for r in records] == [[context]] * 2
    assert {r["question"] for r in records} == {"Who?"}
    assert main([str(out), str(data), "--mark", " ..."]) == 0
    with gzip.open(out, "rt") as lines:
        assert json.loads(lines.readline())["question"] == "Who? ..."
    assert main([str(out), str(tmp_path / "none.jsonl")]) == 3
    assert not out.exists()
