"""Changes of the stub store, and what it holds after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import stub_store as stub

from btr.compressing import Compression, compress
from btr.data.passages import Passage
from btr.store import Manifest, StoreSpec, StoreWriter, TokenStore
from btr.store.change import compact, remove_passages


class StubReader:
    """The part of a reader that compression uses: which token each row is of."""

    vocabulary = ("the", "river", "lake", "snow")
    fingerprint = stub.SPEC.fingerprint

    def token_ids(self, passages: Sequence[Passage]) -> list[list[int]]:
        numbers = [int(passage.id.removeprefix("id-")) for passage in passages]
        return [[(i + j) % 4 for j in range(2 + i % 3)] for i in numbers]


def squeeze(path: Path) -> Manifest:
    """Compress the stub store."""
    return compress(path, StubReader(), Compression(ratio=0.4, neighbours=False))  # type: ignore[arg-type]


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
    "compress": Change(lambda path: stub.build(path, 5), squeeze, squeeze, range(5)),
}  # fmt: skip
