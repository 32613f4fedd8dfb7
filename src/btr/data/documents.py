"""Documents to text with its structure: what a file says, its title, its headings.

Functions of a file's bytes. Those that run parsers over untrusted bytes (Markdown, HTML, PDF)
are called in a process of their own, see :mod:`btr.data.isolate`; their libraries are imported
when used.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from btr.data.cut import Block, paragraphs
from btr.data.lines import RecordError, decode_utf8, refuse_wide_encoding
from btr.data.streams import StreamLimits, open_stream
from btr.errors import InputError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_MAX_TITLE = 200
_FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(?:.*\n)*?(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)")
_LINE_END = re.compile(r"\r\n?|\n")
_LINE = re.compile(r"[^\n]+")
# A sign such as a pilcrow behind a heading, by which Sphinx and MkDocs let one link to it.
_LINKS_TO_HEADINGS = "//a[contains(concat(' ', @class, ' '), ' headerlink ')]"
_LEFTOVER_TITLE = re.compile(
    r"(?i)\A(microsoft word|untitled)\b|\.(docx?|tex|dvi|indd|odt|pages)\Z"
)
_SENTENCE_OVER = re.compile(r"[.!?:]['\"\u201d\u2019)]*\Z")


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a document.

    Attributes:
        text: What offsets count in: for text and Markdown the decoded file itself, a byte order
            mark included; for HTML and PDF the extracted text.
        title: Never empty.
        blocks: Structure for :func:`btr.data.cut.cut`.
    """

    text: str
    title: str
    blocks: tuple[Block, ...]


def read_document(path: Path, max_bytes: int) -> bytes:
    """All bytes of a document, expanded.

    Raises:
        RecordError: Too large, unreadable, damaged or expanding without measure.
    """
    try:
        with open_stream(path, path.name, StreamLimits()) as stream:
            data = stream.read_all(max_bytes)
    except InputError as error:
        raise RecordError(f"{error.what}: {error.found or error.where}") from None
    if data is None:
        raise RecordError(f"the document is over the limit of {max_bytes} bytes")
    return data


def decode_document(data: bytes) -> str:
    """The characters of a text file.

    Raises:
        RecordError: It is not UTF-8.
    """
    try:
        refuse_wide_encoding(data[:4096], "")
    except InputError as error:
        raise RecordError(f"not UTF-8 but {error.found}") from None
    return decode_utf8(data)


def extract_text(data: bytes, stem: str) -> Document:
    """A plain text file. Its title is a first line that stands alone and is no sentence."""
    text = decode_document(data)
    # The mark at the start counts as a character of the file but belongs to no passage.
    start = int(text.startswith("\ufeff"))
    first, _, rest = text[start : start + 2 * _MAX_TITLE].partition("\n")
    name = tidy_title(first)
    alone = not rest.partition("\n")[0].strip()
    if not (name and alone and len(first) <= _MAX_TITLE) or name[-1] in ".!?:;,":
        return Document(text, stem, tuple(paragraphs(text, start)))
    heading = Block(start, start + len(first), "heading", name)
    return Document(text, name, (heading, *paragraphs(text, heading.end)))


def extract_markdown(data: bytes, stem: str) -> Document:
    """A Markdown file, as it stands; headings, code and front matter are told apart.

    The title is the first heading. ``#`` in a code block or in front matter is none.
    """
    from markdown_it import MarkdownIt

    text = decode_document(data)
    front = _FRONT_MATTER.match(text)
    body = front.end() if front else int(text.startswith("\ufeff"))
    # The inline rules are for rendering; only the headings' text needs them.
    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])
    inline = MarkdownIt("commonmark")
    lines = [body, *(m.end() for m in _LINE_END.finditer(text, body)), len(text)]
    tokens = parser.parse(text[body:])

    blocks: list[Block] = []
    at = body
    for n, token in enumerate(tokens):
        kind = _MARKDOWN_KINDS.get(token.type)
        if kind is None or token.map is None or token.level:
            continue
        start, end = lines[token.map[0]], lines[token.map[1]]
        blocks += paragraphs(text, at, start)
        if kind == "heading":
            # The token after the opening of a heading is always its content.
            blocks.append(Block(start, end, "heading", _plain(inline, tokens[n + 1].content)))
        else:
            blocks.append(Block(start, end, "verbatim"))
        at = end
    blocks += paragraphs(text, at)
    title = next((b.heading for b in blocks if b.heading), stem)
    return Document(text, title, tuple(blocks))


_MARKDOWN_KINDS = {
    "heading_open": "heading",
    "fence": "code",
    "code_block": "code",
    "table_open": "table",
}


def _plain(inline: MarkdownIt, content: str) -> str:
    """The text of a heading without its markup."""
    tokens = inline.parseInline(content[: 10 * _MAX_TITLE])[0].children or []
    return tidy_title("".join(t.content if t.content else " " * t.type.endswith("break")
                              for t in tokens if t.type != "html_inline"))  # fmt: skip


def extract_html(data: bytes, stem: str) -> Document:
    """The main text of a web page, one block a line, with its headings.

    Raises:
        RecordError: There is no text.
    """
    import trafilatura

    found = trafilatura.bare_extraction(
        data, with_metadata=True, include_comments=False, prune_xpath=_LINKS_TO_HEADINGS
    )
    if found is None or isinstance(found, dict) or not (found.text or "").strip():
        raise RecordError("no text found in the page")
    text = clean_extracted(found.text or "")
    heads = {tidy_title("".join(head.itertext())) for head in found.body.iter("head")} - {""}
    blocks = []
    for match in _LINE.finditer(text):
        name = tidy_title(match.group()) if len(match.group()) <= _MAX_TITLE else ""
        if name in heads:
            blocks.append(Block(match.start(), match.end(), "heading", name))
        else:
            blocks.append(Block(match.start(), match.end(), "prose"))
    return Document(text, tidy_title(clean_extracted(found.title or "")) or stem, tuple(blocks))


def extract_pdf(data: bytes, stem: str, max_chars: int) -> Document:
    """The text of a PDF, page after page, words that a line end divided made whole.

    Raises:
        RecordError: Damaged, encrypted, without text (a scan), or over ``max_chars`` characters.
    """
    import pypdf
    from pypdf.errors import PyPdfError

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise RecordError("the PDF is encrypted")
        pages: list[str] = []
        size = 0
        for page in reader.pages:
            pages.append(page.extract_text())
            size += len(pages[-1])
            if size > max_chars:
                raise RecordError(f"over {max_chars} characters of text")
        title = str((reader.metadata and reader.metadata.title) or "")
    except (RecordError, MemoryError):
        raise
    except PyPdfError as error:
        raise RecordError(f"not a readable PDF: {error}") from None
    text = join_pages(clean_extracted(page) for page in pages)
    if not text.strip():
        raise RecordError("no text in the PDF; a scan needs text recognition first")
    title = tidy_title(clean_extracted(title))
    # Word processors and TeX leave the name of a source file here, which says less than ours.
    if _LEFTOVER_TITLE.search(title):
        title = ""
    return Document(text, title or stem, tuple(paragraphs(text)))


def join_pages(pages: Iterable[str]) -> str:
    """Pages to one text; one that stops inside a sentence goes on in the same paragraph."""
    parts: list[str] = []
    for page in pages:
        if page.strip():
            if parts:
                parts.append("\n\n" if _SENTENCE_OVER.search(parts[-1]) else "\n")
            parts.append(page.strip())
    return dehyphenate("".join(parts))


_HYPHEN_END = re.compile(r"(?<![^\W\d_])([^\W\d_]+)(-|\u2010|\u00ad)[ \t]*\n[ \t]*([^\W\d_]+)")
_COMPOUND = re.compile(r"[^\W\d_]+-[^\W\d_]+")


def dehyphenate(text: str) -> str:
    """Join words that a hyphen and a line end divide.

    The hyphen goes where the line break put it there, and stays in a compound: before a capital,
    and where the text elsewhere has the word with its hyphen. Digits are left alone.
    """
    compounds = {m.group().lower() for m in _COMPOUND.finditer(text)}

    def join(match: re.Match[str]) -> str:
        first, hyphen, second = match.groups()
        compound = f"{first}-{second}".lower() in compounds or not second[0].islower()
        return first + ("-" if compound and hyphen != "\u00ad" else "") + second

    return _HYPHEN_END.sub(join, text)


def clean_extracted(text: str) -> str:
    """Extracted text with plain line ends and no lone surrogates, which cannot be stored."""
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def tidy_title(text: str) -> str:
    """One line, single spaces, at most 200 characters."""
    return " ".join(text.split())[:_MAX_TITLE].rstrip()
