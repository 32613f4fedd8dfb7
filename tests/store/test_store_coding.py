"""Coded states: every mixture of shared, merged and lone vectors comes back, damage does not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import stub_store as stub
from stub_coding import BITS, states, tables

from btr.errors import CorruptError
from btr.store import PassageState
from btr.store.coding import Coder
from btr.store.coding_tables import CodingTables, load_coding, write_coding
from btr.store.shard import StateRecord, decode_state


def wanted(of: CodingTables, state: PassageState, ids: np.ndarray, groups: np.ndarray) -> bytes:
    """The rows as a loop makes them."""
    rank = {token: place for place, token in enumerate(of.ids.tolist())}
    rows = state.rows.copy()
    starts = np.cumsum(of.groups) - of.groups
    for i, token in enumerate(ids.tolist()):
        place = rank[token]
        if of.shared[place]:
            rows[i, : BITS + of.scale_bytes] = of.rows[int(of.shared[:place].sum())]
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


@pytest.mark.parametrize("ids", [1, 2, 100, 256, 257, 3000, 65_529, 65_536, 65_537, 70_000])
@pytest.mark.parametrize(("scale_bytes", "id_bytes"), [(0, 0), (2, 0), (1, 2)])
@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("beside", [False, True])
def test_what_is_coded_comes_back(
    ids: int, scale_bytes: int, id_bytes: int, lossless: bool, beside: bool
) -> None:
    id_bytes = id_bytes if ids < 1 << 16 else 0  # longer ones have no place in a row
    of = tables(ids, scale_bytes, id_bytes=id_bytes, lossless=lossless, beside=beside)
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
def test_damage_of_the_codebook_or_the_tables_is_found(
    tmp_path: Path, torture: bool, lossless: bool
) -> None:
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
    for at in range(0, len(data), 1 if torture else 20):
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


def test_a_coded_record_is_no_raw_one() -> None:
    of = tables(10, 0)
    record = Coder(of).encode(*states(of, 2)[1])[0].encode(0)
    assert isinstance(decode_state(record, BITS), StateRecord)
