"""Text to passages of about a hundred words that begin and end where sentences do.

A text is divided into *units* that are never cut (sentences; headings; lines of code), and units
are gathered into passages. A passage is a span of the text, so ``text[start:end]`` is verbatim;
between two passages there is white space alone.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Literal

from btr.data.sentences import sentence_ends

TARGET = 100
"""Words of a passage, as in DPR, FiD and Atlas."""
LONGEST_SENTENCE = 150
"""A sentence of more words is cut inside; anything shorter stays whole."""
LONGEST = 175
SHORTEST = 25
"""A rest of fewer words joins the passage before it."""
LONGEST_RECORD = 200
"""A passage that comes ready-made, in a line format, is cut if it has more words."""

# Chinese and Japanese have no spaces, and a run of base64 or a long address is many tokens: each
# ideograph or kana is a word here, and so are every 24 characters of a longer run.
_WORD = re.compile(
    r"[\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\s\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]{1,24}"
)
_PARAGRAPH_END = re.compile(r"\n(?:[^\S\n]*\n)+")
_LINE_END = re.compile(r"\n")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a document that has a kind of its own.

    Attributes:
        start: First character in the document's text.
        end: One past the last.
        kind: ``prose`` is divided into sentences, ``verbatim`` (code, markup) into lines; a
            ``heading`` stays with what follows it.
        heading: The plain text of a heading.
    """

    start: int
    end: int
    kind: Literal["prose", "heading", "verbatim"]
    heading: str = ""


_TOO_SHORT = 1000


class _Gap(IntEnum):
    """How good a place to cut lies after a unit; the value is what it is worth in words."""

    NEVER = -1000
    SENTENCE = 0
    PARAGRAPH = 30
    SECTION = 60


@dataclass(slots=True)
class _Unit:
    start: int
    end: int
    words: int
    gap: _Gap


def count_words(text: str) -> int:
    """Words as :func:`cut` counts them, CJK characters and long runs included."""
    return len(_WORD.findall(text))


def cut(text: str, blocks: Sequence[Block] | None = None) -> list[tuple[int, int]]:
    """Cut a text into passages of about 100 words at sentence ends.

    Ends of paragraphs and, with ``blocks``, of sections are preferred. A sentence of up to 150
    words is never divided; a rest of fewer than 25 words joins the passage before it.

    Args:
        text: A document's text; any string.
        blocks: The document's structure in order and without overlaps; what lies between blocks
            is in no passage. None takes the text as prose, its paragraphs ending at blank lines.

    Returns:
        Character spans in order, without overlaps, each beginning and ending with a character that
        is not white space. Together they hold every such character of the blocks.
    """
    return list(_gather(_units(text, paragraphs(text) if blocks is None else blocks)))


def _gather(units: Iterator[_Unit]) -> Iterator[tuple[int, int]]:
    """Spans of passages, from a window of units: a document of millions costs no more memory."""
    window: deque[_Unit] = deque()
    left = 0  # words in the window: all that is left of the text where that is little
    while True:
        while left < LONGEST + SHORTEST and (unit := next(units, None)) is not None:
            window.append(unit)
            left += unit.words
        if not window:
            return
        passage = [window.popleft() for _ in range(_best_end(window, left))]
        left -= sum(unit.words for unit in passage)
        yield passage[0].start, passage[-1].end


def _best_end(window: deque[_Unit], left: int) -> int:
    """How many units of the window, which hold ``left`` words, make the best passage."""
    words, best, rest, best_cost = 0, 1, 0, float("inf")
    for count, unit in enumerate(window, 1):
        words += unit.words
        if words > LONGEST and count > 1:
            break
        # Words over the target weigh more: a reader's budget may cut them off.
        cost = max(TARGET - words, 1.5 * (words - TARGET)) - unit.gap
        if 0 < left - words < SHORTEST or (words < SHORTEST and left > words):
            cost += _TOO_SHORT
        if cost < best_cost:
            best, rest, best_cost = count, left - words, cost
    # A short rest joins even where that passes the limit above.
    return len(window) if rest < SHORTEST else best


def paragraphs(text: str, start: int = 0, end: int | None = None) -> Iterator[Block]:
    """Blocks of prose between blank lines; some may hold nothing."""
    end = len(text) if end is None else end
    for match in _PARAGRAPH_END.finditer(text, start, end):
        yield Block(start, match.start(), "prose")
        start = match.end()
    yield Block(start, end, "prose")


def _units(text: str, blocks: Sequence[Block] | Iterator[Block]) -> Iterator[_Unit]:
    last: _Unit | None = None
    for block in blocks:
        if block.kind == "heading" and last is not None and last.gap is not _Gap.NEVER:
            last.gap = _Gap.SECTION
        for unit in _block_units(text, block):
            if last is not None:
                yield last
            last = unit
        if last is not None and last.gap is _Gap.SENTENCE:
            last.gap = _Gap.PARAGRAPH
    if last is not None:
        last.gap = _Gap.SECTION
        yield last


def _block_units(text: str, block: Block) -> Iterator[_Unit]:
    if block.kind == "heading":
        ends: Iterator[int] = iter(())
    elif block.kind == "verbatim":
        ends = (m.end() for m in _LINE_END.finditer(text, block.start, block.end))
    else:
        ends = sentence_ends(text, block.start, block.end)
    gap = _Gap.NEVER if block.kind == "heading" else _Gap.SENTENCE
    start = block.start
    for end in (*ends, block.end):
        for a, b, words in _pieces(text, start, end):
            yield _Unit(a, b, words, gap)
        start = end


def _pieces(text: str, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """A sentence without the white space around it, cut only if it is over the limit.

    Word by word with an iterator, so that a sentence of a million words costs no list of them.
    """
    while True:
        words = [m.span() for m in islice(_WORD.finditer(text, start, end), LONGEST_SENTENCE + 1)]
        if not words:
            return
        if len(words) <= LONGEST_SENTENCE:
            yield words[0][0], words[-1][1], len(words)
            return
        at = _inner_cut(text, words)
        yield words[0][0], words[at - 1][1], at
        start = words[at][0]


def _inner_cut(text: str, words: list[tuple[int, int]]) -> int:
    """The word before which to cut an over-long sentence: near the target, at the best mark."""

    def badness(i: int) -> float:
        before, after = words[i - 1][1], words[i][0]
        if "\n" in text[before:after]:
            mark = 0
        elif before == after:
            mark = 90  # inside a run of characters: only if there is no space at all
        else:
            mark = 15 if text[before - 1] in ";:,)" else 30
        return mark + abs(i - TARGET)

    return min(range(TARGET - 50, TARGET + 25), key=badness)
