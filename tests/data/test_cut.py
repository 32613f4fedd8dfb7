from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.data.cut import Block, count_words, cut
from btr.data.sentences import sentence_ends


def sentences(text: str) -> list[str]:
    ends = [0, *sentence_ends(text, 0, len(text)), len(text)]
    return [s for a, b in pairwise(ends) if (s := text[a:b].strip())]


@pytest.mark.parametrize(
    "parts",
    [
        ["It rained.", "It stopped."],
        ["The U.S. Army came.", "They left the U.S.", "The end."],
        ["Dr. Smith met Mrs. Jones at St. Paul's.", "Prof. Lee and J. K. Rowling came too."],
        ["Pi is 3.14 or so.", "Version 2.0.1 is out.", "In 1997.", "The rest is 5.5%."],
        ["See Fig. 3 and No. 5, i.e. the last ones.", "Cf. Vol. 2, pp. 3-4."],
        ['He said "Stop!" and left.', '"Why?" she asked.', "“Because.”", "They went."],
        ["Really?!", "Yes...", "Well… so be it."],
        ["It opened at 9 a.m. on Jan. 5, 1920.", "It closed at 5 p.m.", "It was late."],
        ["Apple Inc. and Sony Corp. agreed.", "Vitamin C.", "It helps."],
        ["This is known.[12]", "That is not.[a]", "(Nor is this.)", "Good."],
        ["1. Open the lid.", "2. Pour.", "10. Close it."],
        ["今日は晴れ。", "明日は雨\uff1f", "「はい。」", "終わり"],
        ["यह सच है।", "वह नहीं।"],
    ],
)
def test_sentences_end_where_a_reader_would_end_them(parts: list[str]) -> None:
    assert sentences(" ".join(parts)) == parts


def test_bullets_are_sentences_and_hard_wrapped_lines_are_not() -> None:
    text = "A list of things\nthat is wrapped:\n- one thing\n- another\n  goes on\n2) last"
    assert sentences(text) == [
        "A list of things\nthat is wrapped:",
        "- one thing",
        "- another\n  goes on",
        "2) last",
    ]


def prose(words: int, number: int = 0) -> str:
    return f"Sentence {number} " + "word " * (words - 3) + "ends."


def test_passages_have_about_a_hundred_words_and_whole_sentences() -> None:
    text = " ".join(prose(17 + n % 13, n) for n in range(200))
    spans = cut(text)
    counts = [len(text[a:b].split()) for a, b in spans]
    assert all(75 <= n <= 125 for n in counts[:-1])
    assert all(text[a:b].startswith("Sentence") and text[b - 1] == "." for a, b in spans)


def test_ends_of_paragraphs_are_preferred_to_the_exact_length() -> None:
    text = "\n\n".join(" ".join(prose(20) for _ in range(4)) for _ in range(3))
    assert [text[a:b].count("ends.") for a, b in cut(text)] == [4, 4, 4]


def test_a_short_rest_joins_the_passage_before_it() -> None:
    text = " ".join([*(prose(20) for _ in range(5)), prose(24)])
    assert cut(text) == [(0, len(text))]
    assert len(cut(text + " " + prose(25))) == 2


def test_a_sentence_is_divided_only_over_150_words() -> None:
    assert len(cut(prose(150))) == 1
    pieces = cut(prose(151))
    assert len(pieces) == 2
    # A clause ends near the target, so the cut is there.
    text = "word " * 95 + "word, " + "more " * 60 + "end."
    assert text[slice(*cut(text)[0])].endswith("word,")


def test_text_without_spaces_is_still_cut() -> None:
    chinese = "字" * 1000
    assert all(b - a <= 175 for a, b in cut(chinese))
    assert all(b - a <= 175 * 24 for a, b in cut("A" * 100_000))
    assert count_words("one two") == 2
    assert count_words("字字 x") == 3


def test_headings_stay_with_what_follows_and_sections_are_preferred() -> None:
    parts = ["Alpha", prose(70), "Beta", prose(70), "Gamma", prose(70)]
    text, blocks = "", []
    for n, part in enumerate(parts):
        kind = "prose" if n % 2 else "heading"
        blocks.append(Block(len(text), len(text) + len(part), kind, part))  # type: ignore[arg-type]
        text += part + "\n"
    assert [text[a:b].split("\n")[0] for a, b in cut(text, blocks)] == ["Alpha", "Beta", "Gamma"]


def test_verbatim_blocks_are_cut_at_lines() -> None:
    text = "".join(f"x{n} = f({n}). Then y\n" for n in range(100))
    spans = cut(text, [Block(0, len(text), "verbatim")])
    assert len(spans) > 2
    assert all(text[a] == "x" and text[b : b + 1] in ("\n", "") for a, b in spans)


@pytest.mark.parametrize("text", ["", " \n\t ", "\u2028", "\x1c\x85"])
def test_nothing_gives_no_passage(text: str) -> None:
    assert cut(text) == []


pieces = st.sampled_from(
    ["word ", "Word. ", "U.S. ", "3.14 ", "\n\n", "\n", "\r\n", " ", "字。", "e\u0301", "\x00",
     "\u2028", "a" * 60, '"Yes!" ', "- item\n", "\ufeff", "👩‍👩‍👧 ", "word " * 80, "Long, " * 160]
)  # fmt: skip


@given(st.lists(st.one_of(pieces, st.text(max_size=20)), max_size=60).map("".join))
def test_passages_hold_all_text_once_in_order_and_verbatim(text: str) -> None:
    spans = cut(text)
    at = 0
    for start, end in spans:
        assert at <= start < end <= len(text)
        assert not text[at:start].strip()
        assert not text[start].isspace()
        assert not text[end - 1].isspace()
        at = end
    assert not text[at:].strip()
    sizes = [count_words(text[a:b]) for a, b in spans]
    assert all(n <= 200 for n in sizes)
    assert all(n >= 25 for n in sizes) or len(sizes) == 1


@pytest.mark.parametrize(
    "text", ["." * 300_000, "! " * 100_000, "\n" * 300_000, " " * 300_000, "A. " * 100_000,
             "a" * 300_000, "1. " * 100_000, '."' * 150_000, "\n -" * 100_000]
)  # fmt: skip
def test_hostile_texts_cost_linear_time(text: str) -> None:
    cut(text)  # in quadratic time this would run into the time limit of a test
