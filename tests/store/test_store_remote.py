"""Stores on other file systems: copied whole, read in place, checked as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import stub_store as stub
from stub_changes import add, contents, expected, squeeze

from btr.errors import BtrError, CorruptError, ResourceError, UsageError
from btr.store import TokenStore
from btr.store.change import remove_passages
from btr.store.remote import address_of, copy_store, open_system


@pytest.fixture(params=["file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("BTR_CACHE", str(tmp_path / "cache"))
    kind = str(request.param)
    return f"file://{tmp_path}/far/store" if kind == "file" else f"memory://{tmp_path.name}/store"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    stub.build(tmp_path / "store", 5)
    return tmp_path / "store"


def test_a_copy_is_read_as_the_original(store: Path, address: str) -> None:
    copy_store(store, address)
    assert contents(Path(address)) == expected(*range(5))  # a path object eats a slash
    with TokenStore.open(address) as there:
        assert there.ordinal("id-00003") == 3
        assert there.passages([3]) == [stub.passage(3)]
        (folder,) = there.lexical_folders
        assert (folder / "index.bin").exists()


def test_later_generations_are_copied_and_found(store: Path, address: str) -> None:
    copy_store(store, address)
    add(store, 5, 3)
    remove_passages(store, [1])
    squeeze(store)
    wanted = contents(store)
    copy_store(store, address)
    assert contents(Path(address)) == wanted
    copy_store(store, address)  # nothing to do
    assert contents(Path(address)) == wanted


def test_another_store_is_not_overwritten(store: Path, tmp_path: Path, address: str) -> None:
    stub.build(tmp_path / "other", 5, of=stub.spec(sources_digest="others"))
    copy_store(tmp_path / "other", address)
    with pytest.raises(UsageError, match="another store"):
        copy_store(store, address)
    assert contents(Path(address)) == expected(*range(5))


def test_a_store_that_was_changed_otherwise_is_refused(
    store: Path, tmp_path: Path, address: str
) -> None:
    twin = tmp_path / "twin"
    stub.copy_tree(store, twin)
    add(store, 5, 1)
    copy_store(store, address)
    there = contents(Path(address))
    remove_passages(twin, [0])
    with pytest.raises(UsageError, match="a later generation"):
        copy_store(twin, address)  # of the same number
    add(twin, 6, 1)
    with pytest.raises(UsageError, match="changed otherwise"):
        copy_store(twin, address)  # its shard of that name is another
    assert contents(Path(address)) == there


def test_an_interrupted_copy_goes_on(
    store: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, _ = open_system(address)
    stub.build(tmp_path / "other", 5, of=stub.spec(sources_digest="others"))
    put, sent = type(system).put_file, []

    def failing(self: Any, source: str, target: str, **options: Any) -> None:
        if len(sent) == limit:
            raise OSError("the line is dead")
        sent.append(Path(source).name)
        put(self, source, target, **options)

    monkeypatch.setattr(type(system), "put_file", failing)
    # First of another store, whose shards are as long: none of them may stay.
    for source, limit in ((tmp_path / "other", 3), (store, 4), (store, 6), (store, 99)):
        if limit == 99:
            copy_store(source, address)
            break
        with pytest.raises(ResourceError, match="the line is dead"):
            copy_store(source, address)
        with pytest.raises(UsageError, match="no store here"):
            TokenStore.open(address)
    assert contents(Path(address)) == expected(*range(5))
    assert len(sent[3:]) == len(set(sent[3:])) == len(stub.tree(store)) - 1


def test_a_damaged_copy_is_refused(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BTR_CACHE", str(tmp_path / "cache"))
    address = f"file://{tmp_path}/far/store"
    copy_store(store, address)
    far = tmp_path / "far" / "store"
    for name in ("ids.sqlite", "shards/00000001.btr", "manifest.json"):
        data = (far / name).read_bytes()
        for bad in (data[:-1], data[:-1] + bytes([data[-1] ^ 1]), b""):
            (far / name).write_bytes(bad)
            for cached in (tmp_path / "cache").rglob(Path(name).name):
                cached.unlink()
            with pytest.raises(CorruptError):
                contents(Path(address))
        (far / name).unlink()
        with pytest.raises(BtrError):
            contents(Path(address))
        (far / name).write_bytes(data)
    assert contents(Path(address)) == expected(*range(5))


def test_a_cached_file_is_checked(store: Path, tmp_path: Path, address: str) -> None:
    copy_store(store, address)
    TokenStore.open(address).close()
    (cached,) = (tmp_path / "cache").rglob("ids.sqlite")
    cached.write_bytes(b"x" * cached.stat().st_size)
    with TokenStore.open(address) as there:
        assert there.ordinal("id-00003") == 3


def test_a_damaged_store_is_not_copied(store: Path, address: str) -> None:
    shard = store / "shards" / "00000000.btr"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + b"?")
    with pytest.raises(CorruptError):
        copy_store(store, address)
    with pytest.raises(UsageError, match="no store here"):
        TokenStore.open(address)


def test_addresses() -> None:
    assert address_of("s3://bucket/a/b") == address_of(Path("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert address_of(Path("file:///tmp/x")) == "file:///tmp/x"
    for path in ("store", "/tmp/a:b", "a:/b", Path("c:store"), ""):
        assert address_of(path) is None
    with pytest.raises(UsageError, match="no file system of this kind"):
        TokenStore.open("nosuch://bucket/store")
