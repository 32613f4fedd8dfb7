"""Which passages get states, where a store is to have them for a part of its corpus only."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from btr.data.passages import Passage
from btr.errors import UsageError
from btr.retrieval import lexical

DEPTH = 40
"""Passages of a question that count as retrieved."""


def choose_passages(
    passages: Iterable[Passage], questions: Sequence[str], top: int
) -> NDArray[np.bool_]:
    """The passages that questions find most; after them those at the beginning of documents.

    Args:
        passages: All of the corpus, in ordinal order; read once.
        questions: That users have asked; may be empty.
        top: How many to choose.

    Returns:
        ``[N]`` bool by ordinal, with ``min(top, N)`` set.
    """
    starts: list[int] = []

    def noted() -> Iterable[Passage]:
        for passage in passages:
            starts.append(passage.start)
            yield passage

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "lexical"
        lexical.build(folder, noted())
        found = np.zeros(len(starts), np.int64)
        if questions:
            index = lexical.LexicalIndex([folder])
            for question in questions:
                for ordinal, _ in index.search(question, DEPTH):
                    found[ordinal] += 1
    order = np.lexsort((np.arange(len(starts)), np.asarray(starts), -found))
    chosen = np.zeros(len(starts), np.bool_)
    chosen[order[:top]] = True
    return chosen


def parse_choice(text: str) -> int:
    """``top:N`` to N.

    Raises:
        UsageError: It is not of that form.
    """
    kind, colon, number = text.partition(":")
    if kind != "top" or not colon or not number.isdecimal() or not int(number):
        raise UsageError("bad choice of states", expected="top:N, as top:100000", found=text)
    return int(number)
