"""The demonstration: its corpus can answer its questions, and it tells what it should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from btr.cli.main import main
from btr.data.ledger import Ledger
from btr.data.questions import read_questions
from btr.data.sources import read_passages
from btr.demo import story
from tiny_readers import make_reader

QUESTIONS = list(read_questions(story.QUESTIONS))


def test_the_corpus_answers_eight_questions_from_many_file_types() -> None:
    with Ledger() as ledger:
        passages = list(read_passages([story.CORPUS], ledger=ledger))
    ledger.check()
    assert len(passages) >= 300
    assert ledger.counts["skipped_files"] == 0
    answerable = [q for q in QUESTIONS if q.answers]
    assert (len(QUESTIONS), len(answerable)) == (10, 8)
    used = set()
    for question in answerable:
        sources = {p.document for p in passages if question.answers[0].lower() in p.text.lower()}
        assert sources, question.question
        used |= {Path(name.partition("#")[0]).suffix for name in sources}
    assert used >= {".txt", ".md", ".html", ".pdf", ".jsonl", ".tsv"}


def test_the_corpus_cannot_answer_two() -> None:
    text = "".join(p.text for p in read_passages([story.CORPUS], ledger=Ledger())).lower()
    assert "penicillin" not in text
    assert "2018" not in text or "world cup in 2018" not in text


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "tiny"
    for mode, split_layer in (("plain", 0), ("decomposed", 2), ("btr", 2)):
        make_reader(folder / mode, tokenizer, mode, split_layer)
    return folder


@pytest.fixture
def _small_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("arts/piano.txt", "nature/animals-of-the-sea.pdf", "science/black-holes.md"):
        shutil.copy(story.CORPUS / name, folder)
    monkeypatch.setattr(story, "CORPUS", folder)


@pytest.mark.usefixtures("_small_corpus")
def test_the_whole_story(reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep, file = tmp_path / "kept", tmp_path / "demo.json"
    assert main(["demo", "--reader", str(reader), "--keep", str(keep), "--json", str(file)]) == 0
    out, _ = capsys.readouterr()
    report = json.loads(file.read_text())
    assert [a["question"] for a in report["answers"]] == [q.question for q in QUESTIONS]
    assert all(q.question in out for q in QUESTIONS)
    rows = report["rows"]
    assert [row["mode"] for row in rows] == ["plain", "decomposed", "btr"]
    assert rows[0]["agreement_with_plain"] == 1
    assert rows[0]["bytes_per_token"] is None
    assert rows[1]["bytes_per_token"] > rows[2]["bytes_per_token"] > 4
    assert "same as plain" in out
    assert "btr index FOLDER -o my.btr" in out
    assert 'btr ask my.btr "your question"' in out
    for mode in ("btr", "decomposed"):
        assert main(["verify", str(keep / f"demo.{mode}")]) == 0


@pytest.mark.usefixtures("_small_corpus")
def test_a_wheel_has_btr_weights_alone(
    reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = tmp_path / "only"
    shutil.copytree(reader / "btr", only / "btr")
    assert main(["demo", "--reader", str(only)]) == 0
    out, err = capsys.readouterr()
    assert "the plain reader's weights are not in this installation" in err
    assert "decomposed" not in out
