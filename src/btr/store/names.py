"""The names of a store's files. A name is generated here or refused; none comes from a document.

A store that was never changed is generation 0. Each change makes the next generation: it adds files
whose names hold its number, and a manifest that names these and the files that it kept.
"""

from __future__ import annotations

import re

MANIFEST = "manifest.json"
IDS = "ids.sqlite"
REJECTS = "rejects.jsonl"
RETRIEVAL = "retrieval"
LEXICAL = "lexical"
SHARDS = "shards"
MANIFESTS = "manifests"
CODING = "coding"

_NUMBER = r"[0-9]{8}"
_FILE = re.compile(
    rf"(ids|rejects)(-{_NUMBER})?\.(sqlite|jsonl)|(removed|coding)-{_NUMBER}\.btr"
    rf"|shards/{_NUMBER}\.btr"
    r"|retrieval(/(?!\.{1,2}(/|$))[A-Za-z0-9_.-]{1,128}){1,4}",
    re.ASCII,
)
_MANIFEST = re.compile(rf"{MANIFESTS}/({_NUMBER})\.json", re.ASCII)
_GENERATION = re.compile(rf"-({_NUMBER})", re.ASCII)


def is_file_name(name: str) -> bool:
    """Whether a manifest may name such a file."""
    return _FILE.fullmatch(name) is not None


def manifest_name(generation: int) -> str:
    """The manifest of a generation."""
    return f"{MANIFESTS}/{generation:08d}.json" if generation else MANIFEST


def manifest_generation(name: str) -> int | None:
    """The generation whose manifest has this name; None for other files."""
    if name == MANIFEST:
        return 0
    match = _MANIFEST.fullmatch(name)
    return int(match[1]) if match else None


def shard_name(number: int) -> str:
    """A shard; numbers are never used twice in a store's life."""
    return f"{SHARDS}/{number:08d}.btr"


def ids_name(generation: int) -> str:
    """The id table of the passages that a generation added."""
    return _numbered("ids", generation, ".sqlite")


def rejects_name(generation: int) -> str:
    """The rejected source lines of the passages that a generation added."""
    return _numbered("rejects", generation, ".jsonl")


def removed_name(generation: int) -> str:
    """The ordinals that are removed in a generation."""
    return f"removed-{generation:08d}.btr"


def coding_name(generation: int) -> str:
    """The tables that states coded by a generation are decoded with."""
    return f"{CODING}-{generation:08d}.btr"


def lexical_name(generation: int) -> str:
    """The folder of the lexical index of the passages that a generation added."""
    return _numbered(f"{RETRIEVAL}/{LEXICAL}", generation, "")


def added_by(name: str) -> int:
    """The generation in a name that one of the functions above has made."""
    match = _GENERATION.search(name)
    return int(match[1]) if match else 0


def _numbered(stem: str, generation: int, ending: str) -> str:
    return f"{stem}-{generation:08d}{ending}" if generation else f"{stem}{ending}"
