"""Hostile files: numbers in them changed at random, and every checksum and digest made right."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c

from btr.store import TokenStore
from btr.store.coding_tables import CODING
from btr.store.sealed import seal, unseal
from btr.store.shard import StateRecord, section_seed, with_crc

NUMBERS = [0, 1, 2, 3, 7, 255, 256, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
LARGE = [*NUMBERS, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
SHORT = [0, 1, 2, 3, 7, 8, 255, 256, (1 << 15) - 1, 1 << 15, (1 << 16) - 1]


def read_all(path: Path) -> list[object]:
    """Everything a store can be asked for."""
    with TokenStore.open(path) as store:
        n = len(store)
        states = [(s.rows.tobytes(), s.text_start, s.truncated) for s in store.states(range(n))]
        vectors = [v.tobytes() for v in store.vectors()]
        passages = store.passages(range(n))
        return [passages, states, vectors, [store.ordinal(p.id) for p in passages]]


def recheck(data: bytearray, first: int, last: int, seed: int) -> None:
    """Give the piece from ``first`` to ``last`` the checksum of what it now says."""
    if first + 4 <= last <= len(data):
        struct.pack_into(
            "<I", data, last - 4, google_crc32c.extend(seed, bytes(data[first : last - 4]))
        )


def hostile_shard(data: bytes, draw: random.Random) -> bytes:
    """Change numbers anywhere in a shard: header, tables, heads and bodies of records."""
    changed = bytearray(data)
    n = struct.unpack_from("<I", data, 32)[0]
    sizes = [struct.unpack_from("<Q", data, 64 + 16 * i + 8)[0] for i in range(5)]
    starts = [256 + sum(sizes[:i]) for i in range(6)]
    for _ in range(draw.randint(1, 3)):
        kind = draw.choice("hHtTrbsss")
        if kind == "h":
            struct.pack_into("<I", changed, draw.randrange(8, 144, 4), draw.choice(NUMBERS))
        elif kind == "H":
            struct.pack_into("<Q", changed, draw.randrange(48, 140, 4), draw.choice(LARGE))
        elif kind in "tT":
            at = starts["tT".index(kind)] + 8 * draw.randrange(n + 1)
            near = struct.unpack_from("<Q", changed, at)[0] + draw.randint(-40, 40)
            value = draw.choice([*LARGE, min(max(0, near), LARGE[-1])])
            struct.pack_into("<Q", changed, at, value)
        elif kind == "r":
            section = draw.choice([3, 4])
            table = struct.unpack_from(f"<{n}Q", data, starts[4 - section])
            where = starts[section] + draw.choice(table) + 4 * draw.randrange(4)
            struct.pack_into("<I", changed, where, draw.choice(NUMBERS))
        elif kind == "s":
            offsets = struct.unpack_from(f"<{n + 1}Q", data, starts[0])
            record = draw.randrange(n)
            first, last = starts[4] + offsets[record] + 16, starts[4] + offsets[record + 1] - 4
            changed[first:last] = hostile_body(data[first:last], draw, same_length=True)
        else:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    if draw.random() < 0.2:
        del changed[draw.randrange(len(changed)) :]
    if len(changed) < 256:
        return bytes(changed)
    shard, store_id = struct.unpack_from("<I", data, 12)[0], data[16:32]
    recheck(changed, 0, 256, 0)
    for i in range(3):
        recheck(changed, starts[i], starts[i + 1], section_seed(store_id, shard, i + 1))
    for section in (3, 4):
        offsets = struct.unpack_from(f"<{n + 1}Q", data, starts[4 - section])
        for record in range(n):
            first, last = starts[section] + offsets[record], starts[section] + offsets[record + 1]
            recheck(changed, first, last, section_seed(store_id, shard, section + 1) ^ record)
    return bytes(changed)


def hostile_body(body: bytes, draw: random.Random, *, same_length: bool = False) -> bytes:
    """Change the numbers that a coded record begins with, or anything else of its body."""
    changed = bytearray(body)
    for _ in range(draw.randint(1, 3)):
        kind = draw.choice("nnnbbb" if same_length else "nnnbbbcl")
        if kind == "n" and len(changed) >= 8:
            at = draw.randrange(0, 8, 2)
            near = struct.unpack_from("<H", changed, at)[0] + draw.randint(-3, 3)
            value = draw.choice([*SHORT, *[min(max(0, near), SHORT[-1])] * len(SHORT)])
            struct.pack_into("<H", changed, at, value)
        elif kind == "b" and changed:
            changed[draw.randrange(len(changed))] = draw.choice([0, 255, draw.randrange(256)])
        elif kind == "c":
            del changed[draw.randrange(len(changed) + 1) :]
        elif kind == "l":
            changed += draw.randbytes(draw.choice([1, 2, 4, 8, 70_000]))
    return bytes(changed)


def hostile_record(record: StateRecord, draw: random.Random) -> bytes:
    """A coded record with another body, and sometimes another number of tokens."""
    head = bytearray(record.head)
    if draw.random() < 0.3:
        near = max(0, record.tokens + draw.randint(-3, 3))
        struct.pack_into("<I", head, 0, draw.choice([*NUMBERS, *[near] * len(NUMBERS)]))
    return with_crc(0, bytes(head), hostile_body(record.body.tobytes(), draw))


def hostile_manifest(data: bytes, draw: random.Random) -> bytes:
    """Change values of a manifest and seal it again."""
    values: Any = unseal(data)
    for _ in range(draw.randint(1, 2)):
        place, key = values, draw.choice(list(values))
        while isinstance(place[key], (dict, list)) and place[key] and draw.random() < 0.8:
            place = place[key]
            key = (
                draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
            )
        action = draw.randrange(4)
        if action == 0:
            del place[key]
        elif action == 1 and isinstance(place, dict):
            place[draw.choice(["x", "kind", "bytes", "dim", ""])] = place[key]
        else:
            place[key] = draw.choice(
                [None, True, -1, 0.5, "", "x" * 70, [], {}, [[]], {"a": {}}, "\ud800", *LARGE]
            )
    return seal(values)


def resized(manifest: bytes, name: str, size: int) -> bytes:
    """The manifest goes along with the size of a file, or nothing else would ever be looked at."""
    values: Any = unseal(manifest)
    if name.startswith("shards/"):
        entry = next(entry for entry in values["shards"] if name.endswith(f"{entry[0]:08d}.btr"))
        values["parts"]["states"] = max(0, values["parts"]["states"] + size - entry[2])
        entry[2] = size
    else:
        next(entry for entry in values["files"] if entry[0] == name)[1] = size
    return seal(values)


def hostile_coding(
    data: bytes, checked: int, store_id: bytes, generation: int, draw: random.Random
) -> bytes:
    """Change numbers of a coding file, of whose bytes so many are under the checksum."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.3:
            changed[draw.randrange(64, len(data))] = draw.choice([0, 127, 128, 255])
            continue
        at = draw.choice([draw.randrange(0, 64, 4), draw.randrange(64, checked - 4, 4)])
        struct.pack_into("<I", changed, at, draw.choice([*NUMBERS, (1 << 24) - 1, 1 << 24]))
    if draw.random() < 0.1:
        del changed[draw.randrange(len(changed)) :]
    if len(changed) >= checked:
        recheck(changed, 0, checked, section_seed(store_id, generation, CODING))
    return bytes(changed)


def hostile_ids(data: bytes, draw: random.Random) -> bytes:
    """Change bytes of an id table, most of them where SQLite keeps its own numbers."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 20)):
        at = draw.choice([draw.randrange(200), draw.randrange(4096, 4120),
                          draw.randrange(len(data))])  # fmt: skip
        changed[at] = draw.choice([0, 255, draw.randrange(256)])
    return bytes(changed)


def hostile_numbers(n: int, draw: random.Random) -> Iterator[int]:
    """Numbers of 64 bits, more or less ascending."""
    number = 0
    for _ in range(n):
        near = number + draw.randint(0, 2)
        number = draw.choice([*[near % (1 << 64)] * 40, *LARGE])
        yield number
