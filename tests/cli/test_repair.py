"""``btr repair``: damaged files come back to the byte, or nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import btr.repairing
from btr.indexing import build_index
from btr.readers.load import load_reader
from btr.retrieval.dense import Embedder
from btr.store import verify
from cli_lines import one_line

Run = Callable[..., tuple[int, str, str]]


def tree(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "bridges.jsonl"
    with path.open("w") as out:
        for n in range(32):
            text = f"The bridge number {n} was built by king Harald" + " over the lake" * (n % 5)
            out.write(json.dumps({"id": f"b{n}", "title": "Bridge", "text": text + "."}) + "\n")
    return path


@pytest.fixture
def shards(
    tmp_path: Path, source: Path, tiny: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A store of 16 shards."""
    monkeypatch.setattr(btr.repairing, "Embedder", lambda: embedder)
    reader = load_reader(str(tiny), "btr")
    build_index([source], tmp_path / "b.btr", reader, embedder=embedder, shard_passages=2)
    return tmp_path / "b.btr"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def test_one_damaged_shard_of_many_is_made_again(
    run: Run, shards: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, encoded = tree(shards), []
    assert sum(name.startswith("shards/") for name in before) == 16
    made = btr.repairing.shard_states
    monkeypatch.setattr(
        btr.repairing, "shard_states", lambda *a: encoded.append(len(a[1])) or made(*a)
    )
    flip(shards / "shards" / "00000005.btr")
    status, _, err = run("verify", shards)
    assert (status, "btr repair, or build the store again" in err) == (4, True), err
    status, out, err = run("repair", shards, source, "--json", "-")
    assert status == 0, err
    assert json.loads(out)["mended"] == ["shards/00000005.btr"]
    assert encoded == [2]
    assert tree(shards) == before
    assert verify(shards).ok
    assert not shards.with_name("b.btr.building").exists()
    status, out, _ = run("repair", shards, source)
    assert (status, "nothing was damaged" in out) == (0, True)


def test_whatever_is_lost_comes_back(run: Run, shards: Path, source: Path) -> None:
    before = tree(shards)
    lost = [name for name in before if name != "manifest.json"]
    for name in lost:
        (shards / name).unlink()
    status, out, err = run("repair", shards, source, "--json", "-")
    assert status == 0, err
    assert sorted(json.loads(out)["mended"]) == sorted(lost)
    assert tree(shards) == before


def test_what_cannot_be_made_again_is_refused(
    run: Run, shards: Path, source: Path, tmp_path: Path
) -> None:
    name = "shards/00000003.btr"
    flip(shards / name)
    damaged = tree(shards)
    other = tmp_path / "other.jsonl"
    other.write_text(source.read_text().replace("Harald", "Olaf"))
    status, _, err = run("repair", shards, other)
    assert (status, "built from other sources" in one_line(err)) == (5, True), err
    status, _, err = run("repair", shards, tmp_path / "none.jsonl")
    assert status == 3, err
    assert tree(shards) == damaged
    # States that come out otherwise, as on another machine, take no place.
    made = btr.repairing.shard_states
    with pytest.MonkeyPatch.context() as patch:

        def otherwise(reader, passages):
            first, *others = made(reader, passages)
            return [replace(first, rows=first.rows ^ 1), *others]

        patch.setattr(btr.repairing, "shard_states", otherwise)
        status, _, err = run("repair", shards, source)
    assert (status, "is not the one that was written" in one_line(err)) == (4, True), err
    assert tree(shards) == damaged
    assert run("repair", shards, source)[0] == 0
    # A later generation has other files than its sources give.
    assert run("remove", shards, "b1")[0] == 0
    flip(shards / name)
    status, _, err = run("repair", shards, source)
    assert (status, "a store that was changed" in one_line(err)) == (2, True), err


def test_a_list_of_rejects_is_not_in_the_sources(
    run: Run, source: Path, tiny: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(source.read_text() + "no json\n")
    store = tmp_path / "b.btr"
    words = ("index", bad, "-o", store, "--reader", tiny, "--max-rejects", "1")
    assert run(*words)[0] == 0
    before = tree(store)
    for name in ("rejects.jsonl", "ids.sqlite"):
        (store / name).unlink()
    status, _, err = run("repair", store, bad)
    assert (status, "can make again: rejects.jsonl" in one_line(err)) == (4, True), err
    assert tree(store) == {k: v for k, v in before.items() if k != "rejects.jsonl"}
