"""Text, Markdown, HTML and PDF: exact offsets where the file is the text, titles and sections."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.data.cut import cut
from btr.data.documents import (
    Document,
    dehyphenate,
    extract_html,
    extract_markdown,
    extract_pdf,
    extract_text,
    join_pages,
)
from btr.data.isolate import ExtractLimits, Extractor
from btr.data.ledger import Ledger
from btr.data.lines import RecordError
from btr.data.passages import Passage
from btr.data.sources import IngestOptions, document_passages, read_passages


def sentence(word: str, words: int = 20) -> str:
    return f"{word.capitalize()} " + f"{word} " * (words - 2) + "ends."


def paragraph(word: str, sentences: int = 4) -> str:
    return " ".join(sentence(word) for _ in range(sentences))


def titles(passages: list[Passage]) -> list[str]:
    return [p.title for p in passages]


def passages_of(document: Document) -> list[Passage]:
    return document_passages(document, "name")


# Plain text


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_offsets_are_those_of_the_file(tmp_path: Path, start: str, end: str) -> None:
    text = start + (end * 2).join(["A Title", paragraph("alpha"), paragraph("béta"), "\x00."])
    (tmp_path / "x.txt").write_bytes(text.encode())
    passages = list(read_passages([tmp_path], ledger=Ledger()))
    assert titles(passages) == ["A Title"] * 2
    assert passages[0].text.startswith("Alpha")
    assert passages[1].text.endswith("ends." + end * 2 + "\x00.")
    assert all(text[p.start : p.start + len(p.text)] == p.text for p in passages)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Alone\n\nText.", "Alone"),
        ("  Alone  \r\n\r\nText.", "Alone"),
        ("A sentence.\n\nText.", "stem"),
        ("Wrapped\ntext.", "stem"),
        ("x" * 201 + "\n\nText.", "stem"),
        ("Only a line", "Only a line"),
        ("\n\nText", "stem"),
    ],
)
def test_a_text_file_is_titled_by_a_first_line_that_stands_alone(text: str, title: str) -> None:
    assert extract_text(text.encode(), "stem").title == title


def test_a_document_of_headings_alone_keeps_them() -> None:
    assert passages_of(extract_text(b"Only a line\n", "stem"))[0].text == "Only a line"


# Markdown

MARKDOWN = f"""---
title: front matter
# not a heading
---
# The *Doc* `code` [link](http://x)

{paragraph("intro")}

```sh
# not a heading either
run --it
```

Setext heading
--------------

{paragraph("setext")}

> # quoted heading

## Empty

### Deep

{paragraph("deep")}

## Short

Few words.

## Rest

Few words too.
"""


def test_markdown_titles_and_sections() -> None:
    document = extract_markdown(MARKDOWN.encode(), "stem")
    passages = passages_of(document)
    assert document.title == "The Doc code link"
    assert titles(passages) == [
        "The Doc code link",
        "The Doc code link: Setext heading",
        "The Doc code link: Deep",
    ]
    assert passages[0].text.startswith("Intro")
    assert passages[0].text.endswith("run --it\n```")
    assert passages[1].text.startswith("Setext setext")
    # A heading that the title does not name is kept, and so are those inside a passage.
    assert passages[2].text.startswith("## Empty\n\n### Deep\n\nDeep")
    assert passages[2].text.endswith("## Rest\n\nFew words too.")
    assert all(MARKDOWN[p.start : p.start + len(p.text)] == p.text for p in passages)
    assert "front matter" not in "".join(p.text for p in passages)


def test_markdown_without_a_heading_is_titled_by_its_file() -> None:
    assert extract_markdown(b"Just text.", "stem").title == "stem"


def test_markdown_tables_are_cut_between_rows() -> None:
    rows = "".join(f"| {n} | {sentence('cell', 8)} Then more. |\n" for n in range(30))
    passages = passages_of(extract_markdown(f"| a | b |\n|---|---|\n{rows}".encode(), "stem"))
    assert len(passages) > 2
    assert all(p.text.startswith("| ") and p.text.endswith(" |") for p in passages)


markdown_pieces = st.sampled_from(
    ["# Head\n", "Setext\n===\n", "```\n", "~~~\n", "    code\n", "> ", "- ", "1. ", "---\n",
     "\r\n", "\r", "\n", "\n\n", "text ", "| a | b |\n|---|---|\n", "<div>\n", "\t", "\x00",
     "\u2028", "\ufeff", "*a*", "[a]: b\n", "\\", "\x0c", "\x85"]
)  # fmt: skip


@given(st.lists(st.one_of(markdown_pieces, st.text(max_size=8)), max_size=30).map("".join))
def test_any_markdown_gives_verbatim_passages(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    try:
        document = extract_markdown(text.encode(), "stem")
    except RecordError as error:
        assert error.reason.startswith("not UTF-8")  # noqa: PT017 - NULs can look like UTF-16
        return
    assert document.text == text
    at = 0
    for start, end in cut(text, document.blocks):
        assert at <= start < end
        assert at == 0 or not text[at:start].strip()
        at = end
    for passage in passages_of(document):
        assert text[passage.start : passage.start + len(passage.text)] == passage.text
        assert passage.text
        assert passage.title


# HTML


def page(title: str, *body: str) -> bytes:
    return (
        f"<!doctype html><html><head><meta charset=utf-8><title>{title}</title></head><body>"
        f"<nav><a href=/>Home</a></nav><article>{''.join(body)}</article></body></html>"
    ).encode()


def test_html_gives_main_text_title_and_sections() -> None:
    data = page(
        "The Page",
        "<h1>The Page</h1><h2>First &amp; last</h2>",
        f"<p>{paragraph('älpha')}</p><script>evil()</script>",
        f"<h2>Second</h2><p>{paragraph('beta')}</p>",
    )
    document = extract_html(data, "stem")
    passages = passages_of(document)
    assert titles(passages) == ["The Page: First & last", "The Page: Second"]
    assert [p.text for p in passages] == [paragraph("älpha"), paragraph("beta")]
    assert all(document.text[p.start : p.start + len(p.text)] == p.text for p in passages)


def test_links_to_headings_are_no_part_of_them() -> None:
    sign = '<a class="headerlink" href="#first" title="Link to this heading">¶</a>'
    data = page("The Page", f"<h2>The{sign} first</h2><p>{paragraph('alpha')}</p>")
    document = extract_html(data, "stem")
    assert titles(passages_of(document)) == ["The Page: The first"]
    assert "¶" not in document.text


@pytest.mark.parametrize("data", [b"", b"\x00\xff", b"<html></html>"])
def test_html_without_text_is_rejected(data: bytes) -> None:
    with pytest.raises(RecordError):
        extract_html(data, "stem")


# PDF


def make_pdf(*pages: bytes, title: bytes = b"", trailer: bytes = b"") -> bytes:
    """A PDF written by hand; each page is the content of its stream, compressed."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * n) for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        b"<< /Title (%s) >>" % title,
    ]
    for n, content in enumerate(pages):
        packed = zlib.compress(content)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents %d 0 R /Resources"
            b" << /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>"
            % (5 + 2 * n)
        )
        objects.append(
            b"<< /Length %d /Filter /FlateDecode >> stream\n%s\nendstream" % (len(packed), packed)
        )
    data, offsets = b"%PDF-1.4\n", []
    for n, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (n, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return (
        data
        + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
        + b"trailer << /Size %d /Root 1 0 R /Info 3 0 R %s >>\nstartxref\n%d\n%%%%EOF"
        % (size, trailer, len(data))
    )


def shown(*lines: str) -> bytes:
    return b"BT /F 12 Tf 14 TL 50 750 Td " + b" ".join(
        b"(%s) Tj T*" % line.encode("latin-1") for line in lines
    ) + b" ET"  # fmt: skip


def test_pdf_text_title_and_line_ends() -> None:
    data = make_pdf(
        shown("The bridge was over-", "whelmed by the water and", "well-known; a well-", "known"),
        shown("fact. It ends here."),
        shown("Another page."),
        title=b"A Title",
    )
    document = extract_pdf(data, "stem", 10_000)
    assert document.title == "A Title"
    assert document.text == (
        "The bridge was overwhelmed by the water and\nwell-known; a well-known\nfact. It ends"
        " here.\n\nAnother page."
    )


@pytest.mark.parametrize("title", [b"", b" ", b"Microsoft Word - a", b"paper.tex", b"Untitled"])
def test_a_pdf_without_a_real_title_is_titled_by_its_file(title: bytes) -> None:
    assert extract_pdf(make_pdf(shown("Text."), title=title), "stem", 100).title == "stem"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a readable PDF"),
        (b"no pdf at all", "not a readable PDF"),
        (make_pdf(shown()), "no text in the PDF"),
        (make_pdf(shown("x" * 101)), "over 100 characters of text"),
        (make_pdf(shown("Text."))[:300], ""),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the parser warns of what it then refuses
def test_bad_pdfs_are_rejected(data: bytes, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        extract_pdf(data, "stem", 100)


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        ("exam-\nple", "example"),
        ("exam-  \n  ple goes", "example goes"),
        ("soft\u00ad\nened", "softened"),
        ("Jean-\nPaul", "Jean-Paul"),
        ("a self-made man, self-\nmade", "a self-made man, self-made"),
        ("from 1990-\n1995", "from 1990-\n1995"),
        ("a dash -\nand more", "a dash -\nand more"),
        ("no hyphen\nhere", "no hyphen\nhere"),
    ],
)
def test_hyphens_at_line_ends(text: str, joined: str) -> None:
    assert dehyphenate(text) == joined


def test_pages_join_inside_a_sentence() -> None:
    assert join_pages(["One", "", "two.", "Three"]) == "One\ntwo.\n\nThree"


# The process that parses


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PDF of 30 kB that takes minutes to parse."""
    path = tmp_path_factory.mktemp("heavy") / "heavy.pdf"
    path.write_bytes(make_pdf(b"BT /F 12 Tf " + b"(x) Tj T* " * 3_000_000 + b"ET"))
    return path


def test_a_document_over_a_limit_is_one_reject_and_the_next_is_read(
    tmp_path: Path, heavy: Path
) -> None:
    (tmp_path / "a.pdf").write_bytes(heavy.read_bytes())
    (tmp_path / "b.pdf").write_bytes(make_pdf(shown("Text.")))
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.4 nothing")
    (tmp_path / "d.md.gz").write_bytes(gzip.compress(b"# Head\n\nText."))
    (tmp_path / "e.html").write_bytes(b"<div>" * 1_000_000 + b"deep")
    (tmp_path / "f.html.gz").write_bytes(gzip.compress(page("T", f"<p>{paragraph('x')}</p>"))[:-9])
    (tmp_path / "g.txt").write_bytes("Übel.".encode("utf-16"))
    (tmp_path / "h.md").write_bytes(b"caf\xe9")
    options = IngestOptions(extract=ExtractLimits(cpu_seconds=1))
    with Ledger(tmp_path / "rejects", max_rejects=6) as ledger:
        passages = list(read_passages([tmp_path], ledger=ledger, options=options))
        ledger.check()
    assert [(p.id, p.title, p.text) for p in passages] == [
        ("b.pdf#0", "b", "Text."),
        ("d.md.gz#0", "Head", "Text."),
    ]
    rejects = (tmp_path / "rejects").read_text().splitlines()
    for line, expected in zip(
        rejects,
        ["a.pdf.*more than 1 s of processor time", "c.pdf.*not a readable PDF", "e.html",
         "f.html.gz.*truncated gzip", "g.txt.*UTF-16", "h.md.*invalid UTF-8: byte 0xe9 at byte 3"],
        strict=True,
    ):  # fmt: skip
        assert re.search(expected, line)


def rejection(path: Path, **limits: float) -> str:
    extractor = Extractor(ExtractLimits(**limits))  # type: ignore[arg-type]
    with extractor, pytest.raises(RecordError) as caught:
        extractor.extract(path, path.suffix[1:], "stem")
    return caught.value.reason


def test_each_limit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"a\n" * 4_000_000)
    assert rejection(path, wall_seconds=0) == "took longer than 0 s"
    assert rejection(path, max_input_bytes=10) == "the document is over the limit of 10 bytes"
    assert rejection(path, memory_bytes=160 << 20) == "needs more than 160 MiB of memory"
    path.write_bytes(b"word " * 1000)
    assert rejection(path, max_output_bytes=1000) == "over 1000 bytes of text"


def test_a_parser_that_dies_between_documents_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"# Head\n\nText.")
    with Extractor(ExtractLimits()) as extractor:
        first = extractor.extract(path, "md", "stem")
        assert extractor._process is not None
        extractor._process.kill()
        assert extractor.extract(path, "md", "stem") == first


def test_nothing_is_imported_from_a_folder_of_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["json.py", "pypdf.py", "btr.py"]:
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    (tmp_path / "a.pdf").write_bytes(make_pdf(shown("Text.")))
    monkeypatch.chdir(tmp_path)
    assert [p.text for p in read_passages([Path()], ledger=Ledger())] == ["Text."]
    assert not (tmp_path / "ran").exists()
