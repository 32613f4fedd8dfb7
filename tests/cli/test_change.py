"""``btr add``, ``btr remove``, ``btr compact``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from btr.retrieval.hybrid import HybridRetriever
from btr.store import TokenStore

Run = Callable[..., tuple[int, str, str]]


def ids(store: Path, question: str) -> list[str]:
    """Ids of the passages with a word of the question."""
    with TokenStore.open(store) as opened:
        hits = HybridRetriever(opened, None).search(question, 5)
        return [passage.id for passage in opened.passages([hit.ordinal for hit in hits])]


def test_documents_come_and_go(run: Run, store: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "new-1", "text": "The zeppelin was painted green."}\n'
                    '{"id": "new-2", "text": "Its captain was called Marta."}\n')  # fmt: skip
    before = json.loads(run("info", store, "--json", "-")[1])
    status, out, err = run("add", store, more, "--json", "-")
    assert status == 0, err
    assert json.loads(out)["passages"] == before["passages"] + 2
    assert "new-1" in ids(store, "what colour was the zeppelin?")
    status, out, _ = run("remove", store, "new-1", "--json", "-")
    assert status == 0
    assert json.loads(out)["removed"] == 1
    assert "new-1" not in ids(store, "what colour was the zeppelin?")
    status, out, _ = run("remove", store, "--document", "more.jsonl#2")
    assert status == 0
    assert "1 passages removed" in out
    listed = tmp_path / "ids.txt"
    listed.write_text("new-1\n")
    assert run("remove", store, "--ids-from", listed)[0] == 3  # it is gone already
    status, out, _ = run("compact", store, "--json", "-")
    assert status == 0
    assert json.loads(out)["removed"] == 0
    after = json.loads(run("info", store, "--json", "-")[1])
    assert after["passages"] == before["passages"]
    assert after["generation"] == 4
    assert run("verify", store)[0] == 0


@pytest.mark.parametrize("way", [(), ("--paper",)])
def test_a_store_is_made_smaller_and_still_answers(
    run: Run, store: Path, way: tuple[str, ...]
) -> None:
    before = json.loads(run("info", store, "--json", "-")[1])
    status, out, err = run("compress", store, "--ratio", 0.3, *way, "--json", "-")
    assert status == 0, err
    report = json.loads(out)
    assert report["passages"] == before["passages"]
    assert report["seconds"] > 0
    assert report["peak_rss_mb"] > 0
    after = json.loads(run("info", store, "--json", "-")[1])
    assert after["bytes"]["refs"] > 0
    assert after["bytes"]["bits"] < before["bytes"]["bits"]
    assert run("ask", store, "who built the bridge?")[0] == 0
    assert ("merged into" if way else "by neighbours") in run("info", store)[1]
    assert run("verify", store)[0] == 0
    assert run("compress", store, "--ratio", 0.7)[0] == 2


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["remove", "{store}"], 2, "nothing to remove"),
        (["remove", "{store}", "nobody"], 3, "no passage has this id: 'nobody'"),
        (["remove", "{store}", "--document", "x.txt"], 3, "no passage is of this document"),
        (["add", "{store}", "/nowhere/at/all"], 3, "/nowhere/at/all"),
        (["add", "/nowhere/at/all", "{store}"], 2, "no store here"),
        (["compact", "/nowhere/at/all"], 2, "no store here"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    run: Run, store: Path, words: list[str], status: int, message: str
) -> None:
    found, _, err = run(*(word.replace("{store}", str(store)) for word in words))
    assert found == status
    assert message in err
    assert len(err.strip().split("\n")) == 1
    assert run("verify", store)[0] == 0


def test_a_dry_run_builds_nothing(run: Run, corpus: Path, tiny: Path, tmp_path: Path) -> None:
    status, out, err = run("index", corpus, "--reader", tiny, "--dry-run", "--json", "-")
    assert status == 0, err
    assert json.loads(out)["passages"] > 0
    assert run("index", corpus, "--reader", tiny)[0] == 2
    assert not list(tmp_path.iterdir())


def test_a_part_of_the_corpus_gets_states(
    run: Run, corpus: Path, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "asked.txt").write_text("who built the bridge?\n")
    words = ["index", corpus, "--reader", tiny, "-o", tmp_path / "s", "--states", "top:1"]
    status, _, err = run(*words, "--asked", tmp_path / "asked.txt")
    assert status == 0, err
    with TokenStore.open(tmp_path / "s") as store:
        held = store.held_states(range(len(store)))
    assert sum(state is not None for state in held) == 1
    assert run("ask", tmp_path / "s", "who built the bridge?")[0] == 0
    assert run(*words[:-1], "some")[0] == 2


def test_a_copy_elsewhere_answers(
    run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BTR_CACHE", str(tmp_path / "cache"))
    address = f"file://{tmp_path}/far/store"
    assert run("copy", store, address)[0] == 0
    here = json.loads(run("ask", store, "who built the bridge?", "--json", "-")[1])
    there = json.loads(run("ask", address, "who built the bridge?", "--json", "-")[1])
    assert there["candidates"] == here["candidates"] != []
    assert run("info", address)[0] == 0
