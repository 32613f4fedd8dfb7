"""The bytes on the disk are those of docs/format.md, written out here a second time by hand."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import stub_store as stub

from btr.data.passages import Passage
from btr.errors import BtrError, CorruptError, IncompatibleError, UsageError
from btr.store import FileEntry, Manifest, PassageState, StoreSpec, StoreWriter, TokenStore
from btr.store.format import ShardEntry
from btr.store.sealed import seal, unseal


def crc32c(seed: int, data: bytes) -> int:
    """The checksum from its definition, bit by bit."""
    crc = seed ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_checksum_is_crc32c() -> None:
    assert crc32c(0, b"123456789") == 0xE3069283
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 63, 64, 1000):
        data = rng.bytes(size)
        assert google_crc32c.extend(size, data) == crc32c(size, data)
        followed = data + struct.pack("<I", crc32c(size, data))
        assert google_crc32c.extend(size, followed) == 0x48674BC7


GOLDEN_SPEC = StoreSpec(
    kind="bits", dim=16, split_layer=6, fingerprint={"weights": "ab"}, dense_dim=3,
    passages_per_shard=2, sources_digest="s", settings={"reader": "stub"},
)  # fmt: skip


def golden_shard() -> bytes:
    """Shard 1 of a store of three passages, from the tables of docs/format.md."""
    spec = (
        b'{"dense_dim":3,"dim":16,"fingerprint":{"weights":"ab"},"kind":"bits",'
        b'"passages_per_shard":2,"settings":{"reader":"stub"},"sources_digest":"s",'
        b'"split_layer":6,"version":1}'
    )
    store_id = hashlib.sha256(spec).digest()[:16]

    def checked(kind: int, data: bytes, record: int = 0) -> bytes:
        seed = crc32c(0, store_id + struct.pack("<II", 1, kind)) ^ record
        return data + struct.pack("<I", crc32c(seed, data))

    text = "Zürich".encode()
    passage = struct.pack("<QIIII", 12, 2, 1, len(text), 3) + b"p2" + b"T" + text + b"d/e"
    passages = checked(4, passage)
    states = checked(5, struct.pack("<IIII", 2, 1, 1, 0) + bytes([0x80, 0x01, 0xFF, 0x00]))
    vectors = checked(3, bytes([0xFF, 0, 127]))
    state_table = checked(1, struct.pack("<QQ", 0, len(states)))
    passage_table = checked(2, struct.pack("<QQ", 0, len(passages)))
    sections = (state_table, passage_table, vectors, passages, states)
    size = 256 + sum(map(len, sections))
    header = bytes.fromhex("894254520d0a1a0a") + struct.pack("<II", 1, 1) + store_id
    header += struct.pack("<IIIIQQ", 1, 2, 3, 1, 2, size)
    for kind, section in enumerate(sections, 1):
        header += struct.pack("<IIQ", kind, 0, len(section))
    header += bytes(108)
    header += struct.pack("<I", crc32c(0, header))
    assert len(header) == 256
    return header + b"".join(sections)


def test_golden_shard(tmp_path: Path) -> None:
    rows = np.array([[0x80, 0x01], [0xFF, 0x00]], np.uint8)
    with StoreWriter.create(tmp_path / "store", GOLDEN_SPEC) as writer:
        for ids in (["p0", "p1"], ["p2"]):
            writer.write_shard(
                [Passage(i, "Zürich", "T", "d/e", 12) for i in ids],
                [PassageState(rows, 1, True)] * len(ids),
                np.array([[-1, 0, 127]] * len(ids), np.int8),
            )
        writer.finish({"stored": 3}, None, None)
    assert (tmp_path / "store" / "shards" / "00000001.btr").read_bytes() == golden_shard()


def test_golden_manifest(tmp_path: Path) -> None:
    manifest = Manifest(
        GOLDEN_SPEC, 3, (ShardEntry(7, 2, 10, "f" * 64),), 2, 0, 1,
        {"passages": 1, "states": 2, "tables": 3, "vectors": 4}, {"stored": 1}, {"ratio": 0.2},
        (FileEntry("ids.sqlite", 5, "0" * 64), FileEntry("removed-00000003.btr", 12, "1" * 64)),
    )  # fmt: skip
    body = (
        '{\n "compression": {"ratio": 0.2},\n "counts": {"stored": 1},\n "files": ['
        '["ids.sqlite", 5, "' + "0" * 64 + '"], ["removed-00000003.btr", 12, "' + "1" * 64 + '"]'
        '],\n "format": "btr-store",\n "generation": 3,\n'
        ' "parts": {"passages": 1, "states": 2, "tables": 3, "vectors": 4},\n "removed": 1,\n'
        ' "shards": [[7, 2, 10, "' + "f" * 64 + '"]],\n'
        ' "spec": {"dense_dim": 3, "dim": 16, "fingerprint": {"weights": "ab"}, "kind": "bits", '
        '"passages_per_shard": 2, "settings": {"reader": "stub"}, "sources_digest": "s", '
        '"split_layer": 6},\n "store": "' + GOLDEN_SPEC.store_id.hex() + '",\n'
        ' "tokens": 2,\n "truncated": 0,\n "version": 1,\n "digest": "'
    ).encode()
    expected = body + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
    assert manifest.encode() == expected
    assert Manifest.decode(expected, tmp_path) == manifest


def test_the_store_id_depends_on_every_field() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"kind": "fp16"}, {"dim": 24}, {"split_layer": 2}, {"fingerprint": {}},
        {"dense_dim": 5}, {"passages_per_shard": 3}, {"sources_digest": ""}, {"settings": {}},
    ]  # fmt: skip
    assert len({stub.spec(**change).store_id for change in changes}) == len(changes)
    assert stub.spec(settings=dict(reversed(list(stub.SPEC.settings.items())))).store_id == (
        stub.SPEC.store_id
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0), ("dim", 12), ("dim", 8.0), ("dim", True), ("dim", 1 << 40), ("split_layer", -1),
        ("dense_dim", 8193), ("dense_dim", {}), ("passages_per_shard", 0),
        ("passages_per_shard", 65_537), ("sources_digest", 5),
        ("sources_digest", "\ud800"), ("sources_digest", "x" * 4097),
        ("fingerprint", {"a b": "c"}), ("fingerprint", {"a": 1}), ("fingerprint", ["a"]),
        ("fingerprint", {str(i): "" for i in range(65)}), ("settings", {"a": float("nan")}),
        ("settings", {"a": [1]}), ("settings", {"a": 1 << 63}), ("settings", {1: "a"}),
    ],
)  # fmt: skip
def test_a_spec_out_of_its_limits_is_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=field):
        stub.spec(**{field: value})


def test_an_unknown_kind_of_states_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="int3"):
        stub.spec(kind="int3")


def test_sealed_json() -> None:
    data = seal({"b": 1, "a": [True, None, "é"]})
    assert json.loads(data)["a"] == [True, None, "é"]
    assert unseal(data) == {"b": 1, "a": [True, None, "é"]}
    for i in range(len(data)):
        for flip in (1, 32, 128):
            with pytest.raises(ValueError, match="digest"):
                unseal(data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :])
        with pytest.raises(ValueError, match="digest"):
            unseal(data[:i])


def resealed(manifest: bytes, change: Any) -> bytes:
    values = unseal(manifest)
    change(values)
    return seal(values)


def set_name(name: str) -> Any:
    def change(values: dict[str, Any]) -> None:
        values["files"][-1][0] = name

    return change


@pytest.mark.parametrize(
    "name",
    [
        "../x", "/etc/passwd", "retrieval/../../x", "retrieval/..", "retrieval/.", "retrieval//x",
        "retrieval/a/b/c/d/e", "retrieval/a b", "retrieval/a\u0000", "retrieval/a\n", "retrieval/é",
        "retrieval/" + "a" * 129, "shards/1.btr", "shards/00000000.btr ", "shards/00000009.btr",
        "manifest.json", "shards/" + "\u0660" * 8 + ".btr", "other.bin", "retrieval\\x", "C:x", "",
        "ids.sqlite", "shards/00000000.btr",
    ],
)  # fmt: skip
def test_a_manifest_cannot_name_other_files(tmp_path: Path, name: str) -> None:
    stub.build(tmp_path / "store")
    file = tmp_path / "store" / "manifest.json"
    file.write_bytes(resealed(file.read_bytes(), set_name(name)))
    with pytest.raises(CorruptError, match=r"manifest\.json"):
        TokenStore.open(tmp_path / "store")


def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    stub.build(tmp_path / "store")
    data = (tmp_path / "store" / "manifest.json").read_bytes()

    def twins(values: dict[str, Any]) -> None:
        values["files"] += [[name, 0, "0" * 64] for name in ("retrieval/A", "retrieval/a")]
        values["files"].sort()

    with pytest.raises(CorruptError, match="each once"):
        Manifest.decode(resealed(data, twins), tmp_path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (0, -1), (0, 10**8), (0, 1), (0, "0"), (0, True), (1, 0), (1, 65_537), (1, 3), (1, 1.0),
        (2, -1), (2, None), (2, 1), (3, "0" * 63), (3, "F" * 64), (3, 5),
    ],
)  # fmt: skip
def test_impossible_shards_are_refused(tmp_path: Path, column: int, value: object) -> None:
    stub.build(tmp_path / "store")
    data = (tmp_path / "store" / "manifest.json").read_bytes()

    def change(values: dict[str, Any]) -> None:
        assert len(values["shards"]) > 1
        values["shards"][0][column] = value

    with pytest.raises(CorruptError, match=r"impossible value of (shards|parts)"):
        Manifest.decode(resealed(data, change), tmp_path)


def test_rows_of_other_lengths_are_refused(tmp_path: Path) -> None:
    stub.build(tmp_path / "store")
    data = (tmp_path / "store" / "manifest.json").read_bytes()
    for change in (
        lambda v: v["shards"][0].append(1),
        lambda v: v["shards"][0].pop(),
        lambda v: v["files"][0].append(1),
        lambda v: v["files"][0].pop(),
        lambda v: v["shards"].append({}),
        lambda v: v.update(shards=None),
    ):
        with pytest.raises(CorruptError):
            Manifest.decode(resealed(data, change), tmp_path)


def test_a_newer_format_is_refused_by_its_version(tmp_path: Path) -> None:
    stub.build(tmp_path / "store")
    file = tmp_path / "store" / "manifest.json"
    data = file.read_bytes()
    file.write_bytes(resealed(data, lambda v: v.update(version=2, generation=7)))
    with pytest.raises(IncompatibleError, match=r"newer.*expected format version 1, found 2"):
        TokenStore.open(tmp_path / "store")
    file.write_bytes(resealed(data, lambda v: v["spec"].update(kind="int3")))
    with pytest.raises(IncompatibleError, match="int3"):
        TokenStore.open(tmp_path / "store")
    for change in ({"extra": 1}, {"store": "0" * 32}, {"format": "other"}):
        file.write_bytes(resealed(data, lambda v, c=change: v.update(c)))
        with pytest.raises(CorruptError, match=r"manifest\.json"):
            TokenStore.open(tmp_path / "store")
    file.write_bytes(data)
    shard = tmp_path / "store" / "shards" / "00000000.btr"
    header = bytearray(shard.read_bytes()[:252])
    header[8] = 2
    shard.write_bytes(
        bytes(header) + struct.pack("<I", crc32c(0, bytes(header))) + shard.read_bytes()[256:]
    )
    with pytest.raises(IncompatibleError, match="version"):
        TokenStore.open(tmp_path / "store").states([0])


def test_json_that_is_not_the_canonical_form_is_refused(tmp_path: Path) -> None:
    stub.build(tmp_path / "store")
    data = (tmp_path / "store" / "manifest.json").read_bytes()
    body = data[: data.rindex(b'"digest"')]
    for bad in (
        body.replace(b'"tokens": 14', b'"tokens": 14.0'),
        body.replace(b'"tokens": 14', b'"tokens": 14e0'),
        body.replace(b'"tokens": 14', b'"tokens": ' + b"9" * 5000),
        body.replace(b'"tokens": 14', b'"tokens": 1, "tokens": 14'),
        body.replace(b'"tokens": 14', b'"tokens": ' + b"[" * 100_000),
        body.replace(b'"ratio": 0.5', b'"ratio": 1e400'),
        body.replace(b'"ratio": 0.5', b'"ratio": NaN'),
        body.replace(b" ", b"  ", 1),
        body.replace(b"sources", b"s\\u006furces"),
    ):
        assert bad != body
        sealed = bad + b'"digest": "'
        sealed += hashlib.sha256(sealed).hexdigest().encode() + b'"\n}\n'
        with pytest.raises(BtrError):
            Manifest.decode(sealed, tmp_path)
