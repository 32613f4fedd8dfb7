"""Stores on other file systems: copied whole, read in place, checked as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import stub_store as stub
from stub_changes import add, contents, expected, squeeze

from btr.errors import BtrError, CorruptError, UsageError
from btr.store import TokenStore
from btr.store.change import remove_passages
from btr.store.remote import address_of, copy_store


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
