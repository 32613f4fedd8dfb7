"""The file operations that everything else relies on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from btr import files
from btr.errors import BtrError, CorruptError, LockedError, ResourceError, UsageError


def names(folder: Path) -> list[str]:
    return [name for name, _ in files.list_tree(folder)]


def test_a_new_file_appears_when_it_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with files.NewFile(path) as new:
        new.write(b"one ")
        new.write(b"x" * (3 << 20))
        assert names(tmp_path) == ["a.tmp"]
        new.commit()
        assert names(tmp_path) == ["a"]
    size = 4 + (3 << 20)
    assert new.size == path.stat().st_size == size
    assert new.digest.hexdigest() == files.digest_file(path, size)
    assert path.read_bytes() == b"one " + b"x" * (3 << 20)


def test_a_new_file_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("before")
    (tmp_path / "a.tmp").write_text("left by a crash")
    with contextlib.suppress(KeyError), files.NewFile(path) as new:
        new.write(b"after")
        raise KeyError
    with files.NewFile(path) as new:
        new.write(b"after")
    assert names(tmp_path) == ["a"]
    assert path.read_text() == "before"


def test_a_failed_sync_drops_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    fake = files.Files()
    fake.fsync = fsync  # type: ignore[assignment]
    monkeypatch.setattr(files, "ops", fake)
    with pytest.raises(ResourceError, match="input/output error"):
        files.write_file(tmp_path / "a", b"data")
    assert names(tmp_path) == []


def test_short_reads_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    fake = files.Files()
    fake.pread = lambda fd, n, at: os.pread(fd, min(n, 7), at)
    monkeypatch.setattr(files, "ops", fake)
    assert files.read_file(path, 100) == bytes(range(100))
    fd = files.open_exact(path, 100)
    with pytest.raises(CorruptError, match="ends too early"):
        files.read_exact(fd, 50, 60, path)
    os.close(fd)


def test_only_regular_files_of_the_right_size_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for bad in ("link", "pipe", "missing", "."):
        with pytest.raises(CorruptError):
            os.close(files.open_exact(tmp_path / bad, 5))
    for size in (4, 6):
        with pytest.raises(CorruptError, match="size"):
            files.open_exact(path, size)
    with pytest.raises(CorruptError, match="too big"):
        files.read_file(path, 4)
    assert b"".join(files.read_chunks(path, 5)) == b"12345"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, ResourceError),
        (errno.EDQUOT, ResourceError),
        (errno.EIO, ResourceError),
        (errno.EMFILE, ResourceError),
        (errno.EACCES, UsageError),
        (errno.EROFS, UsageError),
        (errno.ENAMETOOLONG, UsageError),
        (errno.ENOENT, CorruptError),
        (errno.ELOOP, CorruptError),
        (errno.EBADF, ResourceError),
    ],
)
def test_errors_are_explained(code: int, kind: type[BtrError]) -> None:
    with pytest.raises(kind, match="some/file") as caught, files.explaining("some/file"):
        raise OSError(code, os.strerror(code))
    assert "\n" not in str(caught.value)


def test_remove_tree_keeps_what_it_is_told_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    for folder in (outside, root / "a" / "b", root / "c"):
        folder.mkdir(parents=True)
    for file in (outside / "x", root / "a" / "b" / "1", root / "a" / "b" / "2", root / "c" / "3"):
        file.write_text("")
    (root / "link").symlink_to(outside)
    files.remove_tree(root, frozenset({"a/b/1", "d/none"}))
    assert names(root) == ["a", "a/b", "a/b/1"]
    assert names(outside) == ["x"]


def test_no_memory_for_a_read_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pread(fd: int, size: int, offset: int) -> bytes:
        raise MemoryError

    path = tmp_path / "a"
    path.write_bytes(b"12345")
    fake = files.Files()
    fake.pread = pread
    monkeypatch.setattr(files, "ops", fake)
    with pytest.raises(ResourceError, match="out of memory"):
        files.read_file(path, 5)


def test_copy_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * (2 << 20) + b"y")
    files.copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    files.make_folder(tmp_path / "c")
    files.make_folder(tmp_path / "c")
    files.remove(tmp_path / "b")
    files.remove(tmp_path / "b")
    assert list(files.list_tree(tmp_path)) == [("a", False), ("c", True)]


def test_a_replaced_folder_is_read_by_whom_a_new_one_is(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with files.replaced_folder(tmp_path / "a") as beside:
            (beside / "weights").touch(0o600)  # as safetensors makes its files
            (beside / "config").touch()
    finally:
        os.umask(old)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "a").iterdir()}
    assert modes == {"weights": 0o640, "config": 0o640}


def test_a_lock_has_one_holder_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    lock = files.FileLock(path)
    with pytest.raises(LockedError) as caught:
        files.FileLock(path)
    assert caught.value.found == f"pid {os.getpid()} on {os.uname().nodename}"
    lock.release()
    lock.release()
    assert not path.exists()
    files.FileLock(path).release()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    program = (
        "import sys, time; from pathlib import Path; from btr import files\n"
        "lock = files.FileLock(Path(sys.argv[1])); print('ready', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with pytest.raises(LockedError, match=f"pid {process.pid} on"):
        files.FileLock(path)
    process.kill()
    process.communicate()
    assert path.exists()  # its file stays, and means nothing
    files.FileLock(path).release()


def test_a_lock_file_replaced_while_it_is_locked_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder removes the file between another's open and lock: the other must try again."""
    path = tmp_path / "a.lock"
    first = files.FileLock(path)
    fake = files.Files()
    calls: list[int] = []

    def flock(fd: int, how: int) -> None:
        if not calls:
            first.release()
        calls.append(how)
        fcntl.flock(fd, how)

    fake.flock = flock  # type: ignore[assignment]
    monkeypatch.setattr(files, "ops", fake)
    second = files.FileLock(path)
    assert len(calls) == 2
    with pytest.raises(LockedError):
        files.FileLock(path)
    second.release()
