"""Text to tokens for the Fusion-in-Decoder reader: templates, budgets, and where words begin.

A template such as ``title: {title} context: {text}`` is literals and fields with whitespace between
them. Literals and fields are encoded apart and joined, which gives what encoding the whole string
gives, since the tokenizers of T5 readers split at whitespace. So a field keeps its character
offsets, and a special token stands for itself in a template (Atlas asks with ``<extra_id_0>``) but
is plain text in a document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from btr.errors import UsageError

TITLE_TOKENS = 32
"""Most tokens of a title; longer ones are rare and would crowd out the text."""

_FIELD = re.compile(r"\{(\w*)\}")


def split_template(template: str, fields: Mapping[str, bool]) -> list[tuple[str, str]]:
    """Cut a template into its ``("literal" | "field", value)`` parts.

    Args:
        template: The template.
        fields: Names that may stand in it, and whether they must.

    Raises:
        UsageError: An unknown field, one that is missing or given twice, or one that touches other
            text.
    """
    parts: list[tuple[str, str]] = []
    end = 0
    for found in _FIELD.finditer(template):
        literal = template[end : found.start()]
        after = template[found.end() : found.end() + 1]
        if (literal and not literal[-1].isspace()) or (after and not after.isspace()):
            raise UsageError("a field of a template must stand between spaces",
                             where=repr(template)[:200], found=found.group())  # fmt: skip
        if literal.strip():
            parts.append(("literal", literal.strip()))
        parts.append(("field", found.group(1)))
        end = found.end()
    if rest := template[end:].strip():
        parts.append(("literal", rest))
    names = [value for kind, value in parts if kind == "field"]
    for name in names:
        if name not in fields or names.count(name) > 1:
            raise UsageError("bad field in a template", where=repr(template)[:200],
                             expected="each of " + ", ".join(fields) + " at most once",
                             found=f"{{{name}}}")  # fmt: skip
    for name, needed in fields.items():
        if needed and name not in names:
            raise UsageError("a field is missing in a template", where=repr(template)[:200],
                             expected=f"{{{name}}}")  # fmt: skip
    return parts


@dataclass(frozen=True, slots=True)
class PassageTokens:
    """A tokenised passage.

    Attributes:
        ids: At most the budget, the end token included.
        text_start: Place of the text's first token.
        offsets: ``(first character, one past the last)`` in the text, of each of its tokens that
            were kept, without the space around a word.
        truncated: The text had more tokens.
    """

    ids: list[int]
    text_start: int
    offsets: list[tuple[int, int]]
    truncated: bool


@dataclass(frozen=True, slots=True)
class SpanTokens:
    """The tokens of a passage's text that a reader has read, for spans to be taken from.

    Attributes:
        text: The whole text.
        ids: The tokens.
        offsets: ``(first character, one past the last)`` of each, without the space around a word.
        begins: Whether a span may begin with it.
        ends: Whether a span may end with it.
    """

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    begins: list[bool]
    ends: list[bool]


class FidText:
    """The input format of a Fusion-in-Decoder reader.

    Args:
        tokenizer: A fast tokenizer.
        query_template: With ``{question}``.
        passage_template: With ``{text}`` as its last part and, if wanted, ``{title}``. Without a
            title, ``{title}`` and the literal before it are left out.
        end_token: Closes every passage.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        query_template: str,
        passage_template: str,
        end_token: int,
    ) -> None:
        self.tokenizer, self.end_token = tokenizer, end_token
        backend = tokenizer.backend_tokenizer
        # Tokenizers may cut and pad unasked; whole texts are wanted.
        backend.no_truncation()
        backend.no_padding()
        self.query_template = query_template
        self.query_parts = self._parts(query_template, {"question": True})
        self.passage_parts = self._parts(passage_template, {"title": False, "text": True})
        if self.passage_parts[-1][0] != "text":
            raise UsageError("the text must come last in a passage's template",
                             where=repr(passage_template)[:200])  # fmt: skip

    def _parts(self, template: str, fields: Mapping[str, bool]) -> list[tuple[str, list[int]]]:
        """Template parts as ``(field or "", ids of a literal)``."""
        return [
            (value, []) if kind == "field" else ("", self.literal(value))
            for kind, value in split_template(template, fields)
        ]

    def literal(self, text: str) -> list[int]:
        """Ids of a template's own text, in which special tokens stand for themselves."""
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = False
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        backend.encode_special_tokens = True
        return ids

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and character offsets of a plain text; offsets leave out the space around a word."""
        encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        offsets = []
        for start, end in encoding.offsets:
            while start < end and text[start].isspace():
                start += 1
            while start < end and text[end - 1].isspace():
                end -= 1
            offsets.append((start, end))
        return encoding.ids, offsets

    def check_query_budget(self, budget: int, where: str) -> None:
        """Refuse a budget that cannot hold the template and at least one token of the question.

        Args:
            budget: Most tokens of a question in its template.
            where: The checkpoint that has it, for the message.

        Raises:
            UsageError: It cannot.
        """
        least = budget - self._room(budget) + 1
        if budget < least:
            raise UsageError("the query budget leaves no room for a question", where=where,
                             expected=f"at least {least}: the template {self.query_template!r} "
                             f"has {least - 1} tokens", found=str(budget),
                             todo="train with a larger --query-budget or a shorter "
                             "--query-template")  # fmt: skip

    def _room(self, budget: int) -> int:
        """Tokens of a question beside the template."""
        return budget - sum(len(ids) for _, ids in self.query_parts)

    def query(self, question: str, budget: int) -> tuple[list[int], bool]:
        """At most ``budget`` ids of the question in its template, and whether it was cut.

        What is cut is the question's end; the template stays whole.

        Raises:
            ValueError: :meth:`check_query_budget` would refuse the budget.
        """
        asked, _ = self.encode(question)
        room = self._room(budget)
        if room < 1:
            raise ValueError(f"a query budget of {budget} leaves no room for a question")
        ids = [i for field, part in self.query_parts for i in (asked[:room] if field else part)]
        return ids, len(asked) > room

    def passage(self, title: str, text: str, budget: int) -> PassageTokens:
        """A passage in its template, its text cut so that all fits in ``budget`` ids."""
        head: list[int] = []
        before: list[int] = []
        for field, literal in self.passage_parts[:-1]:
            if field == "title":
                # A passage without a title goes without the word "title:" too.
                head += [*before, *self.encode(title)[0][:TITLE_TOKENS]] if title.strip() else []
                before = []
            else:
                head, before = head + before, literal
        head += before
        ids, offsets = self.encode(text)
        room = max(0, budget - len(head) - 1)
        kept = [*head, *ids[:room]][: budget - 1]
        return PassageTokens([*kept, self.end_token], len(head), offsets[:room], len(ids) > room)

    def spans(self, text: str, read: int) -> SpanTokens:
        """The first ``read`` tokens of a passage's text, of which whole words may be taken."""
        ids, offsets = self.encode(text)
        begins, ends = word_edges(text, offsets)
        return SpanTokens(text, ids[:read], offsets[:read], begins[:read], ends[:read])

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


def word_edges(text: str, offsets: list[tuple[int, int]]) -> tuple[list[bool], list[bool]]:
    """Which tokens begin a word of ``text``, and which end one.

    A bare space, which some words begin with as a token of its own, begins one and ends none. A
    character may be several tokens ("½" as "1", a slash and "2"), which are not taken apart.
    """

    def inside(place: int) -> bool:
        """Whether a cut before character ``place`` would cut a word."""
        return 0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum()

    befores = [0, *(b for _, b in offsets[:-1])]
    afters = [*(a for a, _ in offsets[1:]), len(text)]
    begins = [
        before <= a and not inside(a) for before, (a, _) in zip(befores, offsets, strict=False)
    ]
    ends = [
        a < b <= after and not inside(b) for after, (a, b) in zip(afters, offsets, strict=False)
    ]
    return begins, ends
