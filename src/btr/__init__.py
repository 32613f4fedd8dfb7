"""Answers over your own documents from passage states computed once and kept as 1-bit vectors.

The names below are the library's public ones. Nothing heavy is imported before one of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from btr.answering import Answerer, Reply
    from btr.bits import pack_signs, unpack_signs
    from btr.data.passages import Passage
    from btr.data.questions import Question, read_questions
    from btr.data.sources import IngestOptions, read_passages
    from btr.errors import BtrError
    from btr.indexing import build_index
    from btr.readers.base import Answer, Reader, Reading
    from btr.readers.bert import BertReader
    from btr.readers.load import load_reader
    from btr.retrieval.hybrid import HybridRetriever
    from btr.store.check import verify
    from btr.store.format import PassageState
    from btr.store.reader import TokenStore

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Answerer",
    "BertReader",
    "BtrError",
    "HybridRetriever",
    "IngestOptions",
    "Passage",
    "PassageState",
    "Question",
    "Reader",
    "Reading",
    "Reply",
    "TokenStore",
    "build_index",
    "load_reader",
    "pack_signs",
    "read_passages",
    "read_questions",
    "unpack_signs",
    "verify",
]

# The same as the imports above, for when a name is used; a test compares the two.
_HOMES = {
    "Answer": "btr.readers.base",
    "Answerer": "btr.answering",
    "BertReader": "btr.readers.bert",
    "BtrError": "btr.errors",
    "HybridRetriever": "btr.retrieval.hybrid",
    "IngestOptions": "btr.data.sources",
    "Passage": "btr.data.passages",
    "PassageState": "btr.store.format",
    "Question": "btr.data.questions",
    "Reader": "btr.readers.base",
    "Reading": "btr.readers.base",
    "Reply": "btr.answering",
    "TokenStore": "btr.store.reader",
    "build_index": "btr.indexing",
    "load_reader": "btr.readers.load",
    "pack_signs": "btr.bits",
    "read_passages": "btr.data.sources",
    "read_questions": "btr.data.questions",
    "unpack_signs": "btr.bits",
    "verify": "btr.store.check",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'btr' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
