"""What a run was made with, so that only the same run goes on from what it left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

from btr.errors import IncompatibleError
from btr.files import explaining


def file_digests(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 in hex of files, by path.

    Raises:
        InputError: One cannot be read.
    """
    digests = {}
    for path in paths:
        with explaining(path), path.open("rb") as file:
            digests[str(path)] = file_digest(file, "sha256").hexdigest()
    return digests


def weight_files(checkpoint: Path) -> list[Path]:
    """The files that hold a checkpoint's weights."""
    return sorted(checkpoint.glob("*.safetensors"))


def as_recorded(settings: Mapping[str, object]) -> dict[str, Any]:
    """Settings as JSON gives them back; paths are text."""
    recorded: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return recorded


def require_same(recorded: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse to go on with other settings.

    Args:
        recorded: Of the run that is to go on. Settings that it lacks are not compared: an older
            btr did not have them.
        now: Of this run, as :func:`as_recorded` gives them.
        where: What is to be gone on from.

    Raises:
        IncompatibleError: Names the first setting that differs.
    """
    for name, was, found in _pairs(recorded, now):
        if was != found:
            raise IncompatibleError(
                f"another {name} than the run has that is to go on", where=str(where),
                expected=json.dumps(was)[:200], found=json.dumps(found)[:200],
                todo="use the same settings, or remove it to start again",
            )  # fmt: skip


def _pairs(
    recorded: Mapping[str, Any], now: Mapping[str, Any], within: str = ""
) -> Iterable[tuple[str, Any, Any]]:
    """Recorded settings with those of now, the names of nested ones joined."""
    for name, was in recorded.items():
        found = now.get(name)
        if isinstance(was, dict) and isinstance(found, dict):
            yield from _pairs(was, found, f"{within}{name} ")
        else:
            yield f"{within}{name}", was, found
