"""Text to tokens for the extractive reader: the template, in one place for training and reading.

Query: ``[CLS] question [SEP]``. Passage: ``title [SEP] text [SEP]``, without a title ``text
[SEP]``. Text is encoded without special tokens, so ``[SEP]`` written in a document stays text.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

TITLE_TOKENS = 32
"""Most tokens of a title; longer ones are rare and would crowd out the text."""

Offsets = list[tuple[int, int]]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], Offsets]:
    """Ids and character offsets of ``text``, with no special token in or around it."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def tokenize_query(
    tokenizer: PreTrainedTokenizerBase, question: str, query_budget: int
) -> list[int]:
    """``[CLS] question [SEP]`` as ids, the question cut so that all fit in ``query_budget``."""
    ids, _ = encode_text(tokenizer, question)
    return [tokenizer.cls_token_id, *ids[: query_budget - 2], tokenizer.sep_token_id]


def tokenize_passage(
    tokenizer: PreTrainedTokenizerBase, title: str, text: str, passage_budget: int
) -> tuple[list[int], int, bool, Offsets]:
    """``title [SEP] text [SEP]`` as ids.

    Returns:
        At most ``passage_budget`` ids; the position of the text's first token; whether the text
        was cut; the character offsets in ``text`` of the tokens that were kept.
    """
    head = encode_text(tokenizer, title)[0][:TITLE_TOKENS] if title else []
    if head:
        head = [*head, tokenizer.sep_token_id]
    ids, offsets = encode_text(tokenizer, text)
    room = passage_budget - len(head) - 1
    return [*head, *ids[:room], tokenizer.sep_token_id], len(head), len(ids) > room, offsets[:room]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a folder, for whole texts and nothing but their tokens.

    Sentence encoders ship tokenizers that cut at 128 tokens and pad up to them, without a word.
    Both are switched off, and ``[SEP]`` and the like in a text are read as text.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, use_fast=True)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.encode_special_tokens = True
    return tokenizer
