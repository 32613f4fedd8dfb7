"""Hostile files with right checksums: an error of ours or an answer, in little memory; no crash.

In a release's run it takes ten minutes, and what is drawn is other than the last time.
"""

from __future__ import annotations

import contextlib
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import stub_store as stub
from stub_changes import COMPRESSIONS, contents, squeeze
from stub_coding import BITS, states, tables
from stub_hostile import (
    hostile_coding,
    hostile_ids,
    hostile_manifest,
    hostile_numbers,
    hostile_record,
    hostile_shard,
    read_all,
    resized,
)

from btr.errors import BtrError, CorruptError, InputError
from btr.store import PassageState, TokenStore
from btr.store.change import remove_passages
from btr.store.coding import Coder
from btr.store.coding_tables import load_coding, write_coding
from btr.store.names import manifest_name
from btr.store.shard import StateRecord, decode_state, section_seed, with_crc

N = 3
CASES, MINUTES = 360, 10
MOST_BYTES = 50 << 20
TRACED = 4
"""One in so many cases has its memory traced, which takes longer than the case."""

Case = Callable[[random.Random], bool]
"""Tries one hostile file; whether it was refused."""


def refused(path: Path) -> bool:
    """Read everything: an error of ours is fine, so is an answer; anything else comes out."""
    try:
        read_all(path)
    except BtrError:
        return True
    return False


def store(folder: Path, kind: str) -> tuple[Path, Path, bytes]:
    """A store, its manifest's file, and what is in it."""
    path, generation = folder / "store", 0
    stub.build(path, N)
    if kind:
        generation = squeeze(path, COMPRESSIONS[kind]).generation
    manifest = path / manifest_name(generation)
    return path, manifest, manifest.read_bytes()


def shards(folder: Path, kind: str = "") -> Case:
    path, manifest, values = store(folder, kind)
    name = min(name for name in stub.tree(path) if name.startswith("shards/"))
    data = (path / name).read_bytes()

    def case(draw: random.Random) -> bool:
        changed = hostile_shard(data, draw)
        (path / name).write_bytes(changed)
        manifest.write_bytes(resized(values, name, len(changed)))
        return refused(path)

    return case


def manifests(folder: Path, kind: str = "") -> Case:
    path, manifest, values = store(folder, kind)

    def case(draw: random.Random) -> bool:
        manifest.write_bytes(hostile_manifest(values, draw))
        return refused(path)

    return case


def coding_of_a_store(folder: Path, kind: str) -> Case:
    path, manifest, values = store(folder, kind)
    (name,) = (name for name in stub.tree(path) if name.startswith("coding"))
    data = (path / name).read_bytes()
    with TokenStore.open(path) as opened:
        assert opened.coding is not None
        checked = len(data) - opened.coding.codebook.nbytes

    def case(draw: random.Random) -> bool:
        changed = hostile_coding(data, checked, stub.SPEC.store_id, 1, draw)
        (path / name).write_bytes(changed)
        manifest.write_bytes(resized(values, name, len(changed)))
        return refused(path)

    return case


def coding_files(folder: Path, more: bool) -> Case:
    of, spec, path = tables(60, 0, lossless=more, beside=more), stub.spec(dim=8 * BITS), folder
    (path / "book").write_bytes(of.codebook.tobytes())
    write_coding(path / "coding", spec, 3, of, path / "book")
    data = (path / "coding").read_bytes()
    records = [Coder(of).encode(*one)[0] for one in states(of, 20)]

    def case(draw: random.Random) -> bool:
        changed = hostile_coding(data, len(data) - of.codebook.nbytes, spec.store_id, 3, draw)
        (path / "coding").write_bytes(changed)
        try:
            coder = Coder(load_coding(path / "coding", spec, 3, len(changed)))
        except CorruptError:
            return True
        for state, record in zip(coder.decode(records), records, strict=True):
            assert state is None or len(state.rows) == record.tokens
        return False

    return case


class _Equal:
    """A checksum that is the one that was expected."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def check_whole(state: PassageState, row_bytes: int) -> None:
    """That a reader can be given this state, whatever it says."""
    assert state.rows.shape[1] == row_bytes
    assert 0 <= state.text_start <= len(state.rows)
    if state.guesses is not None:
        places, levels = state.guesses.places, state.guesses.levels
        assert levels.shape == (len(places), 8 * BITS)
        assert np.all(np.diff(places, prepend=-1) > 0)
        assert np.all(places < len(state.rows))


def coded_records(folder: Path, lossless: bool, beside: bool) -> Case:
    """Two hostile records among good ones; and again as if the checksum of the rows were right."""
    of = tables(400, 1, lossless=lossless, beside=beside)
    coder = Coder(of)
    records = [coder.encode(*one)[0] for one in states(of, 6)]
    clean = [state.rows.tobytes() for state in coder.decode(records) if state is not None]
    assert len(clean) == len(records)

    def case(draw: random.Random) -> bool:
        given, hostile = list(records), draw.sample(range(len(records)), 2)
        for i in hostile:
            found = decode_state(hostile_record(records[i], draw), BITS + 1)
            if not isinstance(found, StateRecord):
                return True
            given[i] = found
        made = coder.decode(given)
        for i, state in enumerate(made):
            if state is not None:
                check_whole(state, BITS + 1)
            assert i in hostile or (state is not None and state.rows.tobytes() == clean[i])
        believing = SimpleNamespace(value=lambda data: _Equal())
        with mock.patch("btr.store.coding.google_crc32c", believing):
            for record, state in zip(given, coder.decode(given), strict=True):
                if state is not None:
                    check_whole(state, BITS + 1)
                    assert len(state.rows) == record.tokens
        return all(made[i] is None for i in hostile)

    return case


def id_tables(folder: Path) -> Case:
    path, *_ = store(folder, "")
    data = (path / "ids.sqlite").read_bytes()

    def case(draw: random.Random) -> bool:
        (path / "ids.sqlite").write_bytes(hostile_ids(data, draw))
        found = 0
        with TokenStore.open(path) as opened:
            for i in range(N):
                with contextlib.suppress(CorruptError, InputError):
                    assert opened.ordinal(stub.passage(i).id) == i
                    found += 1
        return found < N

    return case


def removed_lists(folder: Path) -> Case:
    path, *_ = store(folder, "")
    manifest = remove_passages(path, [1])
    seed = section_seed(manifest.spec.store_id, 1, 8)
    name = "removed-00000001.btr"

    def case(draw: random.Random) -> bool:
        n = draw.choice([0, 1, 1, 2, 2, 3, 4])
        numbers = struct.pack(f"<{n}Q", *hostile_numbers(n, draw))
        data = with_crc(seed, numbers)[: draw.choice([None, None, None, draw.randrange(12)])]
        (path / name).write_bytes(data)
        entries = [entry._replace(bytes=len(data)) if entry.name == name else entry
                   for entry in manifest.files]  # fmt: skip
        with contextlib.suppress(BtrError):
            changed = manifest.with_files(entries, removed=draw.choice([n, n, n, *range(5)]))
            (path / "manifests" / "00000001.json").write_bytes(changed.encode())
        try:
            contents(path)
        except BtrError:
            return True
        return False

    return case


FUZZED: dict[str, Callable[[Path], Case]] = {
    "shards": shards,
    **{f"shards, {kind}": partial(shards, kind=kind) for kind in COMPRESSIONS},
    "manifests": manifests,
    "manifests, compress --lossless": partial(manifests, kind="compress --lossless"),
    "coding files of stores": partial(coding_of_a_store, kind="compress --lossless"),
    "coding files": partial(coding_files, more=False),
    "coding files with all that there is": partial(coding_files, more=True),
    "coded records": partial(coded_records, lossless=False, beside=False),
    "coded records, lossless": partial(coded_records, lossless=True, beside=False),
    "coded records, lossless and with neighbours": partial(
        coded_records, lossless=True, beside=True
    ),
    "id tables": id_tables,
    "removed lists": removed_lists,
}


@pytest.mark.parametrize("name", FUZZED)
def test_hostile_files(
    memory_folder: Path, torture: bool, torture_seed: int, figure: Callable[[str, int], None],
    name: str,
) -> None:  # fmt: skip
    case = FUZZED[name](memory_folder)
    case(random.Random(0))  # loads what it needs
    end = time.monotonic() + 60 * MINUTES / len(FUZZED)
    number = found = 0
    while number < CASES or (torture and time.monotonic() < end):
        if number % TRACED == 0:
            tracemalloc.start()
        try:
            found += case(random.Random(f"{torture_seed} {name} {number}"))
            assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
        except Exception as error:
            raise AssertionError(f"case {number} of --torture-seed {torture_seed}") from error
        finally:
            tracemalloc.stop()
        number += 1
    figure(f"hostile files with right checksums: {name}", number)
    # As many get past the first look as tell that the next ones are tried too.
    assert 0.05 * number < found < 0.999 * number
