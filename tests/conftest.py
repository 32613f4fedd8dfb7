"""What holds for every test, and what many share: no network, repeatable examples, tiny readers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from btr.data.passages import Passage
    from btr.readers.bert import BertReader

# Before transformers is imported anywhere: a test that would download something must fail.
os.environ["HF_HUB_OFFLINE"] = "1"

# Shared machines stall for seconds; a test fails by its result, never by its pace.
settings.register_profile("btr", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("btr")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--torture``: try faults as often as a release asks for."""
    parser.addoption("--torture", action="store_true", help="try faults many times, for a release")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A small WordPiece tokenizer."""
    from tiny_readers import tiny_tokenizer

    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def reader(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> BertReader:
    """A tiny ``btr`` reader of two lower layers and two joint ones, for stores to be made with."""
    from tiny_readers import make_reader

    return make_reader(tmp_path_factory.mktemp("reader") / "btr", tokenizer, "btr", 2)


@pytest.fixture(scope="session")
def passages() -> list[Passage]:
    """Five passages that differ in length and title."""
    from tiny_readers import PASSAGES

    return PASSAGES
