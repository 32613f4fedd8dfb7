"""BM25 over title and text: a tantivy index whose files are the same in every build.

tantivy names segments by random UUIDs, and merges them in background threads in an order that
depends on timing. A store must be byte-identical when it is built again, so an index is put
together here from parts that are each free of chance:

1. the passages are cut into runs of a fixed size, and each run is indexed alone, by one thread, in
   one commit, with too few segments for tantivy to merge any: the *contents* of the files then
   depend on the passages only;
2. the segments of all runs are moved into one folder, ordered by their first ordinal, and renamed
   to UUIDs that count from 1 (no segment file holds its own name); ``meta.json`` is written anew
   with these names. Lock files and ``.managed.json`` (for tantivy's garbage collector) are dropped.

tantivy checks no checksum when it reads, and a flipped bit ends in a panic or in other passages.
So ``digests.json`` names every file with its size and SHA-256, compared whenever an index is
opened.

BM25 statistics are summed over segments by tantivy, so scores do not depend on where the cuts are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tantivy

from btr import files
from btr.errors import CorruptError, IncompatibleError, InputError, ResourceError, UsageError

if TYPE_CHECKING:
    from btr.data.passages import Passage

# A run ends at whichever comes first. The heap is never reached by running text (60 MB of it need
# 40 MB); text in which every word is new needs 17 times its size, and is then flushed as up to five
# segments, below the eight from which tantivy starts to merge.
RUN_PASSAGES = 262_144
RUN_BYTES = 1 << 27
HEAP_BYTES = 512_000_000
# Attempts, 10 ms apart, to remove a folder that tantivy may still write to.
REMOVALS = 100

# The name stands in meta.json: change it whenever the analyser below changes.
ANALYSER = "btr_english_1"
# Title and text share one field, so that a title's word counts like one of the text. On training
# questions from NQ this found more than a title field of its own at any boost from 0 to 1 (an
# answer among the first 20 for 93.7 % against 87.7 %); on SQuAD and WebQuestions they were equal.
FIELD = "passage"
ORDINAL = "ordinal"

META = "meta.json"
DIGESTS = "digests.json"
MAX_DIGESTS_BYTES = 64 << 20

# Words that say what kind of question it is, not what it is about. They stay in the index, and
# are left out of a question that has any other word.
STOP_WORDS = (
    "a about am an and are as at be been being but by can did do does for from had has "
    "have he her him his how i if in into is it its ll me my no not of on or our re s she "
    "such t than that the their them then there these they this to too us ve very was we "
    "were what when where which who whom whose why will with you your"
)


def build(folder: Path, passages: Iterable[Passage], *, first: int = 0) -> int:
    """Index passages; the ordinal of a passage is its place in the stream, counted from ``first``.

    Memory is bounded by the run size, disk by the finished index. The files are equal, byte for
    byte, for equal passages under one version of tantivy.

    Args:
        folder: Empty or absent; the index files are written right into it.
        passages: A stream; read once.
        first: Ordinal of the first passage.

    Returns:
        The number of passages indexed.

    Raises:
        InputError: ``folder`` holds something.
        ResourceError: No space left, or another failure to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InputError(
            "the folder for a lexical index is not empty", where=str(folder), todo="empty it"
        )
    stream = iter(passages)
    segments: list[_Segment] = []
    total = 0
    with _passing_folder("building-", folder) as scratch:
        while True:
            part = scratch / str(total)
            part.mkdir()
            count = _index_run(part, stream, first=first + total)
            meta = json.loads((part / META).read_bytes())
            if not count:
                break
            segments += _segments(part, meta)
            total += count
        segments.sort(key=lambda segment: segment.first)
        for number, segment in enumerate(segments, start=1):
            for file in segment.folder.glob(f"{segment.name}.*"):
                file.rename(folder / f"{_segment_id(number).hex}{file.suffix}")
    meta["segments"] = [
        {"segment_id": str(_segment_id(number)), "max_doc": segment.passages, "deletes": None}
        for number, segment in enumerate(segments, start=1)
    ]
    meta["opstamp"] = total
    _write_json(folder / META, meta)
    sizes = {name: files.file_size(folder / name) for name, _ in files.list_tree(folder)}
    entries = {
        name: {"bytes": size, "sha256": files.digest_file(folder / name, size)}
        for name, size in sizes.items()
    }
    _write_json(folder / DIGESTS, entries)
    return total


class LexicalIndex:
    """Finished indexes of the parts of a corpus, searched as one. Safe to share between threads.

    Files are memory-mapped. tantivy wants to create a lock file wherever it opens an index, and
    stores may be read-only and allow no file that their manifest does not name. So it is shown a
    passing folder of links; the mappings outlive the folder.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Open the indexes in ``folders``.

        Raises:
            InputError: There is no index.
            CorruptError: A file is damaged or missing.
            IncompatibleError: It was made with another analyser or by another version of tantivy.
        """
        if not folders:
            raise InputError("no lexical index", todo="build the store again")
        with _passing_folder("btr-lexical-") as view:
            _join(folders, view)
            try:
                index = tantivy.Index.open(str(view))
                # The default reader watches the folder for commits, which never come.
                index.config_reader("manual")
                self._searcher = index.searcher()
            except ValueError as error:
                # The files are as they were written, so it is the reader that has changed.
                raise IncompatibleError(
                    f"the installed tantivy cannot read the lexical index ({error})",
                    where=", ".join(map(str, folders)),
                    todo="install the tantivy that built it, or build the store again",
                ) from error
            self._schema = index.schema
        self._analyser = _analyser()
        self._stop_words = frozenset(self._analyser.analyze(STOP_WORDS))

    def __len__(self) -> int:
        """The number of passages."""
        return self._searcher.num_docs

    def search(self, question: str, k: int) -> list[tuple[int, float]]:
        """The k passages with the highest BM25 score for any of the question's words.

        The question is split by the analyser and never parsed: no character in it has a meaning.

        Args:
            question: Any text.
            k: At least 1.

        Returns:
            ``(ordinal, score)``, best first, equal scores by the smaller ordinal; fewer than k
            where fewer passages share a word with the question.

        Raises:
            UsageError: k is below 1.
        """
        if k < 1:
            raise UsageError("the number of passages must be at least 1", found=str(k))
        terms = self._terms(question)
        limit = min(k, len(self))
        if not terms or not limit:
            return []
        query = tantivy.Query.boolean_query(
            [
                (
                    tantivy.Occur.Should,
                    tantivy.Query.term_query(self._schema, FIELD, term, index_option="freq"),
                )
                for term in terms
            ]
        )
        hits = self._searcher.search(query, limit=limit, count=False).hits
        ordinals = self._searcher.fast_field_values(ORDINAL, [address for _, address in hits])
        found = zip((int(o) for o in ordinals if o is not None), (s for s, _ in hits), strict=True)
        return sorted(found, key=lambda hit: (-hit[1], hit[0]))

    def _terms(self, question: str) -> list[str]:
        """Distinct terms of a question; stop words only where it has nothing else."""
        terms = list(dict.fromkeys(self._analyser.analyze(_encodable(question))))
        return [term for term in terms if term not in self._stop_words] or terms


@dataclass(frozen=True, slots=True)
class _Segment:
    """A finished tantivy segment: its files are ``folder/name.*``."""

    folder: Path
    name: str
    first: int  # ordinal of its first passage; the others follow without a gap
    passages: int


def _index_run(part: Path, stream: Iterator[Passage], *, first: int) -> int:
    """Index the next run of the stream in the empty folder ``part``; return its length."""
    with _writing(part):
        index = tantivy.Index(_schema(), path=str(part))
        index.register_tokenizer(ANALYSER, _analyser())
        # One thread: passages keep their order, and segments end at the same passage each time.
        writer = index.writer(heap_size=HEAP_BYTES, num_threads=1)
    count = size = 0
    try:
        while count < RUN_PASSAGES and size < RUN_BYTES:
            passage = next(stream, None)
            if passage is None:
                break
            text = _encodable(f"{passage.title}\n{passage.text}")
            document = tantivy.Document()
            document.add_text(FIELD, text)
            document.add_unsigned(ORDINAL, first + count)
            with _writing(part):
                writer.add_document(document)
            count += 1
            size += len(text.encode("utf-8"))
        with _writing(part):
            writer.commit()
    except BaseException:
        # Stop the writing thread, or it goes on in a folder that is being removed.
        with suppress(ValueError):
            writer.rollback()
        raise
    finally:
        with _writing(part):
            writer.wait_merging_threads()
    return count


@contextmanager
def _passing_folder(prefix: str, within: Path | None = None) -> Iterator[Path]:
    """A temporary folder that tantivy opens an index in.

    An opened index has a thread of tantivy's look for commits, which may lay a lock file in the
    folder while it is being removed: it is then removed again.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=within))
    try:
        yield folder
    finally:
        for _ in range(REMOVALS):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.01)
        else:
            shutil.rmtree(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Where tantivy writes: it reports a full disk and the like as ValueError."""
    try:
        yield
    except ValueError as error:
        raise ResourceError(
            "the lexical index cannot be written",
            where=str(folder),
            found=str(error),
            todo="free disk space and run again",
        ) from error


def _segments(part: Path, meta: dict[str, Any]) -> list[_Segment]:
    """The segments of one run, with the ordinals they begin at."""
    searcher = tantivy.Index.open(str(part)).searcher()
    # A searcher numbers the segments in the order of meta.json.
    starts = searcher.fast_field_values(
        ORDINAL, [tantivy.DocAddress(place, 0) for place in range(searcher.num_segments)]
    )
    return [
        _Segment(part, uuid.UUID(entry["segment_id"]).hex, int(start or 0), entry["max_doc"])
        for entry, start in zip(meta["segments"], starts, strict=True)
    ]


def _segment_id(number: int) -> uuid.UUID:
    return uuid.UUID(int=number)


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    # Without positions: a question is a set of words here, never a phrase.
    builder.add_text_field(FIELD, tokenizer_name=ANALYSER, index_option="freq")
    builder.add_unsigned_field(ORDINAL, fast=True)
    return builder.build()


def _analyser() -> tantivy.TextAnalyzer:
    """Words of letters and digits, up to 39 bytes, lower case, without accents, stemmed."""
    return (
        tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
        .filter(tantivy.Filter.remove_long(40))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.ascii_fold())
        .filter(tantivy.Filter.stemmer("english"))
        .build()
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _join(folders: Sequence[Path], view: Path) -> None:
    """Show checked indexes as one: links to the segments' files, and a list of all segments.

    Segments of different folders have the same names, and get new ones here.
    """
    segments: list[dict[str, Any]] = []
    meta: dict[str, Any] = {}
    for folder in folders:
        names = _checked_files(folder)
        _check_analyser(folder / META)
        meta = json.loads((folder / META).read_bytes())
        for entry in meta["segments"]:
            old, new = uuid.UUID(entry["segment_id"]), _segment_id(len(segments) + 1)
            for name in names:
                stem, dot, ending = name.partition(".")
                if stem == old.hex:
                    (view / f"{new.hex}{dot}{ending}").symlink_to((folder / name).absolute())
            segments.append(entry | {"segment_id": str(new)})
    _write_json(view / META, meta | {"segments": segments})


def _checked_files(folder: Path) -> list[str]:
    """Names of the index files, each compared with its digest.

    Raises:
        InputError: There is no index.
        CorruptError: A file is damaged or missing.
    """
    listing = folder / DIGESTS
    if not listing.exists():
        raise InputError("no lexical index", where=str(folder), todo="build the store again")
    todo = "restore the store from a copy, or build it again"
    try:
        content = json.loads(files.read_file(listing, MAX_DIGESTS_BYTES))
        entries = [(str(n), int(e["bytes"]), str(e["sha256"])) for n, e in content.items()]
        if META not in content or any(Path(name).name != name for name in content):
            raise ValueError("names of other files")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptError(
            "damaged list of index files", where=str(listing), found=str(error), todo=todo
        ) from error
    for name, size, expected in entries:
        if files.digest_file(folder / name, size) != expected:
            raise CorruptError("damaged index file", where=str(folder / name), todo=todo)
    return [name for name, _, _ in entries]


def _check_analyser(meta: Path) -> None:
    """Refuse an index whose words were cut otherwise than a question's would be.

    Raises:
        IncompatibleError: It names another analyser.
    """
    (found,) = {
        field["options"]["indexing"]["tokenizer"]
        for field in json.loads(meta.read_bytes())["schema"]
        if field["type"] == "text"
    }
    if found != ANALYSER:
        raise IncompatibleError(
            "the lexical index was made with another analyser",
            where=str(meta),
            expected=ANALYSER,
            found=found,
            todo="build the store again",
        )


def _encodable(text: str) -> str:
    """Text without lone surrogates, which have no UTF-8 form; "?" stands in."""
    return text.encode("utf-8", "replace").decode("utf-8")
