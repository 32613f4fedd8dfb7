"""Encode the shards of a build on a Ray cluster, and map over rows on it.

The driver cuts the passages and lays each shard's down in the building folder; workers encode and
write shards; the driver takes them over in order, as if it had written them itself. A shard's bytes
depend on its passages alone, so a cluster builds what one machine builds, and a task that is tried
twice writes the same file twice. All workers must see the building folder under the same path.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from btr import files
from btr.data.passages import Passage
from btr.errors import (
    BtrError,
    CorruptError,
    IncompatibleError,
    ResourceError,
    UsageError,
    error_of,
)
from btr.readers.base import Mode, Reader
from btr.store.building import COMMITS
from btr.store.format import MAX_FILE_BYTES, StoreSpec
from btr.store.names import SHARDS, shard_name
from btr.store.writer import StoreWriter, commit_name, commit_shard

LOCAL = "local"
SPOOL = "spool"
ATTEMPTS = "attempts"
TRIES = 10
"""So often a row is given to a worker: some may die, but a row that kills each that takes it must
come to an end."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where shards are encoded.

    Attributes:
        address: Of a Ray cluster; "local" starts one on this machine, reachable from it alone.
        workers: Encoders at a time.
        threads: Of each encoder.
    """

    address: str = LOCAL
    workers: int = 2
    threads: int = 1


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """What a worker needs to know; nothing but plain values crosses the network.

    Attributes:
        root: The building folder.
        spec: Of the shards, as a dictionary.
        store_id: Of the store, in hex.
        reader: Name, folder or Hub id.
        mode: The reader's.
        dtype: Of the arithmetic, as the spec's settings name it.
        threads: For each worker.
    """

    root: str
    spec: dict[str, Any]
    store_id: str
    reader: str
    mode: Mode
    dtype: str
    threads: int

    @classmethod
    def of(cls, writer: StoreWriter, spec: StoreSpec, reader: Reader, threads: int) -> EncodeJob:
        """The job of a build."""
        dtype = str(spec.settings["dtype"])
        root, store_id = str(writer.root.absolute()), writer.store_id.hex()
        return cls(root, spec.as_dict(), store_id, reader.name, reader.mode, dtype, threads)


class ShardEncoder:
    """A worker: loads the reader once and encodes shard after shard.

    Args:
        job: A job's fields.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import torch

        from btr.machine import dtype_named
        from btr.readers.load import load_reader
        from btr.retrieval.dense import Embedder

        self.job = EncodeJob(**job)
        torch.set_num_threads(self.job.threads)
        self.spec = StoreSpec(**self.job.spec)
        reader = load_reader(self.job.reader, self.job.mode, dtype=dtype_named(self.job.dtype))
        embedder = Embedder()
        found = reader.fingerprint | embedder.fingerprint
        dense = {name: self.spec.settings[name] for name in embedder.fingerprint}
        wanted = {**self.spec.fingerprint, **dense}
        if found != wanted:
            raise IncompatibleError("a worker's reader is not the driver's", where=self.job.reader,
                                    expected=str(wanted)[:200], found=str(found)[:200],
                                    todo="install the same btr and models everywhere")  # fmt: skip
        self._reader, self._embedder = reader, embedder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Encode, write and commit one shard."""
        from btr.encoding import shard_states
        from btr.retrieval.dense import quantize

        shard, root = int(row["shard"]), Path(self.job.root)
        passages = read_spool(root, shard)
        attempt = make_attempt(root, SHARDS, COMMITS)
        states = shard_states(self._reader, passages)
        vectors = quantize(self._embedder.encode_passages(passages))
        store_id = bytes.fromhex(self.job.store_id)
        commit = commit_shard(attempt, self.spec, store_id, shard, passages, states, vectors)
        # The commit record last: without it the shard does not exist.
        for name in (shard_name(shard), commit_name(shard)):
            files.rename(attempt / name, root / name)
        files.remove_tree(attempt)
        return {"shard": shard, "passages": commit.passages, "tokens": commit.tokens}


def encode_on_cluster(
    writer: StoreWriter,
    shards: Iterable[Sequence[Passage]],
    job: EncodeJob,
    cluster: Cluster,
    report: Callable[[int, int], None],
) -> None:
    """Have shards encoded, and take them over.

    Args:
        writer: Of the store.
        shards: Passages of the shards that come next.
        job: For the workers.
        cluster: Where.
        report: Called with passages and tokens of each shard that is done.

    Raises:
        UsageError: Ray is not installed, or the cluster is not protected.
        CorruptError: A shard that a worker has reported is not there.
    """
    _ray(cluster)  # Refused before anything is laid down.
    root = Path(job.root)
    if not os.path.lexists(root / SPOOL):
        files.make_folder(root / SPOOL)
    numbers = []
    for number, passages in enumerate(shards, writer.next_shard):
        write_spool(root, number, passages)
        numbers.append(number)
    if not numbers:
        return
    rows = [{"shard": number} for number in numbers]
    for row in map_on_cluster(ShardEncoder, rows, cluster, {"job": asdict(job)}):
        report(int(row["passages"]), int(row["tokens"]))
    for number in numbers:
        if writer.next_shard != number or not writer.adopt():
            raise CorruptError("a shard that a worker has written is not there",
                               where=str(root / shard_name(number)),
                               todo="see that all workers share the folder; resume")  # fmt: skip


def make_attempt(root: Path, *inside: str) -> Path:
    """A new folder in ``root`` for one try of a row, with these folders: tries may overlap."""
    attempt = root / ATTEMPTS / uuid.uuid4().hex
    for folder in (attempt.parent, attempt, *(attempt / name for name in inside)):
        files.make_folder(folder)
    return attempt


class Tries:
    """How often each row has been given to a worker; one for all of them."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, number: int) -> int:
        """Count one more."""
        self._begun[number] += 1
        return self._begun[number]


class Worker:
    """Does its work row by row, and tells errors as values: Ray would raise them as its own.

    Args:
        work: A function, or a class whose instance is called.
        setup: Arguments of the class; None for a function.
        begin: :meth:`Tries.begin`, wherever it runs.
        most: Of tries of a row.
    """

    def __init__(
        self,
        work: Callable[..., Any],
        setup: dict[str, Any] | None,
        begin: Callable[[int], int],
        most: int,
    ) -> None:
        self._work, self._setup, self._begin, self._most = work, setup, begin, most

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """What the work gives for a row, or its error; both as JSON, as is the row."""
        number, values = json.loads(row["row"])
        try:
            if self._begin(number) > self._most:
                raise ResourceError(
                    "workers of the cluster die of one piece of work", where=str(values)[:200],
                    found=f"{self._most} tries", todo="see whether they have enough memory",
                )  # fmt: skip
            if self._setup is not None:
                self._work, self._setup = self._work(**self._setup), None
            return {"told": json.dumps({"done": self._work(values)})}
        except BtrError as error:
            return {"told": json.dumps({"failed": error.as_dict()})}


def map_on_cluster(
    work: Callable[..., Any],
    rows: Sequence[dict[str, Any]],
    cluster: Cluster,
    setup: dict[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Apply what may be run twice to rows of plain values, in any order.

    Args:
        work: A function, or a class whose instances are called, one a worker.
        rows: What it is called with.
        cluster: Where.
        setup: Arguments of the class; None for a function.

    Raises:
        UsageError: Ray is not installed, or the cluster is not protected.
        ResourceError: Every worker that took one of the rows died.
        BtrError: What a worker raised.
    """
    ray = _ray(cluster)
    if not rows:
        return
    tries = ray.remote(num_cpus=0)(Tries).remote()

    def begin(number: int) -> int:
        count: int = ray.get(tries.begin.remote(number))
        return count

    numbered = [{"row": json.dumps(pair)} for pair in enumerate(rows)]
    done = ray.data.from_items(numbered, override_num_blocks=len(rows)).map(
        Worker, fn_constructor_args=(work, setup, begin, TRIES), num_cpus=cluster.threads,
        compute=ray.data.ActorPoolStrategy(size=min(cluster.workers, len(rows))),
    )  # fmt: skip
    for row in done.iter_rows():
        told = json.loads(row["told"])
        if "failed" in told:
            raise error_of(told["failed"])
        yield told["done"]


def write_spool(root: Path, shard: int, passages: Iterable[Passage]) -> None:
    """Lay down the passages of a shard."""
    lines = (json.dumps(asdict(p), ensure_ascii=True) + "\n" for p in passages)
    files.write_file(root / SPOOL / f"{shard:08d}.jsonl", "".join(lines).encode("ascii"))


def read_spool(root: Path, shard: int) -> list[Passage]:
    """The passages of a shard."""
    data = files.read_file(root / SPOOL / f"{shard:08d}.jsonl", MAX_FILE_BYTES)
    return list(_passages(data.decode("ascii")))


def _passages(text: str) -> Iterator[Passage]:
    for line in text.splitlines():
        yield Passage(**json.loads(line))


def _ray(cluster: Cluster) -> Any:
    """Ray, connected.

    Raises:
        UsageError: It is not installed, or anyone who reaches the cluster could run code on it.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("a cluster build needs Ray", todo="pip install 'btr-reader[ray]'"
                         ) from error  # fmt: skip
    if ray.is_initialized():
        return ray
    if cluster.address == LOCAL:
        ray.init(
            num_cpus=cluster.workers * cluster.threads, include_dashboard=False,
            log_to_driver=False, _node_ip_address="127.0.0.1",
        )  # fmt: skip
    else:
        if os.environ.get("RAY_AUTH_MODE") != "token":
            raise UsageError("the Ray cluster is not protected: whoever reaches it can run code",
                             where=cluster.address, todo="start it with RAY_AUTH_MODE=token and "
                             "set the same here")  # fmt: skip
        ray.init(address=cluster.address, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray
