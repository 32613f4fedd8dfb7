"""What is stored comes back: any text, any state, in any order, from many threads."""

from __future__ import annotations

import errno
import gc
import itertools
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import stub_store as stub
from hypothesis import given, settings
from hypothesis import strategies as st

from btr import files
from btr.data.passages import Passage
from btr.errors import IncompatibleError, InputError, UsageError
from btr.store import PassageState, StoreWriter, TokenStore, verify

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def contents(draw: st.DrawFn) -> tuple[list[Passage], list[PassageState], int, int, str, int]:
    """Passages and states of a store, its row bytes' dim, its dense width, kind and shard size."""
    ids = draw(st.lists(TEXT.filter(len), min_size=1, max_size=9,
                        unique=True))  # fmt: skip
    kind = draw(st.sampled_from(["bits", "fp16"]))
    dim = draw(st.sampled_from([8, 16, 40]))
    row_bytes = dim // 8 if kind == "bits" else 2 * dim
    passages, states = [], []
    for id_ in ids:
        start = draw(st.integers(0, (1 << 64) - 1))
        passages.append(Passage(id_, draw(TEXT), draw(TEXT), draw(TEXT), start))
        tokens = draw(st.integers(0, 5))
        rows = np.frombuffer(draw(st.binary(min_size=tokens * row_bytes,
                                            max_size=tokens * row_bytes)), np.uint8)  # fmt: skip
        states.append(
            PassageState(rows.reshape(tokens, row_bytes), draw(st.integers(0, tokens)),
                         draw(st.booleans()))
        )  # fmt: skip
    return passages, states, dim, draw(st.sampled_from([0, 1, 7])), kind, draw(st.integers(1, 4))


def same(a: PassageState, b: PassageState) -> bool:
    return (
        a.rows.dtype == b.rows.dtype == np.uint8
        and a.rows.shape == b.rows.shape
        and a.rows.tobytes() == b.rows.tobytes()
        and (a.text_start, a.truncated) == (b.text_start, b.truncated)
    )


@settings(max_examples=60, deadline=None)
@given(contents(), st.randoms(use_true_random=False))
def test_round_trip(
    content: tuple[list[Passage], list[PassageState], int, int, str, int], random: object
) -> None:
    passages, states, dim, dense_dim, kind, size = content
    spec = stub.spec(kind=kind, dim=dim, dense_dim=dense_dim, passages_per_shard=size)
    n = len(passages)
    vectors = np.arange(n * dense_dim).astype(np.int8).reshape(n, dense_dim)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        with StoreWriter.create(path, spec) as writer:
            for i in range(0, n, size):
                writer.write_shard(passages[i : i + size], states[i : i + size],
                                   vectors[i : i + size])  # fmt: skip
                assert writer.committed == min(n, i + size)
            manifest = writer.finish({"stored": n}, None, None)
        assert verify(path).ok
        with TokenStore.open(path, fingerprint=spec.fingerprint) as store:
            assert len(store) == n
            order = [i % n for i in range(0, 3 * n, 2)]
            assert store.passages(order) == [passages[i] for i in order]
            assert all(map(same, store.states(order), [states[i] for i in order]))
            assert list(store.iter_passages()) == passages
            assert np.array_equal(np.concatenate(list(store.vectors())), vectors)
            assert [store.ordinal(p.id) for p in passages] == list(range(n))
            assert store.manifest == manifest
        assert manifest.tokens == sum(len(s.rows) for s in states)
        assert manifest.truncated == sum(s.truncated for s in states)
        assert manifest.parts["states"] == sum(20 + s.rows.nbytes for s in states)
        assert sum(manifest.parts.values()) == sum(
            (path / e.name).stat().st_size for e in manifest.files if e.name.startswith("shards")
        )


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    stub.build(tmp_path / "store", 40)
    return TokenStore.open(tmp_path / "store")


def test_what_a_build_leaves(store: TokenStore) -> None:
    names = [entry.name for entry in store.manifest.files]
    assert set(stub.tree(store.path)) == {"manifest.json", *names}
    assert store.manifest.counts == {"stored": 40, "rejected": 1}
    assert (store.path / "rejects.jsonl").read_text() == '{"line": 3}\n'
    (folder,) = store.lexical_folders
    lines = (folder / "index.bin").read_text().split("\n")
    assert lines == ["0", *(stub.passage(i).id for i in range(40))]
    assert not list(store.path.parent.glob("store.*"))


def test_a_file_system_without_locks_can_be_read(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(files.ops, "flock", refuse)
    assert len(TokenStore.open(store.path)) == 40


def test_the_same_input_gives_the_same_bytes(store: TokenStore, tmp_path: Path) -> None:
    stub.build(tmp_path / "again", 40)
    assert stub.tree(tmp_path / "again") == stub.tree(store.path)


def test_rows_are_read_only(store: TokenStore) -> None:
    with pytest.raises(ValueError, match="read-only"):
        store.states([0])[0].rows[0, 0] = 1


def test_ordinals_are_checked(store: TokenStore) -> None:
    assert store.states([]) == []
    assert store.passages(np.array([39, 0]))[1] == stub.passage(0)
    for bad in (-1, 40, 1 << 70):
        with pytest.raises(UsageError, match="no such passage"):
            store.states([0, bad])
    with pytest.raises(TypeError):
        store.passages([0.5])  # type: ignore[list-item]


def test_an_unknown_id_is_an_input_error(store: TokenStore) -> None:
    for unknown in ("nobody", "", "\ud800", "id-00000\0", "x" * 10_000):
        with pytest.raises(InputError, match="no passage has this id"):
            store.ordinal(unknown)


def test_threads_share_a_store_and_its_few_descriptors(store: TokenStore) -> None:
    store._most_open = 3
    expected = store.passages(range(40))
    wrong: list[object] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(20):
                order = rng.integers(0, 40, 30).tolist()
                if store.passages(order) != [expected[i] for i in order]:
                    wrong.append(order)
                if not all(map(same, store.states(order), [stub.state(i) for i in order])):
                    wrong.append(order)
                if store.ordinal(expected[order[0]].id) != order[0]:
                    wrong.append(order[0])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(store._open) <= 3


FORKING = """
import os, sys
from btr.store import TokenStore

store = TokenStore.open(sys.argv[1])

def read():
    return [
        (store.passages([i]), store.states([i])[0].rows.tobytes(), store.ordinal(f"id-{i:05d}"))
        for i in range(40)
    ]

expected = read()
children = []
for _ in range(4):
    child = os.fork()
    if not child:
        os._exit(0 if all(read() == expected for _ in range(20)) else 1)
    children.append(child)
assert all(read() == expected for _ in range(20))
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
assert read() == expected
print("ok")
"""


def test_processes_that_are_forked_off_read_an_open_store(store: TokenStore) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING, store.path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_many_shards_need_few_descriptors(tmp_path: Path) -> None:
    one_each = stub.spec(passages_per_shard=1)
    stub.build(tmp_path / "store", 100, of=one_each)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # stores that other tests have left open
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, hard), hard))
        store = TokenStore.open(tmp_path / "store")
        before = descriptors()
        assert len(store.states(range(100))) == 100
        assert len(list(store.iter_passages())) == 100
        assert descriptors() <= before + 16
        store.close()
        assert descriptors() == before - 1  # the lease is gone too
        assert len(store.states([5])) == 1  # it opens again by itself
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


FIELDS = ["family", "mode", "lower_weights", "tokenizer", "split_layer", "width", "query_budget",
          "passage_budget", "template", "binarizer"]  # fmt: skip


def test_another_readers_store_is_refused_by_the_field_that_differs(tmp_path: Path) -> None:
    fingerprint = {name: f"{name} 1" for name in FIELDS}
    stub.build(tmp_path / "store", of=stub.spec(fingerprint=fingerprint))
    store = TokenStore.open(tmp_path / "store", fingerprint=fingerprint)
    for name in FIELDS:
        other = fingerprint | {name: f"{name} 2"}
        with pytest.raises(IncompatibleError, match=rf"{name} differs.*'{name} 2'.*'{name} 1'"):
            TokenStore.open(tmp_path / "store", fingerprint=other)
        with pytest.raises(IncompatibleError, match=rf"{name} differs.*expected nothing"):
            store.require({k: v for k, v in fingerprint.items() if k != name})
    with pytest.raises(IncompatibleError, match=r"extra differs.*found nothing"):
        store.require(fingerprint | {"extra": "x"})


def test_what_is_not_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name, match in (
        ("nothing", "no store here"),
        ("file", "no store here"),
        ("folder", "not a store"),
        ("\0", "no store here"),
        ("x" * 5000, "not a usable file name"),
    ):
        with pytest.raises(UsageError, match=match):
            TokenStore.open(tmp_path / name)


def test_a_store_may_be_reached_by_a_link(store: TokenStore, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.path)
    assert len(TokenStore.open(tmp_path / "link")) == 40
    assert verify(tmp_path / "link").ok


def test_names_with_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%20é"
    stub.build(path)
    with TokenStore.open(path) as store:
        assert store.ordinal(stub.passage(3).id) == 3


def test_verify_reports_progress(store: TokenStore) -> None:
    steps: list[tuple[int, int]] = []
    report = verify(store.path, lambda done, total: steps.append((done, total)))
    assert report.ok
    assert report.passages == 40
    assert report.files == len(stub.tree(store.path))
    assert report.bytes == sum(map(len, stub.tree(store.path).values()))
    assert steps[-1] == (report.bytes, report.bytes)
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(steps))
