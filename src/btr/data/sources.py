"""Files and folders to a stream of passages, with every line and document accounted for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from btr.data.cut import LONGEST_RECORD, count_words, cut
from btr.data.documents import Document, extract_text, read_document
from btr.data.ids import Claim, IdRegistry, check_id
from btr.data.isolate import ExtractLimits, Extractor
from btr.data.ledger import Ledger
from btr.data.lines import MAX_LINE_BYTES, EncodingWatch, RecordError, read_lines
from btr.data.passages import Passage
from btr.data.plan import LINE_FORMATS, SourceFile, SourcePlan, plan_sources
from btr.data.records import Record, TsvParser, parse_json_record
from btr.data.streams import StreamLimits, open_stream
from btr.errors import InputError

Progress = Callable[[int, int], None]
_PROGRESS_LINES = 256


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """How sources are read.

    Attributes:
        max_line_bytes: A longer line of a line format is rejected without being read whole.
        stream: How far a compressed file may expand.
        extract: What one document may cost.
    """

    max_line_bytes: int = MAX_LINE_BYTES
    stream: StreamLimits = field(default_factory=StreamLimits)
    extract: ExtractLimits = field(default_factory=ExtractLimits)


def read_passages(
    sources: Sequence[Path] | SourcePlan,
    *,
    options: IngestOptions | None = None,
    ledger: Ledger,
    progress: Progress | None = None,
) -> Iterator[Passage]:
    """Passages of files and folders, in an order that depends on names alone.

    The same sources give the same passages in the same order, so a resumed build replays the stream
    and skips what it has. Memory holds one document or one line and a bounded list of ids.

    Bad lines and documents go to the ledger and the stream goes on; the caller ends with
    :meth:`Ledger.check`.

    Args:
        sources: Files and folders (``.txt .md .html .pdf .jsonl .tsv``, each also ``.gz``), or the
            plan of them.
        options: Limits; None for the defaults.
        ledger: Takes the account.
        progress: Called now and then with bytes read and bytes in total.

    Returns:
        Passages. Ids of documents' passages are ``name#0``, ``name#1`` ...; those of line formats
        are the lines' own, and ``id:0``, ``id:1`` ... where a text over 200 words was cut.

    Raises:
        InputError: At once: a source is missing or of no known type. While reading: a file is not
            UTF-8, is damaged or fails, or nothing in the sources gave a passage.
        ResourceError: The disk for rejects or the list of ids is full.
    """
    plan = sources if isinstance(sources, SourcePlan) else plan_sources(sources)
    return _read_plan(plan, options or IngestOptions(), ledger, progress or _no_progress)


def _no_progress(done: int, total: int) -> None:
    """For callers that do not ask."""


def _read_plan(
    plan: SourcePlan, options: IngestOptions, ledger: Ledger, progress: Progress
) -> Iterator[Passage]:
    for name, reason in plan.skipped:
        ledger.skip(name, reason)
    done, total = 0, plan.total_bytes
    with IdRegistry() as ids, Extractor(options.extract) as extractor:
        for file in plan.files:
            if file.format in LINE_FORMATS:
                report = partial(_report, progress, done, total)
                yield from _read_lines(file, options, ids, ledger, report)
            else:
                yield from _read_document(file, options, ids, ledger, extractor)
            done += file.size
            progress(done, total)
    ledger.flush()
    counts = ledger.counts
    if not counts["passages"]:
        raise InputError(
            "the sources give no passages",
            where=ledger.first_reject,
            expected="at least one",
            found=f"{counts['read']} lines and documents, {counts['rejected']} of them rejected,"
            f" and {counts['skipped_files']} files skipped",
            todo="name files with text in them",
        )


def _report(progress: Progress, done: int, total: int, within: int) -> None:
    progress(done + within, total)


def _read_lines(
    file: SourceFile,
    options: IngestOptions,
    ids: IdRegistry,
    ledger: Ledger,
    report: Callable[[int], None],
) -> Iterator[Passage]:
    watch = EncodingWatch(file.name)
    tsv: TsvParser | None = None
    with open_stream(file.path, file.name, options.stream) as stream:
        for line in read_lines(stream, options.max_line_bytes):
            if line.number % _PROGRESS_LINES == 0:
                report(min(stream.consumed, file.size))
            if line.data is not None and not line.data.strip():
                ledger.blank_line()
                continue
            if file.format == "tsv" and tsv is None:
                tsv = TsvParser(line, file.name)
                continue
            ledger.record()
            try:
                if tsv is None:
                    record = parse_json_record(line, watch, ledger.ignore_field)
                else:
                    record = tsv.parse(line, watch)
                passages = record_passages(record, f"{file.name}#{line.number}")
                names = [p.id for p in passages if p.id != record.id]
                claim = ids.claim([record.id, *names], record.title, record.text,
                                  f"{file.name}, line {line.number}")  # fmt: skip
            except RecordError as error:
                ledger.reject(file.name, error.reason, line=line.number,
                              offset=line.offset + error.offset)  # fmt: skip
                continue
            yield from _settle(claim, passages, ledger, f"{file.name}, line {line.number}")


def _read_document(
    file: SourceFile,
    options: IngestOptions,
    ids: IdRegistry,
    ledger: Ledger,
    extractor: Extractor,
) -> Iterator[Passage]:
    ledger.record()
    try:
        check_id(file.name)
        if file.format == "txt":
            data = read_document(file.path, options.extract.max_input_bytes)
            document = extract_text(data, file.stem)
        else:
            document = extractor.extract(file.path, file.format, file.stem)
        passages = document_passages(document, file.name)
        if not passages:
            raise RecordError("the document is empty")
        check_id(passages[-1].id)  # the longest
        claim = ids.claim([p.id for p in passages], document.title, document.text, file.name)
    except RecordError as error:
        ledger.reject(file.name, error.reason, offset=error.offset)
        return
    yield from _settle(claim, passages, ledger, file.name)


def _settle(
    claim: Claim, passages: Sequence[Passage], ledger: Ledger, place: str
) -> Sequence[Passage]:
    """Book a good record; of a duplicate nothing is stored."""
    if claim.duplicate:
        ledger.duplicate()
        return ()
    if claim.twin:
        ledger.warn(f"{place}: its id looks like the one at {claim.twin} but has other bytes")
    ledger.store(len(passages))
    return passages


def record_passages(record: Record, document: str) -> list[Passage]:
    """A ready-made passage as it is, or its pieces if it is over 200 words.

    Raises:
        RecordError: The id has no room for a piece's number.
    """
    if len(record.text) <= LONGEST_RECORD or count_words(record.text) <= LONGEST_RECORD:
        return [Passage(record.id, record.text, record.title, document)]
    spans = cut(record.text)
    check_id(f"{record.id}:{len(spans) - 1}")  # the longest
    return [
        Passage(f"{record.id}:{n}", record.text[start:end], record.title, document, start)
        for n, (start, end) in enumerate(spans)
    ]


def document_passages(document: Document, name: str) -> list[Passage]:
    """Cut a document; each passage is titled ``Document: Section`` by the nearest heading.

    Headings at the start of a passage are left out of it where its title holds them already.
    """
    text = document.text
    headings = [
        (_skip_space(text, block.start, block.end), _skip_space(text, block.end), block.heading)
        for block in document.blocks
        if block.kind == "heading"
    ]
    passages: list[Passage] = []
    for start, end in cut(text, document.blocks):
        first = bisect_left(headings, (start,))
        below, inside = first, start
        while below < len(headings) and headings[below][0] == inside < end:
            inside = headings[below][1]
            below += 1
        section = headings[below - 1][2] if below else ""
        if inside < end:  # else it holds headings alone, which is all that there is to keep
            for at, after, heading in headings[first:below]:
                if at != start or heading not in (section, document.title):
                    break
                start = after
        title = f"{document.title}: {section}" if section else document.title
        if section == document.title:
            title = section
        passages.append(Passage(f"{name}#{len(passages)}", text[start:end], title, name, start))
    return passages


def _skip_space(text: str, start: int, end: int | None = None) -> int:
    """The first position from ``start`` that is not white space."""
    end = len(text) if end is None else end
    while start < end and text[start].isspace():
        start += 1
    return start
