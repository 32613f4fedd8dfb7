"""Ctrl-C and SIGTERM: the status, what is said, and what is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from btr.readers.bert import BertReader

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_goes_on(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    sources = tmp_path / "many.jsonl"
    sources.write_text(
        "".join(f'{{"id": "{i}", "text": "It is {i} long."}}\n' for i in range(2100))
    )
    words = ("index", sources, "-o", tmp_path / "s", "--reader", tiny)
    encode, calls = BertReader.encode, 0

    def stop_in_the_second_shard(self: BertReader, passages: list) -> list:
        nonlocal calls
        calls += 1
        if calls == 9:
            signal.raise_signal(number)
        return encode(self, passages)

    with monkeypatch.context() as patch:
        patch.setattr(BertReader, "encode", stop_in_the_second_shard)
        found, _, err = run(*words)
    assert found == status
    assert err == (
        "interrupted; what was committed is kept; go on with: "
        f"btr index {sources} -o {tmp_path / 's'} --reader {tiny} --resume\n"
    )
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "s.lock").exists()
    found, out, _ = run(*words)
    assert found == 2  # not without --resume
    found, out, err = run(*words, "--resume")
    assert (found, err) == (0, "")
    assert "2,100 passages" in out
    assert run(*words[:3], tmp_path / "whole", *words[4:])[0] == 0
    for file in (tmp_path / "whole").rglob("*"):
        if file.is_file():
            twin = tmp_path / "s" / file.relative_to(tmp_path / "whole")
            assert twin.read_bytes() == file.read_bytes(), file.name


def test_other_commands_only_say_that_they_stopped(
    run: Run, whole_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "btr.store.sizes.store_sizes", lambda *_: signal.raise_signal(signal.SIGINT)
    )
    assert run("info", whole_store) == (130, "", "interrupted\n")


def test_a_main_thread_that_is_busy_elsewhere_does_not_keep_the_process() -> None:
    # The key derivation runs for hours without a single bytecode in between.
    code = (
        "import hashlib, os, signal, threading\n"
        "from btr.cli import interrupts\n"
        "interrupts.GRACE_S = 0.2\n"
        "with interrupts.listen():\n"
        "    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**31 - 1)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 143
    assert run.stderr == "interrupted; a build goes on with --resume\n"
