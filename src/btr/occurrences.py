"""Merge the occurrences of token ids in bounded memory (method, section 5).

Vectors are written to files of a bounded size, id by id in the order given; an id with more than a
file holds has several to itself. Each file is merged by itself, so files can be merged at the same
time, on a cluster too; then every occurrence's group is read back in the order in which its vector
was written.

``V`` size of the vocabulary, ``b`` bytes of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from btr.cluster import Cluster, map_on_cluster
from btr.merge import match_bits, merge_count, merge_signs

FILE_BYTES = 1 << 28
"""Vectors that are merged with all of them in memory."""

MOST_FILES = 200
"""Files open at a time; beyond this many they grow instead."""

BLOCK = 1 << 14
"""Occurrences of an id that are matched with each other: time is quadratic in it."""

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class OccurrenceFiles:
    """The vectors of token ids, scattered to files, merged, and the groups gathered again.

    Args:
        folder: For the files.
        ids: Token ids, in the order that the codebook is to have.
        counts: ``[V]`` occurrences of every id.
        bits_bytes: ``b``.
    """

    def __init__(self, folder: Path, ids: Ints, counts: Ints, bits_bytes: int) -> None:
        self._folder, self._ids, self._counts = folder, ids, counts
        self._item = np.dtype([("id", "<u4"), ("row", np.uint8, (bits_bytes,))])
        total = int(counts[ids].sum())
        self._room = max(1, FILE_BYTES // self._item.itemsize, -(-total // MOST_FILES))
        self._first = np.full(len(counts), -1, np.int64)
        self._inside: list[list[int]] = []
        filled = self._room
        for token in ids.tolist():
            own = -(-int(counts[token]) // self._room)
            if own > 1:
                self._first[token] = len(self._inside)
                self._inside += [[token]] * own
                filled = self._room  # none of these takes another id
                continue
            if filled + counts[token] > self._room:
                self._inside.append([])
                filled = 0
            self._first[token] = len(self._inside) - 1
            self._inside[-1].append(token)
            filled += int(counts[token])
        self._large = counts > self._room
        self._offsets = np.zeros(len(self._inside), np.int64)

    def scatter(self, tokens: Iterable[tuple[Ints, Bytes]]) -> None:
        """Write the vectors of all occurrences.

        Args:
            tokens: Token ids ``[n]`` and vectors ``[n, b]``, piece by piece.
        """
        seen = np.zeros(len(self._counts), np.int64)
        with ExitStack() as stack:
            opened: dict[int, BinaryIO] = {}
            for flat, rows in tokens:
                for number, mine in self._split(flat, seen):
                    if number not in opened:
                        opened[number] = stack.enter_context(self._file("rows", number).open("wb"))
                    items = np.empty(len(mine), self._item)
                    items["id"], items["row"] = flat[mine], rows[mine]
                    opened[number].write(items.tobytes())

    def merge(
        self,
        ratio: float,
        codebook: Path,
        progress: Callable[[int, int], None],
        cluster: Cluster | None = None,
    ) -> Ints:
        """Merge within each id.

        Args:
            ratio: Share of an id's occurrences to lose.
            codebook: Gets the merged vectors, by id in the order given.
            progress: Called with files done and in all.
            cluster: Merge there; None for this process alone.

        Returns:
            ``[V]`` merged vectors of every id.
        """
        numbers = [n for n in range(len(self._inside)) if self._file("rows", n).exists()]
        rows = [{"number": n, "inside": self._inside[n]} for n in numbers]
        work = partial(merge_file, str(self._folder), self._item["row"].itemsize, ratio)
        done = map(work, rows) if cluster is None else map_on_cluster(work, rows, cluster)
        sizes: dict[int, list[int]] = {}
        for row in done:
            sizes[int(row["number"])] = [int(n) for n in row["sizes"]]
            progress(len(sizes), len(numbers))
        groups = np.zeros(len(self._counts), np.int64)
        with codebook.open("wb") as book:
            for number in numbers:
                inside = self._inside[number]
                # Only of an id with files of its own may groups have come before.
                self._offsets[number] = groups[inside[0]]
                for token, size in zip(inside, sizes[number], strict=True):
                    groups[token] += size
                part = self._file("book", number)
                with part.open("rb") as source:
                    while chunk := source.read(1 << 20):
                        book.write(chunk)
                part.unlink()
        return groups

    @contextmanager
    def gathering(self) -> Iterator[Callable[[Ints], Ints]]:
        """A function that gives the group of each occurrence among its id's, -1 where it is alone.

        It is called with the same token ids as were scattered, in the same order, piece by piece.
        """
        seen = np.zeros(len(self._counts), np.int64)
        opened: dict[int, BinaryIO] = {}

        def gather(flat: Ints) -> Ints:
            groups = np.full(len(flat), -1, np.int64)
            for number, mine in self._split(flat, seen):
                if number not in opened:
                    file = self._file("groups", number)
                    opened[number] = stack.enter_context(file.open("rb"))
                found = np.frombuffer(opened[number].read(4 * len(mine)), "<i4")
                groups[mine] = np.where(found < 0, -1, found + self._offsets[number])
            return groups

        with ExitStack() as stack:
            yield gather

    def _file(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}-{number}"

    def _split(self, flat: Ints, seen: Ints) -> Iterator[tuple[int, Ints]]:
        """The files that tokens go to, and which ones; counts those of large ids."""
        numbers = self._first[flat]
        for token in np.unique(flat[self._large[flat]]).tolist():
            places = np.flatnonzero(flat == token)
            numbers[places] += (seen[token] + np.arange(len(places))) // self._room
            seen[token] += len(places)
        for number in np.unique(numbers[numbers >= 0]).tolist():
            yield number, np.flatnonzero(numbers == number)


def merge_file(folder: str, bits_bytes: int, ratio: float, row: dict[str, Any]) -> dict[str, Any]:
    """Merge the ids of one file; may be run twice.

    Args:
        folder: Where the files are.
        bits_bytes: ``b``.
        ratio: Share of an id's occurrences to lose.
        row: ``number`` of the file, and the ids ``inside`` it, in order.

    Returns:
        The number, and the ``sizes``: merged vectors of each id.
    """
    number, inside = int(row["number"]), np.asarray(row["inside"], np.int64)
    item = np.dtype([("id", "<u4"), ("row", np.uint8, (bits_bytes,))])
    items = np.fromfile(Path(folder) / f"rows-{number}", item)
    ids = items["id"].astype(np.int64)
    order = np.argsort(ids, kind="stable")
    starts = np.searchsorted(ids[order], inside)
    ends = np.searchsorted(ids[order], inside, side="right")
    assigned = np.full(len(ids), -1, "<i4")
    sizes = []
    with (Path(folder) / f"book-{number}").open("wb") as book:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            places = order[start:end]
            merged, groups = merge_occurrences(items["row"][places], ratio)
            assigned[places] = groups
            book.write(merged.tobytes())
            sizes.append(len(merged))
    # Not tofile(): a full disk would be an error without a number, or none.
    (Path(folder) / f"groups-{number}").write_bytes(assigned.tobytes())
    return {"number": number, "sizes": sizes}


def blocks_of(rows: Bytes, block: int = BLOCK) -> list[Ints]:
    """Places of the vectors of one token id that are compared with each other, ascending in each.

    More than ``block`` are cut into blocks of those that lie together along the direction in which
    the vectors differ most.

    Args:
        rows: ``[n, b]`` packed signs.
        block: Most in a block.
    """
    n = len(rows)
    order = np.arange(n) if n <= block else np.argsort(_main_direction(rows), kind="stable")
    return [np.sort(places) for places in np.array_split(order, -(-n // block))]


def merge_occurrences(
    rows: Bytes, ratio: float, block: int = BLOCK
) -> tuple[Bytes, NDArray[np.int32]]:
    """Merge a share of the vectors of one token id.

    Args:
        rows: ``[n, b]`` packed signs.
        ratio: Share of the occurrences to lose.
        block: As for :func:`blocks_of`.

    Returns:
        ``[g, b]`` the vectors of groups, and ``[n]`` int32: the group of each occurrence, -1 where
        it stays alone.
    """
    merged: list[Bytes] = []
    groups = np.full(len(rows), -1, np.int32)
    count = 0
    for places in blocks_of(rows, block):
        inside = rows[places]
        matching = match_bits(inside, merge_count(len(inside), ratio))
        vectors, went = merge_signs(inside, matching)
        sizes = np.bincount(went, minlength=len(vectors))
        number = np.full(len(vectors), -1, np.int32)
        shared = np.flatnonzero(sizes > 1)
        number[shared] = count + np.arange(len(shared))
        groups[places] = number[went]
        merged.append(vectors[shared])
        count += len(shared)
    return np.concatenate(merged), groups


def _main_direction(rows: Bytes) -> NDArray[np.float32]:
    """``[n]``: places along the first principal component of packed signs."""
    draw = np.random.default_rng(0)
    sample = np.unpackbits(rows[draw.choice(len(rows), 2048, replace=False)], axis=1)
    centred = sample.astype(np.float32) - sample.mean(0, dtype=np.float32)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    places = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), BLOCK):
        part = slice(first, first + BLOCK)
        places[part] = np.unpackbits(rows[part], axis=1).astype(np.float32) @ direction
    return places
