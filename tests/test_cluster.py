"""A store built on a Ray cluster is the store that one process builds."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

import btr.cluster
import btr.coding_shards
import btr.compressing
import btr.occurrences
from btr.cluster import Cluster, map_on_cluster, read_spool, write_spool
from btr.compressing import Compression, compress
from btr.data.passages import Passage
from btr.errors import CorruptError, ResourceError, UsageError
from btr.indexing import IndexProgress, build_index
from btr.readers.base import Reader
from btr.readers.load import load_reader
from btr.retrieval.dense import Embedder
from btr.store.check import verify
from tiny_readers import make_reader

# Ray warns of its own future; its workers are processes that the garbage collector meets late.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SHARD = 8
DEATHS = 3
"""Workers that a row may kill."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Reader:
    folder = tmp_path_factory.mktemp("reader")
    make_reader(folder / "btr", tokenizer, "btr", 2)
    return load_reader(str(folder), "btr")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    import ray

    # Workers don't have the tests' folder.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield Cluster("local", workers=2)
    ray.shutdown()


def source(folder: Path, n: int) -> Path:
    lines = (f'{{"id": "p{i}", "text": "The river {"is long " * (i % 7)} in {i}."}}\n'
             for i in range(n))  # fmt: skip
    (folder / "in.jsonl").write_text("".join(lines))
    return folder / "in.jsonl"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return source(tmp_path, 60)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def content(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def workers() -> list[int]:
    """Processes that work."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if line.startswith(b"ray::MapWorker"):
            found.append(int(folder.name))
    return found


@pytest.mark.usefixtures("one_thread")
def test_the_bytes_are_the_same_though_workers_die(
    tmp_path: Path, reader: Reader, cluster: Cluster, effort: Callable[[str, int, int], int]
) -> None:
    kills = effort("kill -9 of a worker of one cluster build", 1, 20)
    n = SHARD * (kills + 6) + 4
    sources = source(tmp_path, n)
    embedder = Embedder()
    build_index([sources], tmp_path / "single", reader, embedder=embedder, shard_passages=SHARD)
    commits, killed, over = tmp_path / "s.building" / "commits", list[int](), threading.Event()

    def kill() -> None:
        """Each time that another shard is there, one of the workers that live."""
        draw, seen = random.Random(6), 0
        while len(killed) < kills and not over.wait(0.02):
            committed = len(list(commits.glob("*.json"))) if commits.is_dir() else 0
            found = workers()
            if committed > seen and found:
                seen = committed
                killed.append(draw.choice(found))
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    seen: list[IndexProgress] = []
    build_index([sources], tmp_path / "s", reader, embedder=embedder, shard_passages=SHARD,
                cluster=cluster, progress=seen.append)  # fmt: skip
    over.set()
    killer.join()
    assert len(killed) == kills
    assert seen[-1].passages == n
    assert content(tmp_path / "s") == content(tmp_path / "single")
    assert verify(tmp_path / "s").ok
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "s", "single"]


@pytest.mark.usefixtures("one_thread")
def test_a_cluster_goes_on_with_what_one_process_began(
    tmp_path: Path, sources: Path, reader: Reader, cluster: Cluster
) -> None:
    class StopError(Exception):
        pass

    def stop(state: IndexProgress) -> None:
        if state.passages > 20:
            raise StopError

    embedder = Embedder()
    with pytest.raises(StopError):
        build_index([sources], tmp_path / "s", reader, embedder=embedder, shard_passages=SHARD,
                    progress=stop)  # fmt: skip
    build_index([sources], tmp_path / "s", reader, embedder=embedder, shard_passages=SHARD,
                cluster=cluster, resume=True)  # fmt: skip
    build_index([sources], tmp_path / "single", reader, embedder=embedder, shard_passages=SHARD)
    assert content(tmp_path / "s") == content(tmp_path / "single")


class Mortal:
    """Work of a cluster whose workers die: each of the first rows kills those that have it."""

    def __init__(
        self, work: Callable[..., Any], setup: dict[str, Any] | None, kills: int, folder: Path
    ) -> None:
        self.work = work if setup is None else work(**setup)
        self.kills, self.folder = kills, folder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = int(row.pop("place"))
        deaths = len(list(self.folder.glob(f"{number}-*")))
        if deaths < DEATHS and DEATHS * number + deaths < self.kills:
            self.work(row)
            (self.folder / f"{number}-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)  # the work is done, and nobody has heard of it
        done: dict[str, Any] = self.work(row)
        return done


@pytest.mark.parametrize("neighbours", [True, False])
def test_a_cluster_compresses_to_the_same_bytes_though_workers_die(
    tmp_path: Path, sources: Path, reader: Reader, cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch, effort: Callable[[str, int, int], int], *, neighbours: bool,
) -> None:  # fmt: skip
    kills = effort("kill -9 of a worker of one stage of a cluster compression", 1, 20)
    died: list[Path] = []

    def on_cluster(
        work: Callable[..., Any],
        rows: Sequence[dict[str, Any]],
        cluster: Cluster,
        setup: dict[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        died.append(tmp_path / f"died-{len(died)}")
        died[-1].mkdir()
        placed = [{**row, "place": i} for i, row in enumerate(rows)]
        setup = {"work": work, "setup": setup, "kills": kills, "folder": died[-1]}
        return map_on_cluster(Mortal, placed, cluster, setup)

    monkeypatch.setattr(btr.occurrences, "map_on_cluster", on_cluster)
    monkeypatch.setattr(btr.compressing, "map_on_cluster", on_cluster)
    monkeypatch.setattr(btr.occurrences, "FILE_BYTES", 400)
    monkeypatch.setattr(btr.occurrences, "MOST_FILES", 1000)
    monkeypatch.setattr(btr.compressing, "BASED", 4)
    monkeypatch.setattr(btr.coding_shards, "GROUP", 8)  # eight parts to count, as eight shards
    how = Compression(ratio=0.3, neighbours=neighbours, lossless=neighbours)
    build_index([sources], tmp_path / "a", reader, embedder=Embedder(), shard_passages=SHARD)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    manifest = compress(tmp_path / "a", reader, how)
    assert manifest.compression["left_out_tokens" if neighbours else "merged_vectors"] > 0
    stages = Counter[str]()
    compress(tmp_path / "b", reader, how, lambda stage, done, total: stages.update([stage]),
             cluster)  # fmt: skip
    assert stages["counting"] == stages["writing"] == 8
    assert [len(list(folder.iterdir())) for folder in died] == [kills, kills]
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert verify(tmp_path / "b").ok
    assert not (tmp_path / "b.building").exists()


def test_an_error_of_a_worker_is_the_error_of_the_command(
    tmp_path: Path, sources: Path, reader: Reader, cluster: Cluster
) -> None:
    store = tmp_path / "s"
    build_index([sources], store, reader, embedder=Embedder(), shard_passages=SHARD)
    shard = store / "shards" / "00000003.btr"
    data = shard.read_bytes()
    shard.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    with pytest.raises(CorruptError) as one:
        compress(store, reader, Compression())
    with pytest.raises(CorruptError) as other:
        compress(store, reader, Compression(), cluster=cluster)
    assert str(other.value) == str(one.value)
    shard.write_bytes(data)
    assert compress(store, reader, Compression(), cluster=cluster).generation == 1


def kill_yourself(row: dict[str, Any]) -> dict[str, Any]:
    if row["bad"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return row


def test_work_that_kills_every_worker_ends_in_one_line(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(btr.cluster, "TRIES", 2)
    rows = [{"bad": False}, {"bad": True}]
    with pytest.raises(ResourceError, match=r"die of one piece of work.*2 tries"):
        list(map_on_cluster(kill_yourself, rows, cluster))
    assert list(map_on_cluster(kill_yourself, rows[:1], cluster)) == rows[:1]


def test_passages_come_back_from_the_spool_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    passages = [Passage("a\u2028b", "Text \x85 \x1d “é”\n\n", "", "x", 9), Passage("b", "t")]
    write_spool(tmp_path, 3, passages)
    assert read_spool(tmp_path, 3) == passages


def test_an_open_cluster_is_refused(
    tmp_path: Path, sources: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(UsageError, match="not protected"):
        build_index([sources], tmp_path / "s", reader, embedder=Embedder(),
                    cluster=Cluster("10.0.0.1:6379"))  # fmt: skip
    assert not (tmp_path / "s.building").exists()
