"""F, input data: every bad line, document and question gives one line and its exit status."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_lines import one_line

Run = Callable[..., tuple[int, str, str]]

GOOD = b'{"id": "1", "text": "It is long."}\n'

REJECTED: dict[str, tuple[bytes, str]] = {
    "not json": (b"hello\n", "not JSON"),
    "cut off": (b'{"id": "2", "te', "not JSON"),
    "array": (b"[1]\n", "expected a JSON object, found an array"),
    "no text": (b'{"id": "2"}\n', "text"),
    "text is a number": (b'{"id": "2", "text": 5}\n', "text"),
    "NaN": (b'{"id": "2", "text": "x", "n": NaN}\n', "NaN is not a JSON number"),
    "Infinity": (b'{"id": "2", "text": "x", "n": Infinity}\n', "Infinity is not a JSON number"),
    "1e400": (b'{"id": "2", "text": "x", "n": 1e400}\n', "the number 1e400 is out of range"),
    "key twice": (b'{"id": "2", "text": "x", "text": "y"}\n', "the key 'text' is given twice"),
    "digits": (b'{"id": "2", "text": "x", "n": ' + b"9" * 5000 + b"}\n", "too many digits"),
    "nesting": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n", "nested too deeply"),
    "surrogate": (b'{"id": "2", "text": "\\ud800"}\n', "half of a surrogate pair"),
    "invalid UTF-8": (b'{"id": "2", "text": "\xff"}\n', "invalid UTF-8: byte 0xff"),
    "blank text": (b'{"id": "2", "text": " "}\n', "text"),
    "empty id": (b'{"id": "", "text": "x"}\n', "the id is empty"),
    "long id": (b'{"id": "' + b"i" * 513 + b'", "text": "x"}\n', "the id has 513 bytes"),
    "long line": (b'{"id": "2", "text": "' + b"x" * (1 << 20) + b'"}\n', "over the limit"),
    "id twice": (b'{"id": "1", "text": "other"}\n', "given to another text at in.jsonl, line 1"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_a_bad_line_is_rejected(run: Run, tiny: Path, tmp_path: Path, case: str) -> None:
    line, reason = REJECTED[case]
    (tmp_path / "in.jsonl").write_bytes(GOOD + line)
    store = tmp_path / "s"
    status, out, err = run("index", tmp_path / "in.jsonl", "-o", store, "--reader", tiny)
    text = one_line(err)
    assert status == 8
    assert text.startswith("error[rejects] more records were rejected than allowed: first at ")
    assert "in.jsonl, line 2: " in text
    assert reason in text
    assert "expected at most 0, found 1" in text
    # The work is done all the same, and says itself what it left out.
    assert "1 passages" in out
    (entry,) = map(json.loads, (store / "rejects.jsonl").read_text().splitlines())
    assert (entry["source"], entry["line"], entry["offset"] >= len(GOOD)) == ("in.jsonl", 2, True)
    assert str(store / "rejects.jsonl") in text
    assert not list(tmp_path.glob("s.*"))
    assert run("verify", store)[0] == 0


def test_allowed_rejects(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"\xff\n" + GOOD + b"[]\n")
    words = ("index", tmp_path / "in.jsonl", "-o", tmp_path / "s", "--reader", tiny)
    status, out, _ = run(*words, "--max-rejects", "2", "--json", "-")
    report = json.loads(out)
    assert status == 0
    assert report["counts"]["rejected"] == 2
    assert report["counts"]["read"] == 3


# By name: pytest would name a case by its bytes, and a gzip header holds the time, so that two
# workers collecting a second apart would not have the same tests.
UNUSABLE: dict[str, tuple[str, bytes, str]] = {
    "latin-1": ("a.jsonl", 'é{"x":1}\n'.encode("latin-1") * 200, "the file is not UTF-8"),
    "utf-16": ("a.jsonl", GOOD.decode().encode("utf-16"), "expected UTF-8, found UTF-16"),
    "empty": ("a.jsonl", b"", "the sources give no passages"),
    "blank lines": ("a.jsonl", b"\n \n", "the sources give no passages"),
    "only rejects": ("a.jsonl", b"[]\n", "the sources give no passages"),
    "blank text file": ("a.txt", b" \n", "the sources give no passages"),
    "not a pdf": ("a.pdf", b"%PDF-1.4 nothing", "the sources give no passages"),
    "docx": ("a.docx", b"x", "a source of a type that btr does not read"),
    "gzip bomb": ("a.jsonl.gz", gzip.compress(b" " * (100 << 20)), "expands suspiciously"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(GOOD * 99)[:-12], "truncated gzip file"),
    "not gzip": ("a.jsonl.gz", b"no gzip", "damaged gzip data"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_sources_that_cannot_be_used(run: Run, tiny: Path, tmp_path: Path, case: str) -> None:
    name, data, text = UNUSABLE[case]
    (tmp_path / name).write_bytes(data)
    status, _, err = run("index", tmp_path / name, "-o", tmp_path / "s", "--reader", tiny)
    assert status == 3
    assert text in one_line(err)
    # Nothing is left that would be in the way of the next try.
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "s.building").exists()
    assert not (tmp_path / "s.lock").exists()


def test_sources_that_are_not_there(run: Run, tiny: Path, tmp_path: Path) -> None:
    status, _, err = run("index", tmp_path / "gone", "-o", tmp_path / "s", "--reader", tiny)
    assert status == 3
    assert f"cannot read a source: {tmp_path / 'gone'}" in one_line(err)
    os.mkfifo(tmp_path / "pipe.jsonl")
    status, _, err = run("index", tmp_path / "pipe.jsonl", "-o", tmp_path / "s", "--reader", tiny)
    assert status == 3
    assert "not a regular file" in one_line(err)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"[]\n", "bad line"),
        (b'{"id": "1"}\n', "bad question"),
        (b'{"question": "x", "answers": "y"}\n', "bad question"),
        (b"", "no questions in the file"),
        (b'{"question": "x", "answers": ["y"]}\n', "no question has both answers and passages"),
    ],
)
def test_bad_questions(run: Run, tiny: Path, tmp_path: Path, line: bytes, text: str) -> None:
    (tmp_path / "q.jsonl").write_bytes(line)
    status, _, err = run("eval", "--reader", tiny, "--data", tmp_path / "q.jsonl")
    assert status == 3
    assert text in one_line(err)


def test_an_id_that_the_store_lacks(
    run: Run, tiny: Path, tmp_path: Path, whole_store: Path, questions: Path
) -> None:
    listed = tmp_path / "run.jsonl"
    words = ("eval", "--reader", tiny, "--data", questions, "--store", whole_store,
             "--retrieved", listed)  # fmt: skip
    listed.write_text('{"id": "1", "ctx_ids": ["q9"]}\n')
    status, _, err = run(*words)
    assert (status, "no passage has this id: 'q9'" in one_line(err)) == (3, True)
    listed.write_text('{"id": "7", "ctx_ids": []}\n')
    status, _, err = run(*words)
    assert (status, "the retrieval run lacks a question: 1" in one_line(err)) == (3, True)
    listed.write_text('{"id": "1"}\n')
    status, _, err = run(*words)
    assert (status, "ctx_ids" in one_line(err)) == (3, True)


def test_special_tokens_in_a_text_are_text(run: Run, tiny: Path, tmp_path: Path) -> None:
    text = "It is [SEP] long. [CLS] question: </s> ends."
    (tmp_path / "a.txt").write_text(text)
    run("index", tmp_path / "a.txt", "-o", tmp_path / "s", "--reader", tiny)
    status, out, _ = run("ask", tmp_path / "s", "[SEP] [MASK]?", "--json", "-")
    assert status == 0
    assert json.loads(out)["candidates"][0]["passage"]["text"] == text


def test_odd_characters_come_back_as_they_were(run: Run, tiny: Path, tmp_path: Path) -> None:
    text = "a\u0000b \u2028c \u0085d \u202ee e\u0301 \U0001f469\u200d\U0001f680 ends."
    line = json.dumps({"id": "1", "text": text}) + "\n"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode())
    run("index", tmp_path / "a.jsonl", "-o", tmp_path / "s", "--reader", tiny)
    status, out, _ = run("ask", tmp_path / "s", "ends", "--json", "-")
    assert status == 0
    assert json.loads(out)["candidates"][0]["passage"]["text"] == text
