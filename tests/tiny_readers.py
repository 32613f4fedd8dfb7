"""Tiny random BERTs with a real WordPiece tokenizer, saved as Hugging Face folders."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizerFast

from btr.binarize import PostNormBinarizer, WordResidual
from btr.data.passages import Passage
from btr.readers.bert import BertReader
from btr.readers.bert_checkpoint import BertReaderConfig, save_checkpoint
from btr.readers.bert_network import SplitBert
from btr.store.format import Guesses, PassageState

# fmt: off
WORDS = [
    "the", "river", "rises", "in", "snow", "and", "ends", "at", "a", "wide", "salt", "lake",
    "where", "birds", "rest", "who", "when", "was", "is", "built", "first", "bridge", "over",
    "stone", "by", "king", "queen", "harald", "ada", "north", "south", "year", "of", "it", "long",
]
# fmt: on
LAYERS = 4


def tiny_tokenizer(folder: Path) -> BertTokenizerFast:
    """A WordPiece tokenizer over single characters and a few words."""
    characters = list(string.ascii_lowercase + string.digits + string.punctuation)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    pieces += [f"##{c}" for c in string.ascii_lowercase + string.digits]
    pieces += sorted(set(WORDS) - set(pieces))
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return BertTokenizerFast(vocab=str(folder / "vocab.txt"))


def tiny_model(
    tokenizer: BertTokenizerFast, seed: int = 0, width: int = 32, heads: int = 4
) -> BertForQuestionAnswering:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    return BertForQuestionAnswering(config).eval()


def make_reader(
    folder: Path,
    tokenizer: BertTokenizerFast,
    mode: str,
    split_layer: int,
    seed: int = 0,
    rule: str = "calibrated",
) -> BertReader:
    model = tiny_model(tokenizer, seed)
    binarizer: PostNormBinarizer | WordResidual | None = None
    if mode == "btr":
        binarizer = WordResidual(32) if rule == "words" else PostNormBinarizer(32)
    network = SplitBert(model, split_layer, 24, binarizer=binarizer)
    config = BertReaderConfig(mode, split_layer, query_budget=24, passage_budget=96, rule=rule)
    save_checkpoint(folder, network, tokenizer, config, dtype=torch.float32)
    return BertReader.from_pretrained(folder)


def sure_guesses(state: PassageState, dim: int) -> PassageState:
    """The same state, its bits inverted and known by guesses alone."""
    bits = state.rows[:, : dim // 8]
    rows = np.concatenate([~bits, state.rows[:, dim // 8 :]], axis=1)
    signs = np.unpackbits(bits, axis=1).astype(np.int8) * 2 - 1
    guesses = Guesses(np.arange(len(rows)), (127 * signs).astype(np.int8))
    return PassageState(rows, state.text_start, state.truncated, guesses)


TEXTS = [
    ("River", "The river rises in snow, and ends at a wide salt lake where birds rest."),
    ("", "The first bridge over it was built of stone in the year 1172 by king Harald."),
    ("Queen Ada", "Ada was queen of the north."),
    ("Bridge", "It is long. " * 12),
    ("South", "The south lake is salt; the north lake is wide. When was it first built?"),
]
PASSAGES = [
    Passage(f"p{i}", text, title, f"doc{i}.txt", 10 * i) for i, (title, text) in enumerate(TEXTS)
]
