"""A build that is killed, starved or raced leaves nothing but a store or the means to finish it."""

from __future__ import annotations

import errno
import os
import random
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_store as stub

from btr import files
from btr.data.passages import Passage
from btr.errors import (
    BtrError,
    CorruptError,
    IncompatibleError,
    InputError,
    LockedError,
    ResourceError,
    UsageError,
)
from btr.store import PassageState, StoreWriter, TokenStore, verify


@pytest.fixture
def reference(tmp_path: Path) -> dict[str, bytes]:
    """The bytes of the stub store, built without interruption."""
    folder = tmp_path / "reference"
    folder.mkdir()
    stub.build(folder / "store")
    assert verify(folder / "store").ok
    return stub.tree(folder / "store")


def finish(path: Path) -> dict[str, bytes]:
    """Resume unless the store is there, and return its bytes."""
    if not path.exists():
        stub.build(path, resume=True)
    left = {name for name, _ in files.list_tree(path.parent)}
    assert not {name for name in left if ".building" in name or ".tmp" in name}
    return stub.tree(path)


def crash(path: Path, at: int, *, resume: bool = False) -> int | None:
    """Build and die at operation ``at``; None if the build ended before."""
    fake = stub.CrashingFiles(at)
    with stub.operations(fake):
        try:
            stub.build(path, resume=resume)
        except stub.Crash:
            return None
    return fake.count


def test_a_crash_at_any_operation_loses_nothing(
    tmp_path: Path, reference: dict[str, bytes], figure: Callable[[str, int], None]
) -> None:
    at, total = 0, None
    while total is None:
        folder = tmp_path / str(at)
        folder.mkdir()
        total = crash(folder / "store", at)
        assert finish(folder / "store") == reference, f"crash at operation {at}"
        at += 1
    assert total > 100  # every write, sync, rename ... of the build was an operation of its own
    figure("operations of a build: a crash at each", total)


def test_a_second_crash_while_resuming_loses_nothing(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    draw = random.Random(7)
    for trial in range(60):
        folder = tmp_path / str(trial)
        folder.mkdir()
        first, second = draw.randrange(5, 140), draw.randrange(100)
        if crash(folder / "store", first) is None and not (folder / "store").exists():
            crash(folder / "store", second, resume=True)
        assert finish(folder / "store") == reference, f"crashes at {first} and {second}"


def test_no_name_is_given_before_the_bytes_are_synced(tmp_path: Path) -> None:
    paths: dict[int, Path] = {}
    bytes_unsynced, names_unsynced = set[Path](), set[Path]()
    fake = files.Files()

    def open_(path: Path, flags: int, mode: int = 0o777) -> int:
        fd = os.open(path, flags, mode)
        paths[fd] = path
        return fd

    def write(fd: int, data: Any) -> int:
        bytes_unsynced.add(paths[fd])
        return os.write(fd, data)

    def fsync(fd: int) -> None:
        bytes_unsynced.discard(paths[fd])
        names_unsynced.difference_update([n for n in names_unsynced if n.parent == paths[fd]])

    def rename(source: Path, target: Path) -> None:
        assert not {p for p in bytes_unsynced | names_unsynced if source in (p, *p.parents)}
        source.rename(target)
        names_unsynced.add(target)

    for operation in (open_, write, fsync, rename):
        setattr(fake, operation.__name__.rstrip("_"), operation)
    with stub.operations(fake):
        stub.build(tmp_path / "store")
    assert not bytes_unsynced | names_unsynced


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_or_failing_disk_is_an_error_and_the_build_goes_on_later(
    tmp_path: Path, reference: dict[str, bytes], figure: Callable[[str, int], None], code: int
) -> None:
    at, failed = 0, ["something"]
    while failed:
        folder = tmp_path / str(at)
        folder.mkdir()
        path = folder / "store"
        fake, failed = stub.failing(at, code)
        with stub.operations(fake):
            try:
                stub.build(path)
            except ResourceError as caught:
                told = caught.todo
            else:
                told = ""
        assert told.startswith("committed work is intact" if failed else ""), f"operation {at}"
        assert finish(path) == reference, f"failure from operation {at} on ({failed[:1]})"
        at += 1
    assert at > 50  # as many places where space can run out
    figure(f"operations of a build that need space: {errno.errorcode[code]} from each on", at)


def test_the_file_size_limit_cuts_a_write_short_and_is_reported(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
        with pytest.raises(ResourceError, match="file size"):
            stub.build(tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert finish(tmp_path / "store") == reference


def test_short_writes_change_nothing(tmp_path: Path, reference: dict[str, bytes]) -> None:
    fake = stub.hooked(lambda name, args: None)
    fake.write = lambda fd, data: os.write(fd, bytes(data)[:7])
    with stub.operations(fake):
        stub.build(tmp_path / "store")
    assert stub.tree(tmp_path / "store") == reference


def test_of_two_writers_exactly_one_wins(
    tmp_path: Path, effort: Callable[[str, int, int], int]
) -> None:
    for race in range(effort("races of two writers", 20, 100)):
        gate, done = threading.Barrier(2), threading.Barrier(2)
        results: list[object] = []

        def work(
            path: Path = tmp_path / f"store{race}",
            gate: threading.Barrier = gate,
            done: threading.Barrier = done,
            results: list[object] = results,
        ) -> None:
            gate.wait()
            try:
                writer = StoreWriter.create(path, stub.SPEC)
            except BtrError as error:
                results.append(error)
                done.wait()
            else:
                results.append(writer)
                done.wait()
                writer.close()

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [r for r in results if isinstance(r, BtrError)]
        assert len(errors) == 1
        assert isinstance(errors[0], LockedError)
        assert str(os.getpid()) in errors[0].found
        assert os.uname().nodename in errors[0].found


def begun(path: Path) -> None:
    """Leave a build with one committed shard."""
    with StoreWriter.create(path, stub.SPEC) as writer:
        writer.write_shard([stub.passage(0), stub.passage(1)], [stub.state(0), stub.state(1)],
                           stub.vectors(0, 2))  # fmt: skip


def test_an_existing_target_or_build_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store"
    begun(path)
    with pytest.raises(UsageError, match="--resume"):
        stub.build(path)
    with pytest.raises(UsageError, match="not finished"):
        TokenStore.open(path)
    stub.build(path, resume=True)
    before = stub.tree(path)
    for resume in (False, True):
        with pytest.raises(UsageError, match="target exists"):
            stub.build(path, resume=resume)
    assert stub.tree(path) == before
    (tmp_path / "mine.building").mkdir()
    (tmp_path / "mine.building" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not an unfinished build"):
        stub.build(tmp_path / "mine", resume=True)
    assert (tmp_path / "mine.building" / "thesis.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="does not exist"):
        stub.build(tmp_path / "no" / "store", rejects=False)


CHANGED = {
    "kind": "fp16", "dim": 24, "split_layer": 2, "dense_dim": 8, "passages_per_shard": 3,
    "sources_digest": "others",
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGED)
def test_resume_with_another_spec_names_the_field(tmp_path: Path, field: str) -> None:
    begun(tmp_path / "store")
    with pytest.raises(IncompatibleError, match=field):
        StoreWriter.create(tmp_path / "store", stub.spec(**{field: CHANGED[field]}), resume=True)


def test_resume_with_another_fingerprint_or_setting_names_it(tmp_path: Path) -> None:
    begun(tmp_path / "store")
    other = stub.spec(fingerprint={"tokenizer": "t1", "weights": "w2"})
    with pytest.raises(IncompatibleError, match=r"fingerprint\.weights.*'w2'.*'w1'"):
        StoreWriter.create(tmp_path / "store", other, resume=True)
    other = stub.spec(settings={**stub.SPEC.settings, "lossless": 1})
    with pytest.raises(IncompatibleError, match=r"settings\.lossless"):
        StoreWriter.create(tmp_path / "store", other, resume=True)


def test_resume_builds_a_damaged_shard_again(tmp_path: Path, reference: dict[str, bytes]) -> None:
    path = tmp_path / "store"
    begun(path)
    shard = tmp_path / "store.building" / "shards" / "00000000.btr"
    data = shard.read_bytes()
    shard.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with StoreWriter.create(path, stub.SPEC, resume=True) as writer:
        assert writer.committed == 0
    assert finish(path) == reference


def test_resume_trusts_no_commit_of_another_store(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    path = tmp_path / "store"
    begun(path)
    with StoreWriter.create(tmp_path / "other", stub.spec(sources_digest="others")) as writer:
        writer.write_shard([stub.passage(0), stub.passage(1)], [stub.state(0), stub.state(1)],
                           stub.vectors(0, 2))  # fmt: skip
    for name in ("commits/00000000.json", "shards/00000000.btr"):
        (tmp_path / "other.building" / name).rename(tmp_path / "store.building" / name)
    with StoreWriter.create(path, stub.SPEC, resume=True) as writer:
        assert writer.committed == 0
    StoreWriter.create(tmp_path / "other", stub.SPEC.__class__(
        **stub.SPEC.as_dict() | {"sources_digest": "others"}), resume=True).discard()  # fmt: skip
    assert finish(path) == reference


def test_a_sealed_build_with_a_file_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store"
    stub.build(path)
    path.rename(tmp_path / "store.building")
    (tmp_path / "store.building" / "ids.sqlite").rename(tmp_path / "kept")
    with pytest.raises(CorruptError, match=r"ids\.sqlite"):
        stub.build(path, resume=True)
    (tmp_path / "kept").rename(tmp_path / "store.building" / "ids.sqlite")
    stub.build(path, resume=True)
    assert verify(path).ok


def test_a_target_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    path = tmp_path / "store"
    begun(path)
    with StoreWriter.create(path, stub.SPEC, resume=True) as writer:
        path.mkdir()
        with pytest.raises(UsageError, match="appeared meanwhile"):
            writer.finish({}, None, None)
        path.rmdir()
        writer.finish({}, None, None)
        with pytest.raises(UsageError, match="is finished"):
            writer.finish({}, None, None)
    assert TokenStore.open(path).passages([1]) == [stub.passage(1)]


def test_a_link_in_the_place_of_a_build_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "other")
    (tmp_path / "store.building").symlink_to(tmp_path / "other.building")
    with pytest.raises(UsageError, match="not a folder"):
        stub.build(tmp_path / "store", resume=True)
    for name in ("/", "a\0b"):
        with pytest.raises(UsageError, match="not a name"):
            StoreWriter.create(name, stub.SPEC)


def test_a_damaged_record_of_the_build_itself_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "store")
    file = tmp_path / "store.building" / "build.json"
    file.write_bytes(file.read_bytes().replace(b"w1", b"w3"))
    with pytest.raises(CorruptError, match=r"build\.json"):
        stub.build(tmp_path / "store", resume=True)


def test_what_cannot_be_stored_is_refused_and_leaves_the_build_as_it_was(
    tmp_path: Path, reference: dict[str, bytes]
) -> None:
    path = tmp_path / "store"
    one, two = stub.passage(0), stub.passage(1)
    good = [stub.state(0), stub.state(1)]
    long = Passage("i" * 513, "text")
    with StoreWriter.create(path, stub.SPEC) as writer:
        with pytest.raises(InputError, match="no passages"):
            writer.finish({}, None, None)
        for passages, match in (
            ([one, Passage("a", "\ud800")], "UTF-8"),
            ([one, Passage("", "text")], "wrong length"),
            ([one, long], "wrong length"),
            ([one, Passage("a", "x" * (64 << 20))], "too long"),
            ([one, Passage("a", "text", start=-1)], "start"),
        ):
            with pytest.raises(InputError, match=match):
                writer.write_shard(passages, good, stub.vectors(0, 2))
        rows = good[1].rows
        for bad in (
            PassageState(rows.astype("int16"), 0, False),
            PassageState(rows[:, :1].copy(), 0, False),
            PassageState(rows[::2], 0, False),
            PassageState(rows, 99, False),
            PassageState(rows, -1, False),
            PassageState(np.empty((32 << 20, 2), np.uint8), 0, False),
        ):
            with pytest.raises(UsageError):
                writer.write_shard([one, two], [good[0], bad], stub.vectors(0, 2))
        for vectors in (stub.vectors(0, 1), stub.vectors(0, 2).astype("int16")):
            with pytest.raises(UsageError, match="vectors"):
                writer.write_shard([one, two], good, vectors)
        for count in (0, 3):
            with pytest.raises(UsageError, match="wrong number"):
                writer.write_shard([one] * count, good[:1] * count, stub.vectors(0, count))
        writer.write_shard([one], good[:1], stub.vectors(0, 1))
        with pytest.raises(UsageError, match="last shard"):
            writer.write_shard([two], good[1:], stub.vectors(1, 2))
    (tmp_path / "store.building" / "commits" / "00000000.json").unlink()
    assert finish(path) == reference


def test_a_passage_id_used_twice_is_refused(tmp_path: Path) -> None:
    with StoreWriter.create(tmp_path / "store", stub.SPEC) as writer:
        writer.write_shard([stub.passage(7)] * 2, [stub.state(0)] * 2, stub.vectors(0, 2))
        with pytest.raises(InputError, match=r"same id.*id-00007.*passages 0 and 1"):
            writer.finish({}, None, None)


def test_derived_files_must_have_names_that_a_store_can_hold(tmp_path: Path) -> None:
    def bad_name(folder: Path, passages: object, first: int) -> None:
        (folder / "a b").write_text("x")

    def bad_link(folder: Path, passages: object, first: int) -> None:
        (folder / "link").symlink_to("/etc/passwd")

    for derive in (bad_name, bad_link):
        with StoreWriter.create(tmp_path / "store", stub.SPEC, resume=True) as writer:
            if not writer.committed:
                writer.write_shard([stub.passage(0)], [stub.state(0)], stub.vectors(0, 1))
            with pytest.raises((UsageError, CorruptError)):
                writer.finish({}, derive, None)
    with StoreWriter.create(tmp_path / "store", stub.SPEC, resume=True) as writer:
        with pytest.raises(UsageError):
            writer.finish({"stored": -1}, None, None)
        manifest = writer.finish({"stored": 1}, None, None)
    assert manifest.counts == {"stored": 1}
    assert verify(tmp_path / "store").ok
