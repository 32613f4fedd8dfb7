# ruff: noqa: RUF001 - quotes, dashes and full stops of many scripts are the subject here
"""Where sentences end: full stops told from abbreviations, initials, decimals and list numbers.

Rules, not a model: they are quick, the same everywhere, and wrong only where a wrong guess costs
little. In doubt there is no end, since a passage that is a sentence longer is better than half a
sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Runs are matched possessively and only from their start, so that a megabyte of dots is linear.
_END = re.compile(
    r"(?<![.!?…])(?P<mark>[.!?…]++)[\"'”’»)\]*_]*+(?:\[\w{1,8}\])*+(?=\s)"
    r"|[。！？｡][」』”’）]*+|[।॥؟۔]+"
    r"|\n(?=[^\S\n]*+(?:[-*+•‣]|\d{1,3}[.)])[^\S\n])"
)
_NEXT = re.compile(r"\s*+[\"'“‘«(\[*_]*+")
_LAST_WORD = re.compile(r"[^\s(\[\"“‘«—–/]*\Z")
_LOOK_BACK = 40


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BEFORE_A_NAME = _words(
    "dr mr mrs ms mx prof gen lt maj capt cmdr adm sgt cpl pvt rev hon gov sen rep pres supt insp"
    " messrs mme mlle sra e.g i.e viz cf vs approx ca resp incl esp"
)
"""Abbreviations that something always follows."""
_OFTEN_BEFORE_A_NAME = _words("st ste mt ft col fr dept univ bros al eds jr sr inc ltd co corp etc")
"""Abbreviations that may also end a sentence."""
_BEFORE_A_NUMBER = _words(
    "no nos nr vol vols fig figs eq eqs ch chap sec sect art pp p pt para ref refs tab app jan feb"
    " mar apr jun jul aug sep sept oct nov dec ed lat long alt b d r fl est"
)
"""Abbreviations before a number; before anything else their stop may end a sentence."""
_STARTERS = _words(
    "the a an in on at by for from with to of as and but or so if when while after before since"
    " although though because he she it they we you i his her its their our this that these those"
    " there here then however moreover meanwhile today later during both some many most all each no"
    " not one two what who where why how under until despite according"
)
"""Words that begin a sentence more often than they follow "U.S." inside one."""
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]\Z")
_WORD = re.compile(r"[^\W_]+(?=[\s,])")


def sentence_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Positions in ``text[start:end]`` where a sentence ends, its closing marks included.

    The end of the range itself is not among them.
    """
    for match in _END.finditer(text, start, end):
        if match["mark"] is None or _is_end(text, match, start, end):
            yield match.end()


def _is_end(text: str, match: re.Match[str], start: int, end: int) -> bool:
    following = _NEXT.match(text, match.end(), end)
    at = following.end() if following else match.end()
    if at >= end:
        return True
    after = text[at]
    # Lower case goes on; scripts without case are neither upper nor lower.
    if after.islower() or after in ",;:)]":
        return False
    if match["mark"] != ".":
        return True
    return not _is_abbreviation(text, match.start(), at, start, end)


def _is_abbreviation(text: str, stop: int, at: int, start: int, end: int) -> bool:
    """Whether the full stop at ``stop`` belongs to the word before it; ``at`` is the next word."""
    found = _LAST_WORD.search(text, max(start, stop - _LOOK_BACK), stop)
    word = found.group() if found else ""
    lower = word.lower()
    if lower in _BEFORE_A_NAME:
        return True
    if text[at].isdigit() and lower in _BEFORE_A_NUMBER:
        return True
    if word.isdecimal():
        # "1. Open the lid": a number in front of a list item, not a sentence "1."
        before = text[max(start, stop - _LOOK_BACK) : stop - len(word)]
        before = before.rpartition("\n")[2].rstrip()
        return not before or before[-1] in ".!?:;"
    if lower in _OFTEN_BEFORE_A_NAME or _INITIALS.match(word):
        following = _WORD.match(text, at, end)
        return following is None or following.group().lower() not in _STARTERS
    return False
