"""What holds for every test, and what many share: no network, repeatable examples, tiny readers."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
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


FIGURES: list[tuple[str, str]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--torture``: try faults as often as a release asks for."""
    parser.addoption("--torture", action="store_true", help="try faults many times, for a release")
    parser.addoption("--torture-seed", type=int, help="of the hostile files, to try the same again")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was tried how often."""
    for what, figure in FIGURES:
        terminalreporter.write_line(f"{figure:>11}  {what}")


@pytest.fixture(scope="session")
def torture(request: pytest.FixtureRequest) -> bool:
    """Whether faults are tried as often as a release asks for."""
    return bool(request.config.getoption("--torture"))


@pytest.fixture(scope="session")
def figure(torture: bool) -> Callable[[str, int], None]:
    """``figure(what, number)``: have a release's figure printed at the end."""

    def told(what: str, number: int) -> None:
        if torture:
            FIGURES.append((what, f"{number:,}"))

    return told


@pytest.fixture(scope="session")
def effort(torture: bool, figure: Callable[[str, int], None]) -> Callable[[str, int, int], int]:
    """How often a fault is tried: ``effort(what, every change, release)``.

    ``make torture`` takes the last number and prints it.
    """

    def chosen(what: str, gate: int, release: int) -> int:
        figure(what, release)
        return release if torture else gate

    return chosen


@pytest.fixture(scope="session")
def torture_seed(request: pytest.FixtureRequest, torture: bool) -> int:
    """Of what is drawn at random: 0, but in a release's run another each time, which is printed."""
    given = request.config.getoption("--torture-seed")
    seed = given if given is not None else random.SystemRandom().randrange(1 << 32) * torture
    if torture:
        FIGURES.append(("is the seed of the hostile files (--torture-seed)", str(seed)))
    return int(seed)


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
