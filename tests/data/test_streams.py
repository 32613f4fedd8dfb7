from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.data.lines import read_lines
from btr.data.streams import StreamLimits, open_stream
from btr.errors import InputError


def lines_of(path: Path, limits: StreamLimits | None = None, cap: int = 1000) -> list[bytes | None]:
    with open_stream(path, path.name, limits or StreamLimits()) as stream:
        return [line.data for line in read_lines(stream, cap)]


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_many_members_and_zero_padding_are_one_stream(tmp_path: Path) -> None:
    data = gzip.compress(b"one\ntw") + gzip.compress(b"") + gzip.compress(b"o\nthree")
    assert lines_of(write(tmp_path, "a.gz", data)) == [b"one", b"two", b"three"]
    assert lines_of(write(tmp_path, "b.gz", data + b"\0" * 100_000)) == [b"one", b"two", b"three"]


def test_every_truncation_of_a_gzip_file_is_noticed(tmp_path: Path) -> None:
    data = gzip.compress(b"some text\n" * 20)
    for length in range(len(data)):
        with pytest.raises(InputError, match=r"truncated gzip file: x\.gz, byte offset"):
            lines_of(write(tmp_path, "x.gz", data[:length]))


def test_damage_and_trailing_garbage_in_gzip_are_noticed(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(b"some text\n" * 20))
    with pytest.raises(InputError, match="damaged gzip"):
        lines_of(write(tmp_path, "x.gz", bytes(data) + b"garbage"))
    data[-6] ^= 1  # its checksum
    with pytest.raises(InputError, match="damaged gzip"):
        lines_of(write(tmp_path, "x.gz", bytes(data)))
    with pytest.raises(InputError, match="damaged gzip"):
        lines_of(write(tmp_path, "x.gz", b'{"id": "plain text under the wrong name"}\n'))


def bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    block = b" " * (1 << 20)
    return b"".join(packer.compress(block) for _ in range(megabytes)) + packer.flush()


def test_a_bomb_is_stopped_early(tmp_path: Path) -> None:
    path = write(tmp_path, "bomb.gz", bomb(64))
    with open_stream(path, "bomb.gz", StreamLimits()) as stream:  # noqa: SIM117
        with pytest.raises(InputError, match=r"expands suspiciously.*200 times"):
            stream.read_all(1 << 30)
    with pytest.raises(InputError, match=r"too large.*over 3000000 bytes"):
        lines_of(path, StreamLimits(max_bytes=3_000_000, max_ratio=10_000))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_long_lines_are_passed_over_whole(tmp_path: Path, name: str) -> None:
    data = b"\xef\xbb\xbf" + b"x" * 10 + b"\n" + b"y" * 11 + b"\n\n" + b"z" * 300_000 + b"\nend"
    path = write(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data)
    with open_stream(path, name, StreamLimits()) as stream:
        found = list(read_lines(stream, 10))
    assert [(x.number, x.offset, x.size) for x in found] == [
        (1, 3, 10), (2, 14, 11), (3, 26, 0), (4, 27, 300_000), (5, 300_028, 3),
    ]  # fmt: skip
    assert [x.data for x in found] == [b"x" * 10, None, b"", None, b"end"]


@given(data=st.binary(max_size=300), cap=st.integers(1, 40))
def test_lines_are_split_at_newline_bytes_alone(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cap: int
) -> None:
    data = b"ascii start\n" + data.replace(b"\0", b"0")
    path = write(tmp_path_factory.mktemp("lines"), "a", data)
    with open_stream(path, "a", StreamLimits()) as stream:
        found = list(read_lines(stream, cap))
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [x.data for x in found] == [x if len(x) <= cap else None for x in expected]
    assert [data[x.offset : x.offset + x.size] for x in found] == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_one_error(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "a.jsonl", ('{"id": "a", "text": "b"}\n' * 50).encode(encoding))
    with pytest.raises(InputError, match=r"not UTF-8: a.jsonl.*found UTF-.*iconv"):
        lines_of(path)


def test_what_is_no_regular_file_is_refused_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ["fifo", ".", "missing"]:
        with pytest.raises(InputError):
            lines_of(tmp_path / name)
