"""Extracted answers: verbatim, from what was read, each text once, from where its tokens stand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btr.data.passages import Passage
from btr.readers.base import ReadOptions
from btr.readers.t5 import T5Reader
from btr.readers.t5_generate import prefix_log_probabilities
from btr.readers.t5_text import word_edges
from tiny_t5 import make_t5, t5_tokenizer

EXTRACT = ReadOptions(search="extract", longest=8)
QUESTION = "When was the first bridge built?"


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, T5Reader]:
    folder, tokenizer = tmp_path_factory.mktemp("t5"), t5_tokenizer()
    readers = {mode: make_t5(folder / mode, tokenizer, mode, 0 if mode == "plain" else 2)
               for mode in ("plain", "btr")}  # fmt: skip
    atlas = {"query_template": "question: {question} answer: <extra_id_0>", "query_budget": 48}
    readers["atlas"] = make_t5(
        folder / "atlas", tokenizer, "btr", 2, answer_prompt="<extra_id_0>", **atlas
    )
    short = {"passage_budget": 12}
    for mode in ("plain", "decomposed", "btr"):
        split = 0 if mode == "plain" else 2
        readers[f"short {mode}"] = make_t5(folder / f"s{mode}", tokenizer, mode, split, **short)
    return readers


def extract(reader: T5Reader, *texts: str, top: int = 50, stored: bool = False):
    passages = [Passage(f"p{i}", text) for i, text in enumerate(texts)]
    states = reader.encode(passages) if stored else None
    return reader.read(QUESTION, passages, states, top=top, options=EXTRACT).answers


def probability(reader: T5Reader, texts, tokens, prompt=()) -> float:
    """Of tokens and the end token, by the decoder asked for each alone."""
    passages = [Passage(f"p{i}", text) for i, text in enumerate(texts)]
    engine = reader.engine
    query, _ = reader.text.query(QUESTION, reader.config.query_budget)
    with torch.inference_mode():
        restored = engine.restore([s.rows for s in reader.encode(passages)])
        order = sorted(range(len(texts)), key=lambda i: -len(restored[i].residual))
        (memory,) = engine.remember([query], [[restored[i] for i in order]])
        total = 0.0
        for i, token in enumerate((*tokens, engine.decoder.end_token)):
            (row,) = prefix_log_probabilities(engine.decoder, memory, [tokens[:i]], prompt)
            total += float(row[token])
    return math.exp(total)


def test_a_word_that_the_tokenizer_does_not_know_is_quoted(readers):
    (answer,) = extract(readers["btr"], "Жж")
    assert (answer.text, answer.start, answer.end) == ("Жж", 0, 2)


def test_characters_of_several_tokens_are_quoted_whole(readers):
    text = "½ ﬁrst"
    found = {(a.text, a.start, a.end) for a in extract(readers["btr"], text)}
    assert found == {("½", 0, 1), ("ﬁrst", 2, 6), ("½ ﬁrst", 0, 6)}


def test_an_answer_is_quoted_from_where_its_tokens_stand(readers):
    for reader in (readers["plain"], readers["btr"]):
        answers = extract(reader, "The bridge", "the lake")
        places = {a.text: (a.passage.id, a.start) for a in answers}
        assert places["The"] == ("p0", 0)
        assert places["the"] == ("p1", 0)
        cited = {a.text: {c.passage.id: c.start for c in a.citations} for a in answers}
        assert cited["the"] == {"p0": None, "p1": 0}


def test_all_passages_with_the_tokens_are_cited_the_one_looked_at_most_first(readers):
    texts = ["a wide lake and a wide river", "the wide bridge", "wide"]
    (answer,) = (a for a in extract(readers["btr"], *texts) if a.text == "wide")
    assert {c.passage.id: c.start for c in answer.citations} == {"p0": 2, "p1": 4, "p2": 0}
    weights = [c.weight for c in answer.citations]
    assert weights == sorted(weights, reverse=True)
    assert answer.passage == answer.citations[0].passage


def test_a_text_with_two_tokenizations_is_one_answer_with_the_greater_probability(readers):
    reader, texts = readers["btr"], ["(salt) is salt"]
    ids, _ = reader.text.encode("(salt)")
    alone, _ = reader.text.encode("salt")
    inside = tuple(ids[1:-1])
    assert inside != tuple(alone)
    answers = extract(reader, *texts)
    (salt,) = (a for a in answers if a.text == "salt")
    wanted = max(probability(reader, texts, t) for t in (inside, tuple(alone)))
    assert salt.probability == pytest.approx(wanted, rel=1e-3)


def test_spans_are_weighed_behind_what_answers_begin_with(readers):
    """Atlas: <extra_id_0> stands before every answer and is no part of it."""
    reader, text = readers["atlas"], "the wide salt lake"
    prompt = reader.text.literal("<extra_id_0>")
    assert len(prompt) == 1
    (query, cut) = reader.text.query(QUESTION, 48)
    assert (query[-1:], cut) == (prompt, False)
    answers = extract(reader, text, "Ada")
    assert {a.text for a in answers} > {"the", "wide", "salt", "lake", "Ada"}
    for answer in answers:
        tokens = tuple(reader.text.encode(answer.text)[0])
        wanted = probability(reader, [text, "Ada"], tokens, prompt)
        assert answer.probability == pytest.approx(wanted, rel=1e-3)
    found = [a.probability for a in answers]
    assert found == sorted(found, reverse=True)


TEXT = st.text(st.sampled_from("ab Жж½ﬁÅ(),.\n\t\u0301中the"), max_size=14)


@settings(max_examples=25)
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_answers_are_verbatim_whole_words_and_different(readers, texts):
    answers = extract(readers["btr"], *texts)
    assert len({a.text for a in answers}) == len(answers)
    for answer in answers:
        assert answer.text == answer.passage.text[answer.start : answer.end] == answer.text.strip()
        assert answer.text
        before, after = answer.passage.text[: answer.start], answer.passage.text[answer.end :]
        for a, b in ((before[-1:], answer.text[0]), (answer.text[-1], after[:1])):
            assert not (a.isalnum() and b.isalnum())


@pytest.mark.parametrize("mode", ["plain", "decomposed", "btr"])
def test_only_what_was_read_is_extracted(readers, mode):
    reader = readers[f"short {mode}"]
    texts = ["The river rises in snow, and ends at a wide salt lake.", "a b"]
    tokens = reader.text.passage("", texts[0], 12)
    assert tokens.truncated
    read = tokens.offsets[-1][1]
    assert 0 < read < 30
    for stored in (False, True) if mode != "plain" else (False,):
        answers = extract(reader, *texts, stored=stored)
        assert {a.passage.id for a in answers} == {"p0", "p1"}
        assert all(a.end <= read for a in answers if a.passage.id == "p0")


def test_nothing_is_extracted_from_a_passage_of_which_only_the_title_was_read(readers):
    passage = Passage("p", "Ada was queen.", "the king of the north and of the south lake")
    for reader in (readers["short plain"], readers["short btr"]):
        assert not reader.read(QUESTION, [passage], options=EXTRACT).answers


@pytest.mark.parametrize(
    ("text", "offsets", "begins", "ends"),
    [
        ("ab c", [(0, 1), (1, 2), (3, 4)], [True, False, True], [False, True, True]),
        # A bare space before an unknown word: tokenizers give both the word's first character.
        ("Жж", [(0, 1), (0, 2)], [True, False], [False, True]),
        ("½", [(0, 1), (0, 1), (0, 1)], [True, False, False], [False, False, True]),
        ("a b", [(0, 1), (2, 2), (2, 3)], [True, True, True], [True, False, True]),
        ("", [], [], []),
    ],
)  # fmt: skip
def test_word_edges(text, offsets, begins, ends):
    assert word_edges(text, offsets) == (begins, ends)
