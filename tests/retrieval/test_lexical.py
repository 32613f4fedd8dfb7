from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btr.data.passages import Passage
from btr.errors import (
    BtrError,
    CorruptError,
    IncompatibleError,
    InputError,
    ResourceError,
    UsageError,
)
from btr.retrieval import lexical
from btr.retrieval.lexical import LexicalIndex, build

FACTS = [
    ("Photosynthesis", "Plants turn light into chemical energy, and give off oxygen."),
    ("Jazz", "Jazz began in New Orleans around 1900; its players improvise."),
    ("Wilhelm Röntgen", "He discovered X-rays in 1895 and was given the first Nobel Prize."),
    ("The Who", "The Who are a rock band formed in London in 1964."),
    ("", "Bridges carry roads over rivers. The longest bridge is in China."),
    ("Hamlet", "To be, or not to be: that is the question he asks himself."),
]


def passages(facts: list[tuple[str, str]] = FACTS) -> Iterator[Passage]:
    return (Passage(id=str(i), title=t, text=x) for i, (t, x) in enumerate(facts))


def made_up(count: int, seed: int = 0) -> Iterator[Passage]:
    """Passages of made-up words, some frequent and some rare."""
    words = random.Random(seed)
    for number in range(count):
        text = " ".join(f"w{int(words.paretovariate(0.6)) % 9999}" for _ in range(60))
        yield Passage(id=str(number), title=f"w{words.randrange(99)}", text=text)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> LexicalIndex:
    folder = tmp_path_factory.mktemp("facts")
    assert build(folder, passages()) == len(FACTS)
    return LexicalIndex([folder])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build(tmp_path / "index", made_up(200))
    return tmp_path / "index"


@pytest.mark.parametrize(
    ("question", "ordinal"),
    [
        ("Where did jazz begin?", 1),
        ("who discovered x-rays", 2),
        ("Who was Rontgen?", 2),  # accents do not matter
        ("RÖNTGEN", 2),
        ("what does a plant give off", 0),  # stemmed
        ("which bridge is the longest?", 4),
    ],
)
def test_questions_find_their_passage(facts: LexicalIndex, question: str, ordinal: int) -> None:
    assert facts.search(question, 3)[0][0] == ordinal


def test_the_title_is_searched(facts: LexicalIndex) -> None:
    assert [o for o, _ in facts.search("Hamlet", 3)] == [5]


def test_stop_words_are_ignored_beside_other_words(facts: LexicalIndex) -> None:
    assert facts.search("what is the jazz about", 6) == facts.search("jazz", 6)


def test_a_question_of_stop_words_alone_still_finds(facts: LexicalIndex) -> None:
    assert facts.search("Who are The Who?", 6)[0][0] == 3
    assert facts.search("to be or not to be", 6)[0][0] == 5


def test_without_a_shared_word_nothing_is_found(facts: LexicalIndex) -> None:
    for question in ("", "   ", "?!", "zyzzyva", "\0", "💥"):
        assert facts.search(question, 5) == []


@pytest.mark.parametrize(
    "question",
    [
        'jazz AND NOT "jazz"',
        "title:jazz passage:jazz ordinal:1",
        "jazz^1000 jazz~2 ja?z j*",
        "+jazz -jazz (jazz",
        "[jazz TO jazz} /ja[zz/",
        "jazz\\",
        "\ud800jazz",
        "IN [jazz]: {jazz} <jazz> || jazz && !jazz",
    ],
)
def test_no_character_of_a_question_is_syntax(facts: LexicalIndex, question: str) -> None:
    assert 1 in [o for o, _ in facts.search(question, 6)]


@given(st.text())
@settings(max_examples=200)
def test_any_text_is_a_question(facts: LexicalIndex, question: str) -> None:
    hits = facts.search(question, 3)
    assert hits == sorted(hits, key=lambda hit: (-hit[1], hit[0]))
    assert len(hits) <= 3


def test_the_number_asked_for_is_kept(facts: LexicalIndex) -> None:
    assert len(facts.search("in", 2)) == 2
    assert len(facts.search("in", 10**9)) == 4
    for k in (0, -1):
        with pytest.raises(UsageError, match="at least 1"):
            facts.search("jazz", k)


def test_equal_scores_are_ordered_by_ordinal_wherever_the_list_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexical, "RUN_PASSAGES", 70)
    kinds = [
        ("red", "fox runs over hills"),
        ("", "the fox sleeps in a red den all day"),
        ("owl", "night red"),
    ]
    order = random.Random(3).choices(range(3), k=300)
    build(tmp_path, passages([kinds[kind] for kind in order]))
    index = LexicalIndex([tmp_path])
    everything = index.search("red fox", 300)
    assert len(everything) == 300
    assert everything == sorted(everything, key=lambda hit: (-hit[1], hit[0]))
    assert len({score for _, score in everything}) == 3
    for k in (1, 2, 50, 120, 299):
        assert index.search("red fox", k) == everything[:k]


def test_two_builds_are_equal_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        build(tmp_path / name, made_up(3000))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert not [name for name in content(tmp_path / "a") if "lock" in name or "managed" in name]


def test_many_segments_answer_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "one", made_up(1000))
    monkeypatch.setattr(lexical, "RUN_PASSAGES", 90)  # more than tantivy would leave unmerged
    for name in ("many", "again"):
        assert build(tmp_path / name, made_up(1000)) == 1000
    assert content(tmp_path / "many") == content(tmp_path / "again")
    assert len(list((tmp_path / "many").glob("*.idx"))) == 12
    one, many = LexicalIndex([tmp_path / "one"]), LexicalIndex([tmp_path / "many"])
    assert len(one) == len(many) == 1000
    for passage in made_up(40, seed=1):
        assert one.search(passage.text, 30) == many.search(passage.text, 30)


def test_a_run_that_overflows_the_heap_is_still_deterministic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lexical, "HEAP_BYTES", 15_000_000)  # the least tantivy takes

    def unique() -> Iterator[Passage]:
        for number in range(240):
            text = " ".join(f"{number}x{place:x}" for place in range(500))
            yield Passage(id=str(number), text=text)

    for name in ("a", "b"):
        build(tmp_path / name, unique())
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(list((tmp_path / "a").glob("*.idx"))) > 1
    index = LexicalIndex([tmp_path / "a"])
    assert [index.search(f"{n}x7", 2)[0][0] for n in (0, 120, 239)] == [0, 120, 239]


def test_no_passages_make_an_empty_index(tmp_path: Path) -> None:
    assert build(tmp_path, []) == 0
    assert len(LexicalIndex([tmp_path])) == 0
    assert LexicalIndex([tmp_path]).search("anything", 5) == []


def test_odd_texts_are_indexed(tmp_path: Path) -> None:
    build(tmp_path, passages([("", ""), ("\ud800", "a\0b \ud83d word"), ("", "x" * 100_000)]))
    assert LexicalIndex([tmp_path]).search("word", 5)[0][0] == 1


def test_a_folder_in_use_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="not empty"):
        build(folder, passages())


def test_an_error_in_the_stream_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Passage]:
        yield from made_up(10)
        raise ValueError("bad source")

    with pytest.raises(ValueError, match="bad source"):
        build(tmp_path / "index", broken())
    assert not list((tmp_path / "index").iterdir())


def test_opening_writes_nothing_and_needs_no_write_permission(folder: Path) -> None:
    before = content(folder)
    folder.chmod(0o500)
    try:
        assert LexicalIndex([folder]).search("w1", 3)
    finally:
        folder.chmod(0o700)
    assert content(folder) == before


def test_an_open_index_outlives_its_files_names(folder: Path) -> None:
    index = LexicalIndex([folder])
    before = index.search("w1 w2", 20)
    for file in folder.iterdir():
        file.unlink()
    assert index.search("w1 w2", 20) == before


def test_threads_share_an_index(folder: Path) -> None:
    index, results = LexicalIndex([folder]), []
    expected = index.search("w1 w2 w3", 50)
    threads = [
        threading.Thread(target=lambda: results.append(index.search("w1 w2 w3", 50)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_every_kind_of_damage_is_found_on_opening(folder: Path) -> None:
    chance = random.Random(0)
    for file in sorted(folder.iterdir()):
        good = file.read_bytes()
        for place in {0, len(good) - 2, *(chance.randrange(len(good)) for _ in range(6))}:
            bad = bytearray(good)
            bad[place] ^= 1 << chance.randrange(8)
            file.write_bytes(bad)
            with pytest.raises(CorruptError):
                LexicalIndex([folder])
        file.write_bytes(good[:-2])
        with pytest.raises(CorruptError):
            LexicalIndex([folder])
        file.unlink()
        with pytest.raises(BtrError):
            LexicalIndex([folder])
        file.write_bytes(good)
    assert LexicalIndex([folder]).search("w1", 3)


@pytest.mark.parametrize(
    "listing",
    [b"", b"[]", b"{}", b"[" * 100_000, b'{"meta.json": 3}', b'{"../x": {"bytes": 1}}', b"\xff"],
)
def test_a_hostile_listing_is_refused(folder: Path, listing: bytes) -> None:
    (folder / "digests.json").write_bytes(listing)
    with pytest.raises(CorruptError, match="damaged list"):
        LexicalIndex([folder])


def test_another_analyser_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical, "ANALYSER", "btr_english_0")
    build(tmp_path, passages())
    monkeypatch.undo()
    with pytest.raises(IncompatibleError, match=r"another analyser.*btr_english_1.*btr_english_0"):
        LexicalIndex([tmp_path])


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no lexical index"):
        LexicalIndex([tmp_path])


def test_a_failing_disk_is_one_clear_error(tmp_path: Path) -> None:
    # In a process of its own: the limit cannot be taken back.
    script = """
import resource, sys
from pathlib import Path
from btr.data.passages import Passage
from btr.errors import ResourceError
from btr.retrieval.lexical import build
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
try:
    build(Path(sys.argv[1]), (Passage(str(i), f"some text {i}") for i in range(2000)))
except ResourceError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"error[{ResourceError.code}] the lexical index cannot be")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_written_to_while_it_is_removed_goes_all_the_same(tmp_path: Path) -> None:
    def write_on(folder: Path) -> None:
        for number in range(100):
            with suppress(FileNotFoundError):
                (folder / f"{number}.lock").touch()
            time.sleep(0.001)

    with lexical._passing_folder("view-", tmp_path) as view:
        writer = threading.Thread(target=write_on, args=(view,))
        writer.start()
    writer.join()
    assert list(tmp_path.iterdir()) == []
