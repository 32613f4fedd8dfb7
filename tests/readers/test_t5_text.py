"""Questions and passages in their templates, within their budgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.errors import UsageError
from btr.readers.t5_text import FidText
from tiny_t5 import make_t5, t5_tokenizer

TEMPLATES = ("question: {question}", "{question}", "question: {question} answer: <extra_id_0>")


@pytest.fixture(scope="module")
def tokenizer():
    return t5_tokenizer()


@given(st.text("abc lake?", max_size=30), st.integers(1, 40), st.sampled_from(TEMPLATES))
def test_a_query_has_its_template_and_what_fits_of_the_question(tokenizer, asked, budget, template):
    text = FidText(tokenizer, template, "{text}", 1)
    before, after = ([i for part in template.split("{question}")[k : k + 1] if part.strip()
                      for i in text.literal(part.strip())] for k in (0, 1))  # fmt: skip
    room, whole = budget - len(before) - len(after), text.encode(asked)[0]
    if room < 1:
        with pytest.raises(ValueError, match="no room"):
            text.query(asked, budget)
        with pytest.raises(UsageError, match="no room"):
            text.check_query_budget(budget, "here")
        return
    text.check_query_budget(budget, "here")
    ids, cut = text.query(asked, budget)
    assert ids == [*before, *whole[:room], *after]
    assert len(ids) <= budget
    assert cut == (len(whole) > room)


def test_a_checkpoint_whose_budget_holds_no_question_is_not_loaded(tmp_path, tokenizer):
    template = "question: {question}"
    least = len(FidText(tokenizer, template, "{text}", 1).literal("question:")) + 1
    assert make_t5(tmp_path / "fits", tokenizer, "plain", 0, query_budget=least)
    with pytest.raises(UsageError) as refused:
        make_t5(tmp_path / "small", tokenizer, "plain", 0, query_budget=least - 1)
    line = str(refused.value)
    assert "the query budget leaves no room for a question: small" in line
    assert f"at least {least}" in line
    assert f"found {least - 1}" in line
    assert "--query-budget" in line
