"""Cloze questions: answerable from another passage, of the right articles, repeatable."""

from __future__ import annotations

from btr.train.cloze import cloze_questions, group_articles, names, sentences

TEXTS = [
    "The old bridge over the river was designed by Ada Stone in 1873. It has nine arches.",
    "Ada Stone also designed a railway station. The bridge over the river is her largest work.",
    "The town has a market.",
]


def test_names_leave_out_the_title_and_a_lone_first_word():
    sentence = "Bridges of Old Town were drawn by Ada Stone, Vienna, in 1873."
    found = [sentence[a:b] for a, b in names(sentence, "Vienna")]
    assert found == ["Bridges of Old Town", "Ada Stone", "1873"]
    assert [*names("Bridges were long.", "")] == []


def test_sentences_cover_the_text():
    assert list(sentences(TEXTS[0])) == [
        "The old bridge over the river was designed by Ada Stone in 1873.",
        "It has nine arches.",
    ]


def test_every_question_is_answered_by_another_passage():
    records = [r for seed in range(8) for r in cloze_questions({"Bridge": TEXTS}, seed=seed)]
    assert records
    for record in records:
        (answer,), (context,) = record["answers"], record["ctxs"]
        assert answer in context["text"]
        source = record["question"].replace("what", answer, 1)
        assert source not in context["text"]
        assert any(source in text for text in TEXTS)
    again = [r for seed in range(8) for r in cloze_questions({"Bridge": TEXTS}, seed=seed)]
    assert records == again


def test_excluded_passages_and_lone_ones_are_left_out():
    passages = [
        {"id": "a", "title": "T", "text": "1"},
        {"id": "b", "title": "T", "text": "2"},
        {"id": "c", "title": "T", "text": "3"},
        {"id": "d", "title": "U", "text": "4"},
        {"id": "e", "title": "", "text": "5"},
    ]
    assert group_articles(passages, {"b"}) == {"T": ["1", "3"]}
