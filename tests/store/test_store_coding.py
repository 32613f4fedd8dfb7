"""Coded states: every mixture of shared, merged and lone vectors comes back, damage does not."""

from __future__ import annotations

import math
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import stub_store as stub

from btr.errors import CorruptError
from btr.store import PassageState
from btr.store.coding import Coder
from btr.store.coding_tables import CODING, CodingTables, load_coding, write_coding
from btr.store.entropy import CLASSES, DRIFTS, SCALE, BitModel
from btr.store.neighbours import NeighbourModel
from btr.store.shard import StateRecord, decode_state, section_seed

BITS = 3


def tables(
    ids: int, scale_bytes: int, seed: int = 0, *, lossless: bool = False, beside: bool = False
) -> CodingTables:
    """Of ``ids`` token ids, a third of them shared, groups of all sizes among the others."""
    draw = np.random.default_rng(seed)
    shared = draw.random(ids) < 1 / 3
    groups = np.where(shared, 0, draw.choice([0, 1, 5, 256, 257, 700], ids))
    model = None
    if lossless:
        owns = draw.random(ids) < 0.5
        model = BitModel(
            np.where(owns, np.cumsum(owns), 0),
            draw.integers(0, CLASSES, (int(owns.sum()) + 1, 8 * BITS), np.uint8),
            draw.integers(1, SCALE, CLASSES * DRIFTS).astype(np.uint16),
        )
    neighbours = None
    if beside:
        based = shared | (draw.random(ids) < 0.3)
        neighbours = NeighbourModel(
            np.where(based, np.cumsum(based) - 1, -1),
            draw.integers(-127, 128, (int(based.sum()), 8 * BITS)).astype(np.int8),
            draw.integers(1, 30, 8 * BITS).astype(np.uint8),
            draw.random(8 * BITS).astype(np.float32) / 200,
            draw.integers(-127, 128, (8 * BITS, 8 * BITS)).astype(np.int8),
            draw.integers(-127, 128, (8 * BITS, 8 * BITS)).astype(np.int8),
        )
    return CodingTables(
        draw.permutation(ids + 7)[:ids], shared,
        draw.integers(0, 256, (int(shared.sum()), BITS + scale_bytes), np.uint8), groups,
        draw.integers(0, 256, (int(groups.sum()), BITS), np.uint8), scale_bytes, model,
        neighbours,
    )  # fmt: skip


def states(
    of: CodingTables, n: int, seed: int = 1
) -> list[tuple[PassageState, np.ndarray, np.ndarray]]:
    """Random states, their ids, and the groups that their tokens were merged into."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(n):
        t = int(draw.integers(0, 40)) if i else 0
        rank = draw.integers(0, len(of.ids), t)
        groups = np.where(draw.random(t) < 0.4, draw.integers(0, 1 << 30, t), -1)
        groups = np.where(of.groups[rank] > 0, groups % np.maximum(of.groups[rank], 1), -1)
        if of.neighbours is not None:  # an id without groups can be left out
            groups[(of.groups[rank] == 0) & (of.neighbours.owner[rank] >= 0)] = 0
        groups = np.where(draw.random(t) < 0.5, groups, -1)
        rows = draw.integers(0, 256, (t, BITS + of.scale_bytes), np.uint8)
        state = PassageState(rows, int(draw.integers(0, t + 1)), bool(draw.random() < 0.3))
        made.append((state, of.ids[rank], groups))
    return made


def wanted(of: CodingTables, state: PassageState, ids: np.ndarray, groups: np.ndarray) -> bytes:
    """The rows as a loop makes them."""
    rank = {token: place for place, token in enumerate(of.ids.tolist())}
    rows = state.rows.copy()
    starts = np.cumsum(of.groups) - of.groups
    for i, token in enumerate(ids.tolist()):
        place = rank[token]
        if of.shared[place]:
            rows[i] = of.rows[int(of.shared[:place].sum())]
        elif groups[i] >= 0 and of.groups[place]:
            rows[i, :BITS] = of.codebook[starts[place] + groups[i]]
    if of.neighbours is None:
        return rows.tobytes()
    places = [rank[token] for token in ids.tolist()]
    asked = [bool(of.shared[place]) or bool(of.groups[place] == 0 and group >= 0)
             for place, group in zip(places, groups.tolist(), strict=True)]  # fmt: skip
    for i, place in enumerate(places):
        if not asked[i]:
            continue
        gains = of.neighbours.gains
        score = of.neighbours.base[of.neighbours.owner[place]] * of.neighbours.steps.astype(int)
        before = [j for j in range(i) if not asked[j]][-1:]
        after = [j for j in range(i + 1, len(places)) if not asked[j]][:1]
        for found, factor in ((before, of.neighbours.left), (after, of.neighbours.right)):
            for j in found:
                signs = 2 * np.unpackbits(rows[j, :BITS]).astype(int) - 1
                weight = max(1, round(8 / math.sqrt(min(64, abs(i - j)))))
                score = score + weight * (signs @ factor.astype(int))
        rows[i, :BITS] = np.packbits(np.rint(score.astype(np.float32) * gains) >= 0)
    return rows.tobytes()


@pytest.mark.parametrize("ids", [1, 2, 100, 256, 257, 3000, 65_536, 65_537, 70_000])
@pytest.mark.parametrize("scale_bytes", [0, 2])
@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_what_is_coded_comes_back(ids: int, scale_bytes: int, lossless: bool, beside: bool) -> None:
    of = tables(ids, scale_bytes, lossless=lossless, beside=beside)
    coder = Coder(of)
    given = states(of, 30)
    records = []
    for state, tokens, groups in given:
        record, rows = coder.encode(state, tokens, groups)
        assert rows.tobytes() == wanted(of, state, tokens, groups)
        records.append(StateRecord.of(record.encode(7)))
    for (state, tokens, groups), found in zip(given, coder.decode(records), strict=True):
        assert found is not None
        assert found.rows.tobytes() == wanted(of, state, tokens, groups)
        assert (found.text_start, found.truncated) == (state.text_start, state.truncated)
    assert coder.decode([]) == []


def test_frequent_ids_take_one_byte() -> None:
    assert tables(200, 0).one_byte == 200 or tables(200, 0).one_byte == 256
    assert tables(30_522, 0).one_byte == 137
    assert (tables(65_536, 0).one_byte, tables(65_536, 0).trail_bytes) == (0, 1)
    assert tables(65_537, 0).trail_bytes == 2


@pytest.mark.parametrize("lossless", [False, True])
def test_damage_is_never_decoded_and_harms_only_its_passage(lossless: bool) -> None:
    of = tables(400, 1, lossless=lossless, beside=lossless)
    coder = Coder(of)
    given = states(of, 4)
    records = [coder.encode(*one)[0] for one in given]
    whole = [state.rows.tobytes() for state in coder.decode(records) if state is not None]
    assert len(whole) == 4
    draw, refused = np.random.default_rng(3), 0
    for at in range(len(records[2].body)):
        body = records[2].body.copy()
        body[at] ^= 1 << draw.integers(8)
        found = coder.decode([*records[:2], StateRecord(records[2].head, body), records[3]])
        # Another id with a vector of its own decodes to the same rows: nothing is lost.
        assert found[2] is None or found[2].rows.tobytes() == whole[2], at
        refused += found[2] is None
        found[2] = None
        assert [s.rows.tobytes() for s in found if s is not None] == [*whole[:2], whole[3]]
    assert refused > 0.8 * len(records[2].body)
    for length in range(len(records[2].body)):
        assert coder.decode([StateRecord(records[2].head, records[2].body[:length])]) == [None]


@pytest.mark.parametrize("lossless", [False, True])
def test_damage_of_the_codebook_or_the_tables_is_found(tmp_path: Path, lossless: bool) -> None:
    of = tables(60, 0, lossless=lossless, beside=lossless)
    spec = stub.spec(dim=8 * BITS)
    (tmp_path / "book").write_bytes(of.codebook.tobytes())
    path = tmp_path / "coding"
    write_coding(path, spec, 3, of, tmp_path / "book")
    data = path.read_bytes()
    coder = Coder(load_coding(path, spec, 3, len(data)))
    given = [one for one in states(of, 60) if np.any(one[2] >= 0)]
    records = [coder.encode(*one)[0] for one in given]
    clean = [wanted(of, *one) for one in given]
    assert [s.rows.tobytes() for s in coder.decode(records) if s is not None] == clean
    changed = 0
    for at in range(0, len(data), 7):
        bad = bytearray(data)
        bad[at] ^= 16
        path.write_bytes(bad)
        try:
            damaged = Coder(load_coding(path, spec, 3, len(data)))
        except CorruptError:
            continue
        found = damaged.decode(records)
        for state, rows in zip(found, clean, strict=True):
            assert state is None or state.rows.tobytes() == rows
        changed += any(state is None for state in found)
    assert changed > 10
    path.write_bytes(data)
    for other in ({"store": stub.spec(dim=16), "generation": 3}, {"store": spec, "generation": 4}):
        with pytest.raises(CorruptError, match="coding tables"):
            load_coding(path, other["store"], other["generation"], len(data))  # type: ignore[arg-type]
    for size in (0, 10, 60, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(CorruptError):
            load_coding(path, spec, 3, size)


@pytest.mark.parametrize("lossless", [False, True])
def test_hostile_coding_files(
    memory_folder: Path, effort: Callable[[str, int, int], int], lossless: bool
) -> None:
    of, spec, path = (
        tables(60, 0, lossless=lossless, beside=lossless),
        stub.spec(dim=8 * BITS),
        memory_folder / "coding",
    )
    (memory_folder / "book").write_bytes(of.codebook.tobytes())
    write_coding(path, spec, 3, of, memory_folder / "book")
    data, seed = path.read_bytes(), section_seed(spec.store_id, 3, CODING)
    checked = len(data) - of.codebook.nbytes
    records = [Coder(of).encode(*one)[0] for one in states(of, 20)]
    draw, opened = random.Random(4), 0
    numbers = [0, 1, 255, 256, 65_536, (1 << 24) - 1, 1 << 24, (1 << 31) - 1, (1 << 32) - 1]
    tries = effort("hostile coding files, checksums right", 2000, 50_000)
    tracemalloc.start()
    try:
        for _ in range(tries):
            bad = bytearray(data)
            for _ in range(draw.randint(1, 3)):
                at = draw.choice([draw.randrange(0, 64, 4), draw.randrange(64, checked - 4, 4)])
                struct.pack_into("<I", bad, at, draw.choice(numbers))
            if draw.random() < 0.1:
                del bad[draw.randrange(len(bad)) :]
            if len(bad) >= checked:
                crc = google_crc32c.extend(seed, bytes(bad[: checked - 4]))
                struct.pack_into("<I", bad, checked - 4, crc)
            path.write_bytes(bad)
            try:
                coder = Coder(load_coding(path, spec, 3, len(bad)))
            except CorruptError:
                continue
            opened += 1
            for state, record in zip(coder.decode(records), records, strict=True):
                assert state is None or len(state.rows) == record.tokens
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert 0 < opened < tries


def test_a_coded_record_is_no_raw_one() -> None:
    of = tables(10, 0)
    record = Coder(of).encode(*states(of, 2)[1])[0].encode(0)
    assert isinstance(decode_state(record, BITS), StateRecord)
