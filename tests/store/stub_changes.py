"""Changes of the stub store, and what it holds after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import stub_store as stub

import btr.compressing
from btr.compressing import Compression, compress
from btr.data.passages import Passage
from btr.store import Manifest, StoreSpec, StoreWriter, TokenStore, verify
from btr.store.change import compact, remove_passages


class StubReader:
    """The part of a reader that compression uses: which token each row is of."""

    vocabulary = ("the", "river", "lake", "snow")
    fingerprint = stub.SPEC.fingerprint

    def token_ids(self, passages: Sequence[Passage]) -> list[list[int]]:
        numbers = [int(passage.id.removeprefix("id-")) for passage in passages]
        return [[(i + j) % 4 for j in range(2 + i % 3)] for i in numbers]


PAPER = Compression(ratio=0.4, neighbours=False)
COMPRESSIONS = {
    "compress": Compression(ratio=0.4),
    "compress --lossless": Compression(ratio=0.4, lossless=True),
    "compress --paper": PAPER,
}


def squeeze(path: Path, how: Compression = PAPER) -> Manifest:
    """Compress the stub store; three occurrences are many in it."""
    with mock.patch.object(btr.compressing, "BASED", 3):
        manifest = compress(path, StubReader(), how)  # type: ignore[arg-type]
    assert manifest.compression["left_out_tokens" if how.neighbours else "merged_vectors"]
    return manifest


def add(
    path: Path, first: int, n: int, *, resume: bool = False, of: StoreSpec | None = None
) -> Manifest:
    """Add the stub's passages ``first .. first + n - 1``."""
    spec = of or stub.spec(sources_digest="more")
    with StoreWriter.create(path, spec, resume=resume, add=True) as writer:
        for start in range(first + writer.committed, first + n, spec.passages_per_shard):
            numbers = range(start, min(first + n, start + spec.passages_per_shard))
            writer.write_shard(
                [stub.passage(i) for i in numbers], [stub.state(i) for i in numbers],
                stub.vectors(numbers.start, numbers.stop),
            )  # fmt: skip
        return writer.finish({"stored": n}, stub.derive, None)


def contents(path: Path) -> list[tuple[str, bytes, bytes]]:
    """Id, state and vector of every passage that counts."""
    with TokenStore.open(path) as store:
        live = [o for o in range(len(store)) if not store.is_removed(o)]
        vectors = store.vectors_of(live)
        return [
            (passage.id, state.rows.tobytes(), vector.tobytes())
            for passage, state, vector in zip(
                store.passages(live), store.states(live), vectors, strict=True
            )
        ]


def expected(*numbers: int) -> list[tuple[str, bytes, bytes]]:
    return [
        (stub.passage(i).id, stub.state(i).rows.tobytes(), stub.vectors(i, i + 1).tobytes())
        for i in numbers
    ]


@dataclass(frozen=True)
class Change:
    """What is done to a store, and the passages that it has before."""

    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    again: Callable[[Path], object]
    before: Sequence[int]


def thinned(path: Path) -> None:
    stub.build(path, 5)
    add(path, 5, 2)
    remove_passages(path, [1, 4])


CHANGES = {
    "build": Change(
        lambda path: None, lambda path: stub.build(path, 5),
        lambda path: path.exists() or stub.build(path, 5, resume=True), (),
    ),
    "add": Change(
        lambda path: stub.build(path, 5), lambda path: add(path, 5, 3),
        lambda path: add(path, 5, 3, resume=True), range(5),
    ),
    "remove": Change(
        lambda path: stub.build(path, 5), lambda path: remove_passages(path, [0, 3]),
        lambda path: remove_passages(path, [0, 3]), range(5),
    ),
    "compact": Change(
        thinned, lambda path: compact(path, stub.derive),
        lambda path: compact(path, stub.derive), (0, 2, 3, 5, 6),
    ),
}  # fmt: skip
for name, how in COMPRESSIONS.items():
    CHANGES[name] = Change(
        lambda path: stub.build(path, 5), partial(squeeze, how=how), partial(squeeze, how=how),
        range(5),
    )  # fmt: skip


def has_ended_well(path: Path, name: str, new: list[tuple[str, bytes, bytes]]) -> None:
    """After whatever befell it, a change can be made again, and nothing is left over."""
    change = CHANGES[name]
    assert contents(path) in (expected(*change.before), new)
    assert verify(path).ok
    with stub.unsynced():
        # An addition that was published may have left a folder that says so.
        if contents(path) != new or (path.parent / "store.building/build.json").exists():
            change.again(path)
        assert contents(path) == new
        remove_passages(path, [0])  # collects what is left
    with TokenStore.open(path) as store:
        names = {entry.name for entry in store.manifest.files}
        generation = store.manifest.generation
    assert set(stub.tree(path)) == names | {f"manifests/{generation:08d}.json"}
    assert not list(path.parent.glob("store.*"))
