"""How an answer is shown: its sentence, its mark, abstention; documents cannot drive a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from btr.answering import Reply
from btr.cli.ask import as_json, show
from btr.cli.output import bytes_text, highlighted, place, printable, source_sentence
from btr.data.passages import Passage
from btr.readers.base import Answer, Reading

TEXT = "It was cold. The river rises in snow, Dr. Ada said. It ends at a lake."
PASSAGE = Passage("p", TEXT, "River", "docs/river.txt", 100)


def answer(text: str, probability: float = 0.8, passage: Passage = PASSAGE) -> Answer:
    start = passage.text.index(text)
    return Answer(text, probability, passage, start, start + len(text))


def shown(reading: Reading) -> str:
    out = io.StringIO()
    show(Reply("Where?", reading, (), {"retrieve": 1.0, "joint": 2.5}),
         Console(file=out, markup=False, highlight=False, soft_wrap=True))  # fmt: skip
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cold", "It was cold."),
        ("snow", "The river rises in snow, Dr. Ada said."),
        ("lake", "It ends at a lake."),
        ("said. It", "The river rises in snow, Dr. Ada said. It ends at a lake."),
        (TEXT, TEXT),
    ],
)
def test_source_sentence_holds_the_answer(text: str, sentence: str) -> None:
    before, span, after = source_sentence(answer(text))
    assert (before + span + after, span) == (sentence, text)


def test_the_span_is_marked_with_and_without_colour() -> None:
    assert highlighted(answer("snow"), colour=False).plain == (
        "The river rises in **snow**, Dr. Ada said."
    )
    coloured = highlighted(answer("snow"), colour=True)
    assert [coloured.plain[s.start : s.end] for s in coloured.spans] == ["snow"]


def test_an_answer_is_shown_with_its_place_in_the_document() -> None:
    text = shown(Reading((answer("snow"), answer("cold", 0.1)), 0.1))
    assert text.startswith("snow (confidence 0.80)\n")
    assert "The river rises in **snow**, Dr. Ada said." in text
    start = 100 + TEXT.index("snow")
    assert f"docs/river.txt, characters {start} to {start + 4}" in text
    assert "other candidates\n  0.10  cold  (docs/river.txt" in text
    assert text.endswith("3.5 ms: retrieve 1.0, joint 2.5\n")


def test_abstention_still_shows_the_best_guess_as_a_guess() -> None:
    text = shown(Reading((answer("snow", 0.2),), 0.7))
    assert text.startswith("not answered by these passages (probability 0.70)\n")
    assert "best guess, likely wrong: snow (confidence 0.20)" in text
    assert "**snow**" in text


def test_nothing_found_is_said_too() -> None:
    reading = Reading((), 1.0)
    assert shown(reading).startswith("not answered by these passages (probability 1.00)\n")
    report = as_json(Reply("Where?", reading, (), {}))
    assert (report["answer"], report["abstained"], report["candidates"]) == (None, True, [])


def test_json_withholds_the_answer_but_not_the_candidates() -> None:
    report = as_json(Reply("Where?", Reading((answer("snow", 0.2),), 0.7), (), {}))
    assert (report["answer"], report["abstained"]) == (None, True)
    assert report["candidates"][0]["text"] == "snow"
    assert report["candidates"][0]["sentence"] == "The river rises in snow, Dr. Ada said."


def test_truncated_passages_are_counted() -> None:
    assert "3 passages were longer" in shown(Reading((answer("snow"),), 0.1, truncated=3))


def test_documents_cannot_drive_the_terminal() -> None:
    hostile = Passage("p", "A \x1b[2J\x07 bad\u202e [bold]word[/bold].", "", "x\x1b.txt")
    text = shown(Reading((answer("bad", passage=hostile),), 0.1))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold]word[/bold]" in text
    assert "\x1b" not in place(answer("bad", passage=hostile))
    assert printable("a\tb\nc") == "a b\nc"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (796_140, "796.1 kB"),
     (25e6, "25.0 MB"), (1.5e9, "1.5 GB"), (2e12, "2.0 TB")],
)  # fmt: skip
def test_bytes_for_people(count: float, text: str) -> None:
    assert bytes_text(count) == text
