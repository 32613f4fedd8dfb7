"""Checksums of a checkpoint's files: safetensors and tokenizer files carry none of their own."""

from __future__ import annotations

import json
from hashlib import file_digest
from pathlib import Path

from btr.errors import CorruptError
from btr.files import explaining, write_file

DIGESTS = "digests.json"


def write_digests(folder: Path) -> None:
    """Record the SHA-256 of every file of a checkpoint in its ``digests.json``.

    Raises:
        ResourceError: No space.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != DIGESTS)
    digests = {name: _digest(folder / name) for name in names}
    write_file(folder / DIGESTS, (json.dumps(digests, indent=2) + "\n").encode())


def check_digests(folder: Path) -> None:
    """Compare a checkpoint's files with its ``digests.json``; one without it passes.

    Raises:
        CorruptError: A file is missing or is not the recorded one, or the record is damaged.
    """
    record = folder / DIGESTS
    if not record.exists():
        return
    try:
        digests = json.loads(record.read_bytes())
        pairs = [(str(name), str(digest)) for name, digest in digests.items()]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptError(
            "the record of checksums cannot be read",
            where=str(record),
            found=str(error)[:200],
            todo="fetch the checkpoint again",
        ) from error
    for name, expected in pairs:
        found = _digest(folder / Path(name).name)
        if found != expected:
            raise CorruptError("a file of the checkpoint is damaged", where=str(folder / name),
                               expected=f"SHA-256 {expected}", found=found,
                               todo="fetch the checkpoint again")  # fmt: skip


def _digest(path: Path) -> str:
    with explaining(path), path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
