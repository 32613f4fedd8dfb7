"""Stores whose rows end in token ids (``bits+ids``): every command that changes or shrinks one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from btr.store import TokenStore
from tiny_readers import make_reader

Run = Callable[..., tuple[int, str, str]]

QUESTION = "who was queen of the north?"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "words"
    make_reader(folder / "btr", tokenizer, "btr", 2, rule="words")
    return folder


@pytest.fixture
def built(run: Run, tmp_path: Path, corpus: Path, words: Path) -> Path:
    store = tmp_path / "words.btr"
    status, _, err = run("index", corpus, "-o", store, "--reader", words)
    assert status == 0, err
    return store


def asked(run: Run, store: Path, words: Path) -> object:
    """Candidates: texts, sources and confidences."""
    status, out, err = run("ask", store, QUESTION, "--reader", words, "--json", "-")
    assert status == 0, err
    found = json.loads(out)["candidates"]
    assert found
    return found


def test_added_removed_compacted_it_is_one_built_anew(
    run: Run, tmp_path: Path, built: Path, corpus: Path, words: Path
) -> None:
    with TokenStore.open(built) as opened:
        assert opened.manifest.spec.kind == "bits+ids"
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "q9", "title": "Sea", "text": "The sea is wide and salt."}\n')
    for command in (("add", built, more), ("remove", built, "q9"), ("compact", built)):
        status, _, err = run(*command)
        assert status == 0, err
        assert run("verify", built)[0] == 0
    anew = tmp_path / "anew.btr"
    assert run("index", corpus, "-o", anew, "--reader", words)[0] == 0
    assert asked(run, built, words) == asked(run, anew, words)


@pytest.mark.parametrize(
    "options",
    [("--ratio", "0", "--keep-stop-words", "--lossless"), ("--lossless",), (), ("--paper",),
     ("--paper", "--lossless")],
)  # fmt: skip
def test_it_is_compressed_in_every_way(
    run: Run, tmp_path: Path, built: Path, words: Path, options: tuple[str, ...]
) -> None:
    before = asked(run, built, words)
    small = shutil.copytree(built, tmp_path / "small.btr")
    status, _, err = run("compress", small, *options)
    assert status == 0, err
    assert run("verify", small)[0] == 0
    after = asked(run, small, words)
    if "--keep-stop-words" in options:
        assert after == before
    status, _, err = run("compact", small)
    assert status == 0, err
    assert asked(run, small, words) == after
