"""Text to tokens: whole texts, and nothing but their tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from btr.readers.bert_text import TITLE_TOKENS, load_tokenizer, tokenize_passage, tokenize_query


@pytest.fixture
def cutting(tmp_path: Path, tokenizer) -> Path:
    """A tokenizer that cuts and pads, as sentence encoders ship them."""
    folder = tmp_path / "cutting"
    tokenizer.save_pretrained(folder)
    backend = load_tokenizer(folder).backend_tokenizer
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_that_cuts_and_pads_is_told_not_to(cutting):
    tokenizer = load_tokenizer(cutting)
    ids = tokenize_query(tokenizer, "who was it", 48)
    assert len(ids) == 5
    assert tokenizer.pad_token_id not in ids
    ids, start, truncated, offsets = tokenize_passage(tokenizer, "River", "the lake " * 50, 384)
    assert (len(ids), start, truncated, len(offsets)) == (2 + 100 + 1, 2, False, 100)
    assert tokenizer.pad_token_id not in ids


def test_budgets_are_kept_and_the_last_token_is_sep(tokenizer):
    ids = tokenize_query(tokenizer, "the lake " * 40, 24)
    assert len(ids) == 24
    assert ids[-1] == tokenizer.sep_token_id
    ids, start, truncated, offsets = tokenize_passage(tokenizer, "king " * 90, "the lake " * 90, 96)
    assert len(ids) == 96
    assert start == TITLE_TOKENS + 1
    assert truncated
    assert len(offsets) == 96 - start - 1
    assert ids[-1] == ids[start - 1] == tokenizer.sep_token_id


def test_without_a_title_the_text_comes_first(tokenizer):
    ids, start, _, offsets = tokenize_passage(tokenizer, "", "the lake", 96)
    assert start == 0
    assert offsets == [(0, 3), (4, 8)]
    assert len(ids) == 3
