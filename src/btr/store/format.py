"""What a store is made of: spec, manifest, commit records, and how they are written as JSON.

``docs/format.md`` is the reference for all of it; ``shard.py`` is the part about shards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from operator import lt
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from btr.errors import CorruptError, IncompatibleError, UsageError
from btr.store import names
from btr.store.sealed import seal, unseal
from btr.store.values import integer, integers, items, refuse, scalar, scalars, text

FORMAT = "btr-store"
VERSION = 1

MAX_MANIFEST_BYTES = 64 << 20
MAX_FILE_BYTES = 1 << 50
MAX_PASSAGES = 1 << 40
MAX_SHARDS = MAX_GENERATION = 10**8  # the digits of their names
PARTS = ("passages", "states", "tables", "vectors")
BITS_PER_DIM = {
    "bits": 1, "bits+ids": 1, "bits+rms16": 1, "bits+rms16+ids": 1, "bits+rms8": 1,
    "bits+rms8+ids": 1, "fp16": 16,
}  # fmt: skip
"""What a row is made of, by its kind: dimensions, then as it says the token's scale, its id."""

SCALE_BYTES = {"rms16": 2, "rms8": 1}
"""How a token's scale may be stored, and its bytes."""

ID_BYTES = 2

_HEX_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEX_DIGITS = re.compile(r"[0-9a-f]*", re.ASCII)

T = TypeVar("T")


def packed_ids(ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Token ids ``[n]`` as they stand at the end of rows, ``[n, ID_BYTES]``."""
    return ids.astype("<u2")[:, None].view(np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Guesses:
    """Tokens that were worked out from others, with more than the sign of what they may be.

    Attributes:
        places: int64 ``[n]``, ascending.
        levels: int8 ``[n, d]``: -127 for a sure -1, 127 for a sure +1.
    """

    places: NDArray[np.int64]
    levels: NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class PassageState:
    """What the lower layers of a reader made of one passage.

    Attributes:
        rows: uint8 ``[n_tokens, row_bytes]``, C-contiguous: packed signs (most significant bit
            first) or the bytes of little-endian float16. Read-only when it comes from a store.
        text_start: Index of the first token that belongs to ``Passage.text``; title tokens and
            the like come before it.
        truncated: The passage had more tokens than the reader's budget.
        guesses: Of a compressed store, those of the tokens that are not in it; None if all are.
    """

    rows: np.ndarray
    text_start: int
    truncated: bool
    guesses: Guesses | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpec:
    """All that decides a store's content, known before its first passage.

    Attributes:
        kind: What a row is: one of ``BITS_PER_DIM``.
        dim: Width of a token's state.
        split_layer: Layers below the cut.
        fingerprint: What the states depend on, by field: weights, tokenizer, settings.
        dense_dim: Width of the int8 dense vectors; 0 without them.
        passages_per_shard: Passages in every shard but the last.
        sources_digest: Identifies the sources and the way they are cut into passages.
        settings: Text, numbers or truth values by name, for whoever opens the store.

    Raises:
        UsageError: A field is out of the limits in ``docs/format.md``.
        IncompatibleError: ``kind`` is unknown.
    """

    kind: str
    dim: int
    split_layer: int
    fingerprint: Mapping[str, str]
    dense_dim: int
    passages_per_shard: int = 2048
    sources_digest: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in BITS_PER_DIM:
            raise IncompatibleError("unknown kind of states", where="kind",
                                    expected=" or ".join(BITS_PER_DIM),
                                    found=repr(self.kind)[:80])  # fmt: skip
        integer(self.dim, "dim", 1, 65_536)
        if self.dim * BITS_PER_DIM[self.kind] % 8:
            refuse("dim", "a multiple of 8 for bits", self.dim)
        integer(self.split_layer, "split_layer", 0, 1_000)
        integer(self.dense_dim, "dense_dim", 0, 8_192)
        integer(self.passages_per_shard, "passages_per_shard", 1, 65_536)
        if self.passages_per_shard * self.dense_dim > 1 << 28:
            refuse("dense_dim", "at most 2^28 / passages_per_shard", self.dense_dim)
        text(self.sources_digest, "sources_digest")
        for name, value in items(self.fingerprint, "fingerprint", 64):
            text(value, f"fingerprint.{name}")
        for name, value in items(self.settings, "settings", 256):
            scalar(value, f"settings.{name}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's state."""
        return self.state_bytes + self.scale_bytes + self.id_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of a row that are the state's dimensions."""
        return self.dim * BITS_PER_DIM[self.kind] // 8

    @property
    def scale_bytes(self) -> int:
        """Bytes of a row that are the token's scale."""
        return sum(SCALE_BYTES.get(part, 0) for part in self.kind.split("+"))

    @property
    def id_bytes(self) -> int:
        """Bytes of a row that are the token's id."""
        return ID_BYTES if self.kind.endswith("+ids") else 0

    @property
    def store_id(self) -> bytes:
        """16 bytes derived from every field: equal specs make equal stores."""
        text = json.dumps({"version": VERSION} | self.as_dict(), sort_keys=True, allow_nan=False,
                          separators=(",", ":"))  # fmt: skip
        return sha256(text.encode("ascii")).digest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """The fields for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"fingerprint": dict(self.fingerprint), "settings": dict(self.settings)}


class FileEntry(NamedTuple):
    """A file of a store as the manifest names it: relative name, bytes, SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardCommit:
    """The record that makes a written shard count; ``parts`` as in :class:`Manifest`."""

    store: str
    shard: int
    passages: int
    tokens: int
    truncated: int
    parts: Mapping[str, int]
    bytes: int
    sha256: str


class ShardEntry(NamedTuple):
    """A shard as the manifest names it: number, passages it holds, bytes, SHA-256 in hex."""

    number: int
    passages: int
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Its file."""
        return names.shard_name(self.number)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a whole store says of itself in one generation.

    Attributes:
        spec: What was asked for.
        generation: Changes since the store was built.
        shards: In the order of the passages' ordinals; their numbers ascend.
        tokens, truncated: Totals; ``truncated`` counts passages.
        removed: Passages that have an ordinal and count no more.
        parts: Bytes of all shards by part: "passages", "states", "tables", "vectors".
        counts: What ingestion counted, over all sources that were added.
        compression: How the states were compressed, by name; empty where they were not.
        others: Every file but the shards and the manifests, sorted by name.
    """

    spec: StoreSpec
    generation: int
    shards: tuple[ShardEntry, ...]
    tokens: int
    truncated: int
    removed: int
    parts: Mapping[str, int]
    counts: Mapping[str, int]
    compression: Mapping[str, Any]
    others: tuple[FileEntry, ...]

    @property
    def files(self) -> list[FileEntry]:
        """Every file but the manifests, sorted by name; made anew, as there may be many shards."""
        shards = [FileEntry(shard.name, shard.bytes, shard.sha256) for shard in self.shards]
        return sorted([*self.others, *shards])

    @property
    def ordinals(self) -> int:
        """Passages with an ordinal, removed ones among them."""
        return sum(shard.passages for shard in self.shards)

    @property
    def passages(self) -> int:
        """Passages that count."""
        return self.ordinals - self.removed

    @property
    def id_tables(self) -> list[str]:
        """Names of the id tables, the newest first."""
        found = [entry.name for entry in self.others if entry.name.startswith("ids")]
        return sorted(found, key=names.added_by, reverse=True)

    @property
    def lexical_folders(self) -> list[str]:
        """Names of the folders of lexical indexes, in the order of their passages' ordinals."""
        start = f"{names.RETRIEVAL}/{names.LEXICAL}"
        found = {entry.name.rpartition("/")[0] for entry in self.others
                 if entry.name.startswith(start)}  # fmt: skip
        return sorted(found, key=names.added_by)

    def with_files(self, files: Iterable[FileEntry], **changes: Any) -> Manifest:
        """The same with other files, its shards' among them, and other changes."""
        entries = {entry.name: entry for entry in files}
        shards = [
            ShardEntry(shard.number, shard.passages, *entries.pop(shard.name)[1:])
            for shard in self.shards
        ]
        others = tuple(sorted(entries.values()))
        return replace(self, shards=tuple(shards), others=others, **changes)

    def encode(self) -> bytes:
        """The bytes of ``manifest.json``."""
        return seal(
            {
                "format": FORMAT,
                "version": VERSION,
                "store": self.spec.store_id.hex(),
                "spec": self.spec.as_dict(),
                "generation": self.generation,
                "shards": self.shards,
                "tokens": self.tokens,
                "truncated": self.truncated,
                "removed": self.removed,
                "parts": dict(self.parts),
                "counts": dict(self.counts),
                "compression": dict(self.compression),
                "files": self.others,
            }
        )

    @classmethod
    def decode(cls, data: bytes, path: Path) -> Manifest:
        """Check and read ``manifest.json``.

        Args:
            data: The file's bytes.
            path: Its place, for messages.

        Raises:
            CorruptError: It is not a manifest, or says what cannot be.
            IncompatibleError: It was written by a newer version.
        """
        return _decoded(cls._from, cls.encode, data, path)

    @classmethod
    def _from(cls, values: Mapping[str, Any]) -> Manifest:
        if values["format"] != FORMAT:
            refuse("format", FORMAT, values["format"])
        others = [_file_entry(entry) for entry in values["files"]]
        shards = _shard_entries(values["shards"])
        manifest = cls(
            StoreSpec(**values["spec"]),
            integer(values["generation"], "generation", 0, MAX_GENERATION),
            shards,
            integer(values["tokens"], "tokens", 0, 1 << 56),
            integer(values["truncated"], "truncated", 0, MAX_PASSAGES),
            integer(values["removed"], "removed", 0, MAX_PASSAGES),
            integers(values["parts"], "parts", 4),
            check_counts(values["counts"]),
            scalars(values["compression"], "compression", 64),
            tuple(others),
        )
        found = [entry.name for entry in others]
        if found != sorted(found) or len({name.lower() for name in found}) != len(found):
            refuse("files", "sorted names, each once", "others")
        if any(name.startswith(f"{names.SHARDS}/") for name in found):
            refuse("files", "all files but the shards", "a shard")
        size = manifest.spec.passages_per_shard
        if max((shard.passages for shard in shards), default=0) > size:
            refuse("shards", f"1 to {size} passages", "more")
        if not manifest.id_tables:
            refuse("files", names.IDS, "none")
        removed = names.removed_name(manifest.generation)
        kept = [name for name in found if name.startswith("removed")]
        if kept != ([removed] if manifest.removed else []):
            refuse("files", f"{removed} where passages are removed", str(kept))
        if not manifest.passages > 0:
            refuse("removed", "fewer than all passages", manifest.removed)
        if set(manifest.parts) != set(PARTS) or sum(manifest.parts.values()) != sum(
            shard.bytes for shard in shards
        ):
            refuse("parts", "the bytes of all shards", str(dict(manifest.parts)))
        return manifest


def shard_totals(commits: Sequence[ShardCommit], base: Manifest | None = None) -> dict[str, Any]:
    """The fields of a manifest that its shards decide: those of ``base``, if any, then these."""
    parts = base.parts if base else dict.fromkeys(PARTS, 0)
    return {
        "shards": (
            *(base.shards if base else ()),
            *(ShardEntry(c.shard, c.passages, c.bytes, c.sha256) for c in commits),
        ),
        "tokens": sum(c.tokens for c in commits) + (base.tokens if base else 0),
        "truncated": sum(c.truncated for c in commits) + (base.truncated if base else 0),
        "parts": {part: parts[part] + sum(c.parts[part] for c in commits) for part in PARTS},
    }


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What ``build.json`` says of an unfinished build.

    Attributes:
        spec: What is built; of an addition, its own sources.
        generation: Which it is to be.
        first: Ordinal of its first passage.
    """

    spec: StoreSpec
    generation: int
    first: int

    def encode(self) -> bytes:
        """The bytes of ``build.json``."""
        return seal({"format": FORMAT, "version": VERSION, "spec": self.spec.as_dict(),
                     "generation": self.generation, "first": self.first})  # fmt: skip

    @classmethod
    def decode(cls, data: bytes, path: Path) -> BuildPlan:
        """Check and read ``build.json``; raises as :meth:`Manifest.decode`."""

        def build(values: Mapping[str, Any]) -> BuildPlan:
            generation = integer(values["generation"], "generation", 0, MAX_GENERATION)
            first = integer(values["first"], "first", 0, MAX_PASSAGES)
            return cls(StoreSpec(**values["spec"]), generation, first)

        return _decoded(build, cls.encode, data, path)


def encode_commit(commit: ShardCommit) -> bytes:
    """The bytes of a commit record."""
    return seal(asdict(commit) | {"version": VERSION})


def decode_commit(data: bytes, path: Path) -> ShardCommit:
    """Check and read a commit record; raises as :meth:`Manifest.decode`."""

    def commit(values: Mapping[str, Any]) -> ShardCommit:
        for name in ("shard", "passages", "tokens", "truncated", "bytes"):
            integer(values[name], name, 0, MAX_FILE_BYTES)
        for name in ("store", "sha256"):
            text(values[name], name)
        integers(values["parts"], "parts", 4)
        return ShardCommit(**{f.name: values[f.name] for f in fields(ShardCommit)})

    return _decoded(commit, encode_commit, data, path)


def spec_difference(mine: StoreSpec, theirs: StoreSpec) -> tuple[str, str, str] | None:
    """The first field in which two specs differ: (name, mine, theirs), or None."""
    for f in fields(StoreSpec):
        a, b = getattr(mine, f.name), getattr(theirs, f.name)
        if isinstance(a, Mapping):
            found = mapping_difference(a, b)
            if found is not None:
                return f"{f.name}.{found[0]}", found[1], found[2]
        elif a != b:
            return f.name, str(a), str(b)
    return None


def mapping_difference(
    mine: Mapping[str, Any], theirs: Mapping[str, Any]
) -> tuple[str, str, str] | None:
    """The first name, in order, whose value differs: (name, mine, theirs), or None."""
    for name in sorted({*mine, *theirs}):
        a, b = (repr(m[name]) if name in m else "nothing" for m in (mine, theirs))
        if a != b:
            return name, a, b
    return None


# -- checking ---------------------------------------------------------------------------------


def _decoded(
    build: Callable[[Mapping[str, Any]], T], encode: Callable[[T], bytes], data: bytes, path: Path
) -> T:
    """Unseal, check the version, build the value, and check that it is written as ``data`` is."""
    try:
        values = unseal(data)
        version = values.get("version")
        if type(version) is int and version > VERSION:
            raise IncompatibleError(
                "written by a newer btr", expected=f"format version {VERSION}", found=str(version)
            )
        if version != VERSION:
            raise ValueError("no format version")
        value = build(values)
        if encode(value) != data:  # a key too many, another store's id, another way to write it
            raise ValueError("not as btr would write it")
    except IncompatibleError as error:
        raise IncompatibleError(
            error.what, where=str(path), expected=error.expected, found=error.found,
            todo="install a newer btr",
        ) from None  # fmt: skip
    except UsageError as error:
        raise CorruptError(f"impossible value of {error.where}", where=str(path),
                           expected=error.expected, found=error.found) from None  # fmt: skip
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise CorruptError("damaged file", where=str(path), expected="sealed JSON of this format",
                           found=str(error)[:200] or type(error).__name__) from None  # fmt: skip
    return value


def check_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts of a manifest; UsageError unless they are non-negative integers by name."""
    return integers(counts, "counts", 256)


def _shard_entries(rows: Any) -> tuple[ShardEntry, ...]:
    """The shards of a manifest, checked column by column: there may be many."""
    numbers, passages, sizes, digests = zip(*rows, strict=True) if rows else ((),) * 4
    for name, column, low, high in (
        ("number", numbers, 0, MAX_SHARDS - 1),
        ("passages", passages, 1, 65_536),
        ("bytes", sizes, 0, MAX_FILE_BYTES),
    ):
        whole = not set(map(type, column)) - {int}
        if not whole or (column and not low <= min(column) <= max(column) <= high):
            refuse(f"shards.{name}", f"integers from {low} to {high}", "others")
    if not all(map(lt, numbers, numbers[1:])):
        refuse("shards.number", "ascending numbers", "others")
    # Together, after their lengths: a call for each takes as long as reading the whole manifest.
    lengths = {len(digest) if isinstance(digest, str) else 0 for digest in digests}
    if lengths - {64} or not _HEX_DIGITS.fullmatch("".join(digests)):
        refuse("shards.sha256", "digests of 64 hex digits", "others")
    return tuple(map(ShardEntry._make, rows))


def _file_entry(value: Any) -> FileEntry:
    entry = FileEntry(*value)
    if not isinstance(entry.name, str) or not names.is_file_name(entry.name):
        refuse("files", "names as docs/format.md allows", repr(entry.name))
    integer(entry.bytes, entry.name, 0, MAX_FILE_BYTES)
    if not isinstance(entry.sha256, str) or not _HEX_DIGEST.fullmatch(entry.sha256):
        refuse(entry.name, "a digest of 64 hex digits", repr(entry.sha256))
    return entry
