from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from btr.data.hub import questions_of, task_of
from btr.data.passages import Passage
from btr.data.questions import Question, read_questions
from btr.errors import InputError, UsageError


def write(folder: Path, *records: Any, name: str = "q.jsonl") -> Path:
    path = folder / name
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_fid_questions(tmp_path: Path, name: str) -> None:
    record = {
        "id": "nq-1", "question": "who?", "target": "x", "answers": ["A", "B"],
        "ctxs": [
            {"id": 7, "title": "T", "text": " t ", "score": "82.1", "hasanswer": True},
            {"text": "u"},
        ],
    }  # fmt: skip
    assert list(read_questions(write(tmp_path, record, name=name))) == [
        Question("nq-1", "who?", ("A", "B"), (Passage("7", " t ", "T"), Passage("nq-1:ctx1", "u")))
    ]


def test_multiple_choice_and_claims(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"question": "q", "options": {"A": "x", "B": "y"}, "answers": ["B"], "subject": "law"},
        {"question": "q", "options": ["x", "y"], "answer": "A"},
        {"claim": "c", "label": "SUPPORTS"},
        {"question": "open"},
    )
    choice, listed, claim, bare = read_questions(path)
    assert (choice.options, choice.label, choice.subject) == ((("A", "x"), ("B", "y")), "B", "law")
    assert (listed.options, listed.label) == ((("A", "x"), ("B", "y")), "A")
    assert (claim.question, claim.answers, claim.label) == ("c", ("SUPPORTS",), "SUPPORTS")
    assert bare == Question("4", "open")


def test_records_of_other_data_sets(tmp_path: Path) -> None:
    """Field by field as the Hub and the projects' own files have them."""
    squad = {
        "id": "5733be284776f41900661182", "title": "Bridge", "context": "King Olaf built it.",
        "question": "who?", "answers": {"text": ["Olaf", "Olaf", "King Olaf"], "answer_start": [5]},
    }  # fmt: skip
    trivia = {
        "question": "who?", "question_id": "tc_1",
        "answer": {"value": "Olaf", "aliases": ["King Olaf", "Olaf"], "normalized_value": "olaf"},
    }  # fmt: skip
    nq_open = {"question": "who?", "answer": ["Olaf", "King Olaf"]}
    mmlu = {"question": "what?", "choices": ["w", "x", "y", "z"], "answer": 2, "subject": "law"}
    dpr = {
        "question": "who?", "answers": ["Olaf"],
        "positive_ctxs": [{"title": "T", "text": "Olaf did.", "passage_id": "12"}],
        "negative_ctxs": [], "hard_negative_ctxs": [{"title": "U", "text": "No.", "psg_id": "9"}],
    }  # fmt: skip
    atlas = {
        "query": "who?", "answers": ["Olaf"], "generation": "Olaf",
        "passages": [{"id": "7", "title": "T", "section": "S", "text": "Olaf did."}],
    }  # fmt: skip
    first, second, third, fourth, fifth, sixth = read_questions(
        write(tmp_path, squad, trivia, nq_open, mmlu, dpr, atlas)
    )
    assert first.answers == ("Olaf", "King Olaf")
    assert (first.contexts[0].title, first.contexts[0].text) == ("Bridge", "King Olaf built it.")
    assert (second.id, second.answers) == ("tc_1", ("Olaf", "King Olaf"))
    assert third.answers == ("Olaf", "King Olaf")
    assert (fourth.label, fourth.options[2], fourth.subject) == ("C", ("C", "y"), "law")
    assert [(p.id, p.text) for p in fifth.contexts] == [("12", "Olaf did."), ("5:ctx1", "No.")]
    assert (sixth.question, sixth.answers) == ("who?", ("Olaf",))
    assert [(p.id, p.title, p.text) for p in sixth.contexts] == [("7", "T", "Olaf did.")]


def test_a_data_set_of_the_hub_is_read_like_a_file(tmp_path: Path) -> None:
    """With the real library on a folder of files, which it loads like a data set of the Hub."""
    folder = tmp_path / "bridges"
    folder.mkdir()
    write(folder, {"question": "who?", "answer": ["Olaf"]}, {"question": "when?", "answer": ["1"]},
          name="test.jsonl")  # fmt: skip
    found = list(questions_of(f"hub:{folder}:test"))
    assert [(q.question, q.answers) for q in found] == [("who?", ("Olaf",)), ("when?", ("1",))]
    assert task_of(f"hub:{folder}:test") == "bridges"
    assert task_of(str(folder / "test.jsonl")) == "test"
    with pytest.raises(InputError, match="cannot be loaded"):
        list(questions_of(f"hub:{folder}:nosuchsplit"))
    with pytest.raises(UsageError, match="bad name"):
        list(questions_of("hub:squad"))
    write(folder, {"question": " ", "answer": ["Olaf"]}, name="test.jsonl")
    with pytest.raises(InputError, match="row 1"):
        list(questions_of(f"hub:{folder}:test"))


def test_classes_and_choices_of_the_hub(tmp_path: Path) -> None:
    """FEVER's classes are numbers with names there, MMLU's answer is the number of a choice."""
    classes = ClassLabel(names=["REFUTES", "SUPPORTS"])
    forms = {
        "fever": (
            {"claim": ["c", "d"], "label": [1, 0]}, {"claim": Value("string"), "label": classes},
        ),
        "mmlu": (
            {"question": ["q"], "choices": [list("wxyz")], "answer": [2], "subject": ["law"]},
            {
                "question": Value("string"), "choices": Sequence(Value("string")),
                "answer": ClassLabel(names=list("ABCD")), "subject": Value("string"),
            },
        ),
    }  # fmt: skip
    for name, (rows, features) in forms.items():
        (tmp_path / name).mkdir()
        made = Dataset.from_dict(rows, features=Features(features))
        made.to_parquet(tmp_path / name / "test.parquet")
    fever = list(questions_of(f"hub:{tmp_path}/fever:test"))
    assert [(q.question, q.answers, q.label) for q in fever] == [
        ("c", ("SUPPORTS",), "SUPPORTS"), ("d", ("REFUTES",), "REFUTES"),
    ]  # fmt: skip
    (mmlu,) = questions_of(f"hub:{tmp_path}/mmlu:test")
    assert (mmlu.options[2], mmlu.label, mmlu.subject) == (("C", "y"), "C", "law")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"answers": ["a"]}, "'question' is missing"),
        ({"question": " "}, "question is empty"),
        ({"question": 3}, "'question' is a number"),
        ({"question": "q", "answers": "a"}, "'answers' is a string, not an array"),
        ({"question": "q", "answers": ["a", 1]}, "'answers' holds a number"),
        ({"question": "q", "ctxs": {}}, "'ctxs' is an object"),
        ({"question": "q", "ctxs": ["t"]}, r"ctxs\[0\] is a string"),
        ({"question": "q", "ctxs": [{"text": "t"}, {"id": "x"}]}, r"in ctxs\[1\] .*'text' is miss"),
        ({"question": "q", "options": {"A": "x"}, "answers": ["x"]}, "none of the options A"),
        (["question"], "expected a JSON object, found an array"),
        ({"question": "q", "score": float("nan")}, "NaN is not a JSON number"),
    ],
)
def test_a_bad_question_is_named_with_file_and_line(
    tmp_path: Path, record: Any, reason: str
) -> None:
    path = write(tmp_path, {"question": "fine"}, record)
    with pytest.raises(InputError, match=rf"q\.jsonl, line 2.*{reason}"):
        list(read_questions(path))


def test_questions_are_streamed_and_an_empty_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "fine"}, {"bad": 1})
    assert next(read_questions(path)).question == "fine"
    with pytest.raises(InputError, match="no questions"):
        list(read_questions(write(tmp_path)))
