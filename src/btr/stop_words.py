"""Which vocabulary tokens share one vector in a compressed store (method, section 5).

Their meaning depends little on where they stand. The list is frozen with the store: its coding file
names the ids.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ENGLISH = (
    "a about above after again against all also am an and any are as at be because been before "
    "being below between both but by can could did do does doing down during each few for from "
    "further had has have having he her here hers herself him himself his how i if in into is it "
    "its itself just may me might more most must my myself no nor not now of off on once only or "
    "other our ours ourselves out over own s same shall she should so some such t than that the "
    "their theirs them themselves then there these they this those through to too under until up "
    "upon very was we were what when where which while who whom whose why will with within without "
    "would you your yours yourself yourselves"
)
WORDS = frozenset(_ENGLISH.split())
_MARKS = ("##", "▁", "Ġ")  # WordPiece continues a word; SentencePiece and byte BPE begin one
_PUNCTUATION = "PS"  # first letters of the Unicode categories of punctuation and symbols


def is_shared(token: str) -> bool:
    """Whether a token is a stop word or punctuation."""
    for mark in _MARKS:
        # A continued word ("##s", "##an") is no word.
        if mark == "##" and token.startswith(mark):
            rest = token.removeprefix(mark)
            return bool(rest) and all(unicodedata.category(c)[0] in _PUNCTUATION for c in rest)
        token = token.removeprefix(mark)
    if token.lower() in WORDS:
        return True
    return bool(token) and all(unicodedata.category(c)[0] in _PUNCTUATION for c in token)


def shared_ids(vocabulary: Sequence[str]) -> NDArray[np.bool_]:
    """``[V]`` bool: which ids of a vocabulary share their vectors.

    Args:
        vocabulary: Every id's token.
    """
    return np.fromiter((is_shared(token) for token in vocabulary), np.bool_, len(vocabulary))
