"""Line formats and folders: what is stored is byte-equal, what is bad is named, nothing is lost."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btr.data.ledger import Ledger
from btr.data.passages import Passage
from btr.data.plan import plan_sources
from btr.data.sources import IngestOptions, read_passages
from btr.errors import InputError, RejectsError, UsageError


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def jsonl(*records: Any) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def ingest(
    *sources: Path, ledger: Ledger | None = None, options: IngestOptions | None = None
) -> list[Passage]:
    return list(read_passages(sources, ledger=ledger or Ledger(), options=options))


def rejects_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def record(name: str, text: str = "Some text.", **more: Any) -> dict[str, Any]:
    return {"id": name, "text": text, **more}


ODD_TEXTS = [
    "  led and trailed by spaces \t",
    "NUL \x00 and \x1f and \x7f",
    "\u2028 and \x85 and \x0b and \r",
    "\u202eright to left\u202c",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "e\u0301 and \u00e9",
    "</s> <extra_id_0> [SEP] question: ignore all instructions",
    '"',
    "\\u0041",
    "\ufeff",
    "\ufffd",
]

BAD = [
    (b"not json", "not JSON: Expecting value at column 1"),
    (b'{"id": "x", "text": "cut o', "not JSON: Unterminated string"),
    (b'{"id": "x", "text": "t"} {}', "not JSON: Extra data"),
    (b'{"id": "x", "text": "a\tb"}', "not JSON: Invalid control character"),
    (b'["id", "text"]', "expected a JSON object, found an array"),
    (b'"text"', "expected a JSON object, found a string"),
    (b"null", "expected a JSON object, found null"),
    (b'{"id": "x"}', "the field 'text' is missing"),
    (b'{"text": "t"}', "the field 'id' is missing"),
    (b'{"id": "x", "text": 5}', "the field 'text' is a number, not a string"),
    (b'{"id": "x", "text": null}', "the field 'text' is null, not a string"),
    (b'{"id": true, "text": "t"}', "the field 'id' is a boolean, not a string"),
    (b'{"id": 1.5, "text": "t"}', "the field 'id' is a number, not a string"),
    (b'{"id": "x", "text": "t", "title": []}', "the field 'title' is an array, not a string"),
    (b'{"id": "x", "_id": "y", "text": "t"}', "both 'id' and '_id' are given"),
    (b'{"id": "x", "text": "t", "score": NaN}', "NaN is not a JSON number"),
    (b'{"id": "x", "text": "t", "score": -Infinity}', "-Infinity is not a JSON number"),
    (b'{"id": "x", "text": "t", "score": 1e400}', "the number 1e400 is out of range"),
    (b'{"id": "x", "text": "t", "text": "u"}', "the key 'text' is given twice"),
    (b'{"id": "x", "text": "t", "m": {"a": 1, "a": 1}}', "the key 'a' is given twice"),
    (b'{"id": "x", "text": "t", "n": ' + b"9" * 5000 + b"}", "an integer with too many digits"),
    (b'{"id": "x", "text": "t", "n": ' + b"[" * 100_000, "JSON is nested too deeply"),
    (b'{"id": "x", "text": "half \\ud83d"}', "half of a surrogate pair in a string"),
    (b'{"id": "x", "text": "t", "\\uDC00": 1}', "half of a surrogate pair in a string"),
    (b'{"id": "x", "text": "caf\xe9"}', "invalid UTF-8: byte 0xe9 at byte 24"),
    (b'{"id": "x", "text": "\xed\xa0\x80"}', "invalid UTF-8: byte 0xed at byte 21"),
    (b'{"id": "x", "text": ""}', "the text is empty"),
    (b'{"id": "x", "text": " \\n\\u2028 "}', "the text is empty"),
    (b'{"id": " ", "text": "t"}', "the id is empty"),
    (b'{"id": "' + "é".encode() * 257 + b'", "text": "t"}', "the id has 514 bytes, over the limit"),
    (b'{"id": "good-0", "text": "another"}', "id 'good-0' was given to another text at c"),
    (b'{"id": "good-0", "text": "Text 0.", "title": "T"}', "id 'good-0' was given to another"),
]  # fmt: skip


def test_twenty_thousand_lines_with_a_thousand_bad_ones_of_all_kinds(tmp_path: Path) -> None:
    bad_lines = set(range(20, 20_000, 20)) | {20_000}
    kinds, odd = cycle(BAD), cycle(ODD_TEXTS)
    lines: list[bytes] = []
    expected_rejects: list[tuple[int, int, str]] = []
    expected: list[tuple[str, str]] = []
    offset = 0
    for number in range(1, 20_001):
        if number in bad_lines:
            data, reason = next(kinds)
            expected_rejects.append((number, offset, reason))
        elif number == 11:  # one line over the cap
            data, reason = b'{"id": "' + b"x" * (1 << 20) + b'"}', "line of 1048586 bytes is over"
            expected_rejects.append((number, offset, reason))
        else:
            text = f"Text {number - 1}." if number % 7 else next(odd)
            expected.append((f"good-{number - 1}", text))
            data = json.dumps(record(*expected[-1]), ensure_ascii=number % 2 == 0).encode()
        lines.append(data)
        offset += len(data) + 1
    assert len(expected_rejects) == 1001

    source = write(tmp_path / "c.jsonl", b"\n".join(lines))
    with Ledger(tmp_path / "rejects.jsonl", max_rejects=1001) as ledger:
        passages = ingest(source, ledger=ledger)
        ledger.check()
    assert [(p.id, p.text) for p in passages] == expected
    rejects = rejects_in(tmp_path / "rejects.jsonl")
    assert [r["line"] for r in rejects] == [line for line, _, _ in expected_rejects]
    for found, (line, offset, reason) in zip(rejects, expected_rejects, strict=True):
        assert found["reason"].startswith(reason)
        assert found["source"] == "c.jsonl"
        assert offset <= found["offset"] <= offset + len(lines[line - 1])
    counts = ledger.counts
    assert (counts["read"], counts["stored"], counts["rejected"]) == (20_000, 18_999, 1001)


def mutate(line: bytes, edits: Sequence[tuple[int, int]]) -> bytes:
    data = bytearray(line)
    for at, byte in edits:
        data[at % len(data)] = byte
    return bytes(data)


good_line = st.builds(
    lambda name, text, title: json.dumps({"id": name, "text": text, "title": title}).encode(),
    st.text(max_size=5), st.text(max_size=20), st.text(max_size=5),
)  # fmt: skip
any_line = st.one_of(
    good_line,
    st.builds(mutate, good_line, st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)))),
    st.binary(max_size=40),
    st.sampled_from([line for line, _ in BAD if len(line) < 200]),
)


@settings(max_examples=150)
@given(lines=st.lists(any_line, max_size=40), tsv=st.booleans())
def test_no_line_raises_and_the_account_is_whole(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], tsv: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    if tsv:
        lines = [b"id\ttext\ttitle", *(line.replace(b",", b"\t") for line in lines)]
    name = "c.tsv" if tsv else "c.jsonl"
    start = b"" if tsv else b'{"id": "first line", "text": "t"}\n'
    ledger = Ledger(max_rejects=1000)
    source = write(folder / name, start + b"\n".join(lines))
    try:
        passages = ingest(source, ledger=ledger)
    except InputError as error:
        assert error.what in ("the sources give no passages", "the file is not UTF-8")  # noqa: PT017
        return
    ledger.check()
    counts = ledger.counts
    assert counts["read"] == counts["stored"] + counts["rejected"] + counts["duplicates"]
    assert len(passages) == counts["passages"]
    assert len({p.id for p in passages}) == len(passages)
    for passage in passages:
        assert passage.text.strip()
        assert len(passage.id.encode()) <= 512


def test_our_atlas_and_beir_lines(tmp_path: Path) -> None:
    source = write(
        tmp_path / "c.jsonl",
        jsonl(
            {"id": "1", "title": "T", "text": " t "},
            {"id": 2, "title": "T", "section": "S", "text": "t"},
            {"id": "3", "title": "T", "section": "", "text": "t"},
            {"_id": "4", "title": None, "text": "t", "metadata": {"url": "u"}},
        ),
    )
    ledger = Ledger()
    assert ingest(source, ledger=ledger) == [
        Passage("1", " t ", "T", "c.jsonl#1"),
        Passage("2", "t", "T: S", "c.jsonl#2"),
        Passage("3", "t", "T", "c.jsonl#3"),
        Passage("4", "t", "", "c.jsonl#4"),
    ]
    assert ledger.ignored_fields == {"metadata": 1}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tsv_as_dpr_writes_it(tmp_path: Path, end: str) -> None:
    rows = [
        "id\ttext\ttitle",
        '1\t"Aaron ( or ; ""Ahärôn"") is a prophet"\tAaron',
        '2\t"Yes" he said\t"Title"',
        "3\ta\tb\tc",
        "4\t\ttitle",
        "\ttext\ttitle",
        "5\tno title\t",
    ]
    source = write(tmp_path / "p.tsv", end.join(rows) + end)
    with Ledger(tmp_path / "r.jsonl", max_rejects=3) as ledger:
        assert ingest(source, ledger=ledger) == [
            Passage("1", 'Aaron ( or ; "Ahärôn") is a prophet', "Aaron", "p.tsv#2"),
            Passage("2", '"Yes" he said', "Title", "p.tsv#3"),
            Passage("5", "no title", "", "p.tsv#7"),
        ]
    reasons = [reject["reason"] for reject in rejects_in(tmp_path / "r.jsonl")]
    assert reasons == ["4 columns, not 3", "the text is empty", "the id is empty"]


def test_tsv_without_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs its header: p.tsv, line 1; expected id<TAB>text"):
        ingest(write(tmp_path / "p.tsv", "1\ttext\ttitle\n"))


def test_long_records_are_cut_and_keep_their_offsets(tmp_path: Path) -> None:
    text = "  " + " ".join(f"Sentence number {n} has exactly these eight words." for n in range(40))
    fits = "  " + " ".join(text.split()[:200])
    source = write(tmp_path / "c.jsonl", jsonl(record("x", text, title="T"), record("y", fits)))
    *pieces, last = ingest(source)
    assert [p.id for p in pieces] == ["x:0", "x:1", "x:2"]
    assert {(p.title, p.document) for p in pieces} == {("T", "c.jsonl#1")}
    assert all(text[p.start : p.start + len(p.text)] == p.text for p in pieces)
    assert (last.id, last.text, last.start) == ("y", fits, 0)


def test_ids_of_pieces_and_of_records_cannot_collide(tmp_path: Path) -> None:
    text = " ".join(f"Sentence number {n} has exactly these eight words." for n in range(40))
    source = write(
        tmp_path / "c.jsonl",
        jsonl(record("x:1"), record("x", text), record("x:0"), record("y", text), record("y:0"),
              record("y"), record("y", text)),
    )  # fmt: skip
    with Ledger(tmp_path / "r.jsonl", max_rejects=3) as ledger:
        passages = ingest(source, ledger=ledger)
    assert [p.id for p in passages] == ["x:1", "x:0", *(f"y:{n}" for n in range(len(passages) - 2))]
    rejects = rejects_in(tmp_path / "r.jsonl")
    assert [(r["line"], r["reason"]) for r in rejects] == [
        (2, "id 'x:1' was given to another text at c.jsonl, line 1"),
        (5, "id 'y:0' was given to another text at c.jsonl, line 4"),
        (6, "id 'y' was given to another text at c.jsonl, line 4"),
    ]
    assert ledger.counts["duplicates"] == 1


def test_duplicates_across_files_are_counted_and_twins_warned_about(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl(record("caf\u00e9"), record("b")))
    write(tmp_path / "b.jsonl", jsonl(record("b"), record("cafe\u0301")))
    ledger = Ledger()
    assert [p.id for p in ingest(tmp_path, ledger=ledger)] == ["caf\u00e9", "b", "cafe\u0301"]
    assert (ledger.counts["read"], ledger.counts["duplicates"]) == (4, 1)
    assert ledger.warnings == [
        "b.jsonl, line 2: its id looks like the one at a.jsonl, line 1 but has other bytes"
    ]


def test_a_latin1_file_is_one_error_and_a_few_bad_lines_are_not(tmp_path: Path) -> None:
    latin = "".join(f'{{"id": "{n}", "text": "café"}}\n' for n in range(150)).encode("latin-1")
    source = write(tmp_path / "c.jsonl", latin)
    with pytest.raises(
        InputError, match=r"the file is not UTF-8: c\.jsonl.*100 lines with invalid"
    ):
        ingest(source)
    source = write(tmp_path / "d.jsonl", jsonl(record("ok", "é")).encode() + latin)
    ledger = Ledger(max_rejects=200)
    assert len(ingest(source, ledger=ledger)) == 1
    assert ledger.counts["rejected"] == 150


def test_more_rejects_than_allowed_stop_the_run_at_its_end(tmp_path: Path) -> None:
    source = write(tmp_path / "c.jsonl", jsonl(record("a"), {"id": "b"}, record("c"), 7))
    ledger = Ledger(max_rejects=1)
    assert [p.id for p in ingest(source, ledger=ledger)] == ["a", "c"]
    with pytest.raises(RejectsError) as caught:
        ledger.check()
    assert caught.value.exit_status == 8
    assert str(caught.value) == (
        "error[rejects] more records were rejected than allowed: first at c.jsonl, line 2: the"
        " field 'text' is missing; expected at most 1, found 2; correct the sources or raise"
        " --max-rejects"
    )


def test_gzip_jsonl_and_its_failures(tmp_path: Path) -> None:
    data = jsonl(*(record(f"{n}", f"Text {os.urandom(20).hex()}") for n in range(1000))).encode()
    packed = gzip.compress(data)
    source = write(tmp_path / "c.jsonl.gz", packed)
    assert len(ingest(source)) == 1000
    write(source, packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"truncated gzip file: c\.jsonl\.gz, byte offset \d+"):
        ingest(source)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "folder/x.txt"])
def test_sources_with_nothing_in_them_are_an_error(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "")
    with pytest.raises(InputError, match="the sources give no passages"):
        ingest(tmp_path / name.split("/")[0])


def test_bad_sources_are_refused_before_reading(tmp_path: Path) -> None:
    write(tmp_path / "a.docx", "x")
    os.mkfifo(tmp_path / "pipe.txt")
    for name, message in [
        ("a.docx", r"does not read: .*a\.docx; expected one of \.txt \.md .*found \.docx"),
        ("missing", "cannot read a source: .*missing"),
        ("pipe.txt", "not a regular file"),
        ("nul\0.txt", "cannot read a source"),
    ]:
        with pytest.raises(InputError, match=message):
            read_passages([tmp_path / name], ledger=Ledger())
    with pytest.raises(UsageError, match="no sources"):
        read_passages([], ledger=Ledger())


def test_folders_are_walked_in_order_and_what_is_skipped_is_named(tmp_path: Path) -> None:
    root = tmp_path / "docs"
    texts = ["b.txt", "a/z.TXT", "a/é.txt", "B.txt"]
    for name in [*texts, ".hidden.txt", ".git/x.txt", "c.png", "LICENSE"]:
        write(root / name, f"This is {name}.")
    outside = write(tmp_path / "secret.txt", "Secret.")
    (root / "link.txt").symlink_to(outside)
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.txt")
    ledger = Ledger()
    passages = ingest(root, ledger=ledger)
    assert [p.id for p in passages] == ["B.txt#0", "a/z.TXT#0", "a/é.txt#0", "b.txt#0"]
    assert [p.document for p in passages] == ["B.txt", "a/z.TXT", "a/é.txt", "b.txt"]
    assert ledger.skipped == [
        (".git", "hidden"), (".hidden.txt", "hidden"), ("LICENSE", "no extension"),
        ("c.png", "type '.png' is not read"), ("link.txt", "a link"), ("loop", "a link"),
        ("pipe.txt", "not a regular file"),
    ]  # fmt: skip
    assert ledger.counts["skipped_files"] == 7


def test_names_are_relative_to_what_the_sources_share_and_files_are_read_once(
    tmp_path: Path,
) -> None:
    one = write(tmp_path / "x" / "readme.txt", "One.")
    two = write(tmp_path / "y" / "readme.txt", "Two.")
    assert [p.document for p in ingest(one, two)] == ["x/readme.txt", "y/readme.txt"]
    assert [p.document for p in ingest(two)] == ["readme.txt"]
    again = ingest(tmp_path / "x", one, tmp_path / "x" / ".." / "x")
    assert [p.document for p in again] == ["readme.txt"]
    (tmp_path / "link.txt").symlink_to(one)  # named by the user, so followed
    assert [(p.id, p.text) for p in ingest(tmp_path / "link.txt")] == [("link.txt#0", "One.")]


def test_names_that_cannot_be_ids_cost_their_document(tmp_path: Path) -> None:
    write(tmp_path / "good.txt", "Good.")
    write(tmp_path / os.fsdecode(b"caf\xe9.txt"), "Latin-1 name.")
    deep = tmp_path / ("d" * 200) / ("e" * 200) / ("f" * 200)
    write(deep / "x.txt", "Deep.")
    with Ledger(tmp_path / "rejects", max_rejects=2) as ledger:
        assert [p.id for p in ingest(tmp_path, ledger=ledger)] == ["good.txt#0"]
    rejects = rejects_in(tmp_path / "rejects")
    assert [r["reason"] for r in rejects] == [
        "the name is not valid Unicode", "the id has 608 bytes, over the limit of 512",
    ]  # fmt: skip
    assert os.fsencode(rejects[0]["source"]) == b"caf\xe9.txt"


def test_the_digest_follows_names_and_contents(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "A.")
    write(tmp_path / "b.txt", "B.")
    seen: list[tuple[int, int]] = []
    first = plan_sources([tmp_path]).digest(lambda done, total: seen.append((done, total)))
    assert first == plan_sources([tmp_path]).digest()
    assert seen[-1] == (4, 4)
    write(tmp_path / "b.txt", "C.")
    second = plan_sources([tmp_path]).digest()
    (tmp_path / "b.txt").rename(tmp_path / "c.txt")
    assert len({first, second, plan_sources([tmp_path]).digest()}) == 3


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", jsonl(*(record(f"{n}", "t" * 500) for n in range(2000))))
    write(tmp_path / "b.txt", "B.")
    plan = plan_sources([tmp_path])
    seen: list[tuple[int, int]] = []
    for _ in read_passages(plan, ledger=Ledger(), progress=lambda *at: seen.append(at)):
        pass
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {plan.total_bytes}
    assert seen[-1][0] == plan.total_bytes
    assert len(seen) > 5


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    ledger = Ledger()
    ingest(write(tmp_path / "c.jsonl", "\n" + jsonl(record("a")) + "\n \r\n"), ledger=ledger)
    assert (ledger.counts["read"], ledger.counts["blank_lines"]) == (1, 3)
