"""Damage is found before it becomes an answer; hostile files get an error, not a crash."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import stub_store as stub
from stub_hostile import recheck

from btr.data.passages import Passage
from btr.errors import CorruptError, UsageError
from btr.store import StoreWriter, TokenStore, verify
from btr.store.sealed import seal, unseal
from btr.store.shard_file import ShardFile

N = 3
SHARD = Path("shards") / "00000000.btr"


@pytest.fixture
def path(memory_folder: Path) -> Path:
    stub.build(memory_folder / "store", N)
    return memory_folder / "store"


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


def test_a_damaged_id_table_never_gives_a_wrong_answer(path: Path) -> None:
    file = path / "ids.sqlite"
    data = file.read_bytes()
    # All bytes that say something; of the long runs of zeros, every 16th.
    for at in (i for i in range(len(data)) if data[i] or i % 16 == 0):
        file.write_bytes(flipped(data, at))
        with TokenStore.open(path) as store:
            for i in range(N):
                with contextlib.suppress(CorruptError):
                    assert store.ordinal(stub.passage(i).id) == i
            with pytest.raises(CorruptError):
                store.ordinal("nobody")


def test_every_wrong_length_of_a_shard_is_refused(path: Path) -> None:
    data = (path / SHARD).read_bytes()
    for wrong in [*(data[:n] for n in range(len(data))), data + b"\0", data + bytes(4096)]:
        (path / SHARD).write_bytes(wrong)
        with TokenStore.open(path) as store:
            for use in (store.check_sizes, lambda: store.passages([0]), lambda: store.states([0])):
                with pytest.raises(CorruptError, match="size"):
                    use()
        with pytest.raises(CorruptError):  # though the manifest agrees with the wrong size
            ShardFile(path / SHARD, stub.SPEC, stub.SPEC.store_id, 0, 2, len(wrong))


@pytest.mark.parametrize(
    "name", ["manifest.json", "ids.sqlite", "rejects.jsonl", "retrieval/lexical/index.bin"]
)
def test_wrong_lengths_of_other_files_are_refused(path: Path, name: str) -> None:
    data = (path / name).read_bytes()
    for wrong in (b"", data[:-1], data + b"\0", data[:5]):
        (path / name).write_bytes(wrong)
        with pytest.raises(CorruptError, match=Path(name).name):
            TokenStore.open(path)


def test_what_stands_in_a_files_place_is_refused(path: Path) -> None:
    tmp_path = path.parent
    for name in ("manifest.json", "ids.sqlite", str(SHARD)):
        file = path / name
        kept = tmp_path / "kept"
        file.rename(kept)
        for kind in ("nothing", "folder", "pipe", "link"):
            if kind == "folder":
                file.mkdir()
            elif kind == "pipe":
                os.mkfifo(file)
            elif kind == "link":
                file.symlink_to(kept)
            with pytest.raises((CorruptError, UsageError), match=Path(name).name):
                TokenStore.open(path)
            if name != "manifest.json":
                assert not verify(path).ok
            if file.is_dir():
                file.rmdir()
            else:
                file.unlink(missing_ok=True)
        kept.rename(file)
    shards = path / "shards"
    shards.rename(tmp_path / "elsewhere")
    shards.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptError, match="not a folder"):
        TokenStore.open(path)


def test_a_file_cut_off_while_open_is_an_error(path: Path) -> None:
    store = TokenStore.open(path)
    store.states([0])
    with (path / SHARD).open("r+b") as file:
        file.truncate(300)
    with pytest.raises(CorruptError, match="ends too early"):
        store.states([1])


def spans(path: Path) -> list[tuple[int, int]]:
    """(first, last) byte of the state records of shard 0."""
    data = (path / SHARD).read_bytes()
    n = struct.unpack_from("<I", data, 32)[0]
    sizes = [struct.unpack_from("<Q", data, 64 + 16 * i + 8)[0] for i in range(5)]
    base = 256 + sum(sizes[:4])
    offsets = struct.unpack_from(f"<{n + 1}Q", data, 256)
    return [(base + a, base + b) for a, b in pairwise(offsets)]


def equal_states(path: Path, **changes: Any) -> None:
    """A store of two shards whose four records are alike in every byte but their checksums."""
    with StoreWriter.create(path, stub.spec(**changes)) as writer:
        for shard in range(2):
            ids = (f"p{2 * shard}", f"p{2 * shard + 1}")
            writer.write_shard([Passage(i, "text") for i in ids], [stub.state(0)] * 2,
                               stub.vectors(0, 2))  # fmt: skip
        writer.finish({}, None, None)


def test_records_that_are_moved_are_found(tmp_path: Path) -> None:
    path, other = tmp_path / "store", tmp_path / "other"
    equal_states(path)
    equal_states(other, sources_digest="others")
    one, two = path / SHARD, path / "shards" / "00000001.btr"
    data, second, foreign = one.read_bytes(), two.read_bytes(), (other / SHARD).read_bytes()
    (a, b), (c, d) = spans(path)
    swapped = data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
    repeated = data[:c] + data[a:b] + data[d:]
    from_second = data[:a] + second[a:b] + data[b:]
    from_other = data[:a] + foreign[a:b] + data[b:]
    for moved, reads in ((swapped, [0]), (swapped, [1]), (repeated, [1]), (from_second, [0]),
                         (from_other, [0])):  # fmt: skip
        assert moved != data
        assert len(moved) == len(data)
        one.write_bytes(moved)
        with pytest.raises(CorruptError, match="damaged state record"):
            TokenStore.open(path).states(reads)
        assert not verify(path).ok
    one.write_bytes(second)
    with pytest.raises(CorruptError, match="shard number"):
        TokenStore.open(path).states([0])
    one.write_bytes(foreign)
    with pytest.raises(CorruptError, match="wrong store"):
        TokenStore.open(path).states([0])


def test_a_damaged_record_harms_only_its_passage_and_verify_lists_all(path: Path) -> None:
    before = [s.rows.tobytes() for s in TokenStore.open(path).states(range(N))]
    (first, last), _ = spans(path)
    data = bytearray((path / SHARD).read_bytes())
    data[last - 1] ^= 4
    (path / SHARD).write_bytes(bytes(data))
    (path / "extra.txt").write_text("x")
    (path / "rejects.jsonl").unlink()
    (path / "retrieval" / "lexical" / "index.bin").write_text("y")
    report = verify(path)
    assert not report.ok
    found = "\n".join(map(str, report.damage))
    assert f"passage 0 of the shard, byte {first}" in found
    for name in ("extra.txt", "rejects.jsonl", "index.bin", "00000000.btr"):
        assert name in found
    assert len(report.damage) == 5
    (path / "rejects.jsonl").write_text('{"line": 3}\n')
    shutil.copy(path / "ids.sqlite", path / "retrieval" / "lexical" / "copy")
    size = len("\n".join(["0", *(stub.passage(i).id for i in range(N))]))
    (path / "retrieval" / "lexical" / "index.bin").write_text("y" * size)
    store = TokenStore.open(path)
    assert [s.rows.tobytes() for s in store.states([1, 2])] == before[1:]
    assert store.passages([0]) == [stub.passage(0)]
    with pytest.raises(CorruptError):
        store.states([0])


def test_verify_finds_damage_that_the_digests_agree_with(path: Path) -> None:
    """As a program would leave it that writes wrong shards and then seals them."""
    manifest = path / "manifest.json"
    values, data = unseal(manifest.read_bytes()), (path / SHARD).read_bytes()
    vectors = struct.unpack_from("<Q", data, 64 + 2 * 16 + 8)[0]
    tables = 256 + 2 * (8 * 3 + 4)
    wrong_tokens = bytearray(data)
    wrong_tokens[48] += 1
    recheck(wrong_tokens, 0, 256, 0)
    for changed, found in (
        (flipped(data, tables), ["damaged vectors"]),
        (flipped(data, tables + vectors), ["damaged passage record"]),
        (bytes(wrong_tokens), ["tokens that are not there", "totals"]),
    ):
        (path / SHARD).write_bytes(changed)
        values["shards"][0][3] = hashlib.sha256(changed).hexdigest()
        manifest.write_bytes(seal(values))
        report = verify(path)
        assert len(report.damage) == len(found)
        for error, what in zip(report.damage, found, strict=True):
            assert what in error.what


def test_verify_of_a_damaged_manifest_is_a_report(path: Path) -> None:
    (path / "manifest.json").write_bytes(flipped((path / "manifest.json").read_bytes(), 50))
    report = verify(path)
    assert [type(error) for error in report.damage] == [CorruptError]


def test_an_id_table_with_another_schema_is_refused(path: Path) -> None:
    """A view could run what it likes; it must have the right size to get that far."""
    file = path / "ids.sqlite"
    size = file.stat().st_size
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE VIEW ids AS SELECT 'id-00000' AS id, 2 AS ordinal")
    connection.close()
    file.write_bytes(file.read_bytes().ljust(size, b"\0"))
    with pytest.raises(CorruptError, match="id table"):
        TokenStore.open(path).ordinal("id-00000")


# -- larger damage ------------------------------------------------------------------------------


def test_flips_swaps_and_garbage_in_a_larger_store(
    memory_folder: Path, effort: Callable[[str, int, int], int]
) -> None:
    """What is read is what was written, or an error: never anything else."""
    path, n = memory_folder / "store", 200
    stub.build(path, n, of=stub.spec(passages_per_shard=50, dim=256))
    names = [f"shards/{i:08d}.btr" for i in range(4)]
    whole = {name: (path / name).read_bytes() for name in names}
    with TokenStore.open(path) as store:
        clean = [(s.rows.tobytes(), s.text_start) for s in store.states(range(n))]
        texts = store.passages(range(n))
    draw, found = random.Random(11), 0
    tries = effort("flips, splices, zeros and garbage in a larger store", 400, 40_000)
    for _ in range(tries):
        name = draw.choice(names)
        data = bytearray(whole[name])
        at = draw.randrange(len(data))
        kind = draw.randrange(4)
        if kind == 0:
            for _ in range(draw.randint(1, 3)):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        elif kind == 2:
            data[at : at + 64] = draw.randbytes(len(data[at : at + 64]))
        else:  # a piece of another place, or of another shard
            other = whole[draw.choice(names)]
            length, source = draw.choice([16, 512, 4096]), draw.randrange(len(other))
            piece = other[source : source + length][: len(data) - at]
            data[at : at + len(piece)] = piece
        if data == whole[name]:
            found += 1
            continue
        (path / name).write_bytes(data)
        damaged = 0
        for i in range(n):
            try:
                with TokenStore.open(path) if i == 0 else contextlib.nullcontext(store) as store:
                    (state,), (text,) = store.states([i]), store.passages([i])
            except CorruptError:
                damaged += 1
                continue
            assert (state.rows.tobytes(), state.text_start) == clean[i]
            assert text == texts[i]
        if not damaged:  # then it is in the vectors
            with pytest.raises(CorruptError), TokenStore.open(path) as store:
                list(store.vectors())
        (path / name).write_bytes(whole[name])
        found += 1
    assert found == tries
