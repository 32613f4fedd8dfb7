"""Additions, removals and compaction: each a generation that is there whole or not at all."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stub_store as stub
from stub_changes import CHANGES, add, contents, expected, has_ended_well

from btr import files
from btr.errors import (
    BtrError,
    CorruptError,
    IncompatibleError,
    InputError,
    LockedError,
    ResourceError,
    UsageError,
)
from btr.store import StoreWriter, TokenStore, verify
from btr.store.building import file_entry
from btr.store.change import compact, remove_passages
from btr.store.removed import load_removed, write_removed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    stub.build(tmp_path / "store", 5)
    return tmp_path / "store"


def test_what_is_added_stands_behind_what_was_there(path: Path) -> None:
    before = stub.tree(path)
    manifest = add(path, 5, 4)
    assert (manifest.generation, manifest.passages) == (1, 9)
    assert contents(path) == expected(*range(9))
    assert verify(path).ok
    now = stub.tree(path)
    assert {name: now[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    with TokenStore.open(path) as store:
        assert [store.ordinal(stub.passage(i).id) for i in range(9)] == list(range(9))
        firsts = [(f / "index.bin").read_text().split("\n")[0] for f in store.lexical_folders]
        assert firsts == ["0", "5"]
        with pytest.raises(InputError, match="no passage has this id"):
            store.ordinal("id-00009")


def test_a_removed_passage_counts_no_more(path: Path) -> None:
    assert remove_passages(path, [1, 3]).passages == 3
    assert remove_passages(path, [1]).generation == 1  # nothing changes
    assert remove_passages(path, [4]).removed == 3
    assert contents(path) == expected(0, 2)
    with TokenStore.open(path) as store:
        assert store.ordinal("id-00002") == 2
        with pytest.raises(InputError, match="no passage has this id"):
            store.ordinal("id-00001")
    assert verify(path).ok


def test_compaction_leaves_the_bytes_of_no_removed_passage(path: Path) -> None:
    add(path, 5, 4)
    remove_passages(path, [1, 6])
    manifest = compact(path, stub.derive)
    assert contents(path) == expected(0, 2, 3, 4, 5, 7, 8)
    assert [shard.passages for shard in manifest.shards] == [2, 2, 2, 1]
    assert manifest.counts["stored"] == 9
    assert verify(path).ok
    for data in stub.tree(path).values():
        assert b"id-00001" not in data
        assert b"Text 6 " not in data
    with TokenStore.open(path) as store:
        assert store.ordinal("id-00008") == 6
        (folder,) = store.lexical_folders
        assert (folder / "index.bin").read_text().split("\n")[1:] == [
            stub.passage(i).id for i in (0, 2, 3, 4, 5, 7, 8)
        ]
    assert compact(path, stub.derive) == manifest  # nothing to do
    names = {entry.name for entry in manifest.files} | {"manifests/00000003.json"}
    assert set(stub.tree(path)) == names


def test_an_id_may_come_back(path: Path) -> None:
    remove_passages(path, [2])
    add(path, 2, 1)
    with TokenStore.open(path) as store:
        assert store.ordinal("id-00002") == 5
    with StoreWriter.create(path, stub.spec(sources_digest="again"), add=True) as writer:
        writer.write_shard([stub.passage(0)], [stub.state(0)], stub.vectors(0, 1))
        writer.finish({}, stub.derive, None, replaced=[0])
    assert contents(path) == expected(1, 3, 4, 2, 0)


def test_a_reader_keeps_the_generation_that_it_opened(path: Path) -> None:
    store = TokenStore.open(path)
    add(path, 5, 2)
    remove_passages(path, [0])
    compact(path, stub.derive)
    assert len(store) == 5
    assert [p.id for p in store.passages(range(5))] == [stub.passage(i).id for i in range(5)]
    assert store.ordinal("id-00000") == 0
    assert (path / "manifest.json").exists()
    store.close()
    remove_passages(path, [0])  # the next change finds the old generation without readers
    assert not (path / "manifest.json").exists()
    assert contents(path) == expected(2, 3, 4, 5, 6)
    assert verify(path).ok


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"fingerprint": {"tokenizer": "t1", "weights": "other"}}, "fingerprint.weights"),
        ({"kind": "bits+rms8"}, "kind"), ({"dim": 24}, "dim"), ({"dense_dim": 8}, "dense_dim"),
        ({"passages_per_shard": 3}, "passages_per_shard"),
        ({"settings": stub.SPEC.settings | {"query_budget": 9}}, "settings.query_budget"),
    ],
)  # fmt: skip
def test_other_states_are_not_added(path: Path, change: dict[str, object], field: str) -> None:
    before = stub.tree(path)
    with pytest.raises(IncompatibleError, match=field):
        add(path, 5, 1, of=stub.spec(**change))
    assert stub.tree(path) == before


def test_the_name_of_the_reader_and_the_version_may_differ(path: Path) -> None:
    settings = stub.SPEC.settings | {"reader": "elsewhere", "btr": "9"}
    base = stub.SPEC.settings | {"btr": "1"}
    stub.build(path.parent / "other", 1, of=stub.spec(settings=base))
    assert add(path.parent / "other", 1, 1, of=stub.spec(settings=settings)).passages == 2


def test_an_addition_goes_on_where_it_was(path: Path) -> None:
    with StoreWriter.create(path, stub.spec(sources_digest="more"), add=True) as writer:
        writer.write_shard(
            [stub.passage(i) for i in (5, 6)], [stub.state(i) for i in (5, 6)], stub.vectors(5, 7)
        )
    with pytest.raises(UsageError, match="unfinished"):
        remove_passages(path, [0])
    with pytest.raises(UsageError, match="unfinished"):
        add(path, 5, 4)
    with pytest.raises(IncompatibleError, match="sources_digest"):
        add(path, 5, 4, resume=True, of=stub.spec(sources_digest="others"))
    assert contents(path) == expected(*range(5))
    add(path, 5, 4, resume=True)
    assert contents(path) == expected(*range(9))


def test_a_store_cannot_lose_everything_or_what_it_has_not(path: Path) -> None:
    for wrong, message in (([5], "no such passage"), ([-1], "no such"), (range(5), "all its")):
        with pytest.raises(UsageError, match=message):
            remove_passages(path, wrong)
    with pytest.raises(UsageError, match="no store here"):
        remove_passages(path.parent / "none", [0])
    assert [p.name for p in path.parent.iterdir() if p.is_dir()] == ["store"]


def changed(tmp_path: Path, name: str, number: int) -> Path:
    """A store that a change is to be made of."""
    prepared = tmp_path / "prepared"
    if not prepared.exists():
        prepared.mkdir()
        CHANGES[name].prepare(prepared / "store")
    stub.copy_tree(prepared, tmp_path / str(number))
    return tmp_path / str(number) / "store"


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "build"])
def test_a_crash_at_any_operation_leaves_the_old_or_the_new(
    tmp_path: Path, figure: Callable[[str, int], None], name: str
) -> None:
    reference = changed(tmp_path, name, -1)
    CHANGES[name].run(reference)
    at, ended = 0, False
    while not ended:
        path = changed(tmp_path, name, at)
        with stub.operations(stub.CrashingFiles(at)):
            try:
                CHANGES[name].run(path)
                ended = True
            except stub.Crash:
                pass
        has_ended_well(path, name, contents(reference))
        at += 1
    assert at > 15
    figure(f"operations of {name}: a crash at each", at)


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "build"])
def test_a_full_disk_is_an_error_and_the_change_can_be_made_later(
    tmp_path: Path, figure: Callable[[str, int], None], name: str
) -> None:
    reference = changed(tmp_path, name, -1)
    CHANGES[name].run(reference)
    at, failed = 0, ["something"]
    while failed:
        path = changed(tmp_path, name, at)
        fake, failed = stub.failing(at, errno.ENOSPC)
        told = ""
        with stub.operations(fake):
            try:
                CHANGES[name].run(path)
            except ResourceError as caught:
                told = caught.todo
        assert ("committed work is intact" in told) == bool(failed)
        has_ended_well(path, name, contents(reference))
        at += 1
    assert at > 8
    figure(f"operations of {name} that need space: a full disk from each on", at)


def test_without_working_locks_only_one_of_two_writers_commits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = files.Files()
    monkeypatch.setattr(fake, "flock", lambda fd, how: None, raising=False)
    with stub.operations(fake):
        monkeypatch.setattr("btr.store.building.Building.collect", lambda self: 0)
        one = StoreWriter.create(path, stub.spec(sources_digest="more"), add=True)
        one.write_shard([stub.passage(5)], [stub.state(5)], stub.vectors(5, 6))
        path.with_name("store.building").rename(path.with_name("aside"))
        remove_passages(path, [0])
        path.with_name("aside").rename(path.with_name("store.building"))
        with pytest.raises(LockedError, match="changed this store meanwhile"):
            one.finish({}, stub.derive, None)
    assert contents(path) == expected(1, 2, 3, 4)


def test_damage_of_a_list_of_removed_passages_is_found(path: Path) -> None:
    manifest = remove_passages(path, [1, 3])
    name = "removed-00000001.btr"
    data = (path / name).read_bytes()
    draw = random.Random(1)
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1 << draw.randrange(8)
        (path / name).write_bytes(bad)
        with pytest.raises(BtrError, match=name):
            TokenStore.open(path)
    (path / name).write_bytes(data)
    assert load_removed(path / name, manifest, len(data)).tolist() == [1, 3]
    # Though all digests are right: another writer's list under this generation's name.
    write_removed(path / name, manifest.spec.store_id, 1, np.array([2]))
    (path / "manifests" / "00000001.json").write_bytes(
        manifest.with_files(
            [entry for entry in manifest.files if entry.name != name] + [file_entry(path, name)]
        ).encode()
    )
    with pytest.raises(CorruptError, match=name):
        TokenStore.open(path)
    (error,) = verify(path).damage
    assert name in error.where
