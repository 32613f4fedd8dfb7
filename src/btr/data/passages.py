"""The passage: what is retrieved, stored and read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, about a hundred words, with its place in that document.

    Attributes:
        id: Unique in a corpus, 1 to 512 UTF-8 bytes.
        text: The exact text; never stripped or normalised after cutting.
        title: What the document is about, "" if unknown.
        document: What the user calls the document: the file's relative path, plus ``#line`` for
            formats with one document a line.
        start: Character offset of ``text`` in the document's text, so that
            ``document_text[start : start + len(text)] == text``.
    """

    id: str
    text: str
    title: str = ""
    document: str = ""
    start: int = 0
