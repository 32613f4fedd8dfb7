"""What a store's bytes are spent on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from btr.files import file_size
from btr.store.format import Manifest
from btr.store.names import manifest_name
from btr.store.shard import HEADER_BYTES

CONTINUOUS_BYTES = 4
"""Bytes per dimension of the fp32 states that DeFormer stores."""


@dataclass(frozen=True, slots=True)
class StoreSizes:
    """Bytes of a store by part, together all bytes of its files.

    Attributes:
        bits: State records: packed signs or float16 states, their lengths, flags and checksums,
            and the tables that find them.
        scales: Per-token scales; readers with post-norm layers need none.
        refs: Token ids, where the reader needs them, and references to merged vectors; without
            offline compression there are none of the latter.
        codebook: Shared and merged vectors and their tables; none without offline compression.
        index: Dense vectors and the lexical index.
        text: Passages, their tables, the id table and the rejects.
        manifest: The manifest and the shards' headers.
        tokens: Tokens with a state.
        dim: Width of a state.
    """

    bits: int
    scales: int
    refs: int
    codebook: int
    index: int
    text: int
    manifest: int
    tokens: int
    dim: int

    @property
    def by_part(self) -> dict[str, int]:
        """The parts by name."""
        names = ("bits", "scales", "refs", "codebook", "index", "text", "manifest")
        return {name: getattr(self, name) for name in names}

    @property
    def state_bytes_per_token(self) -> float:
        """Bytes of all that the reader needs in place of a token's state."""
        return (self.bits + self.scales + self.refs + self.codebook) / max(1, self.tokens)

    @property
    def ratio_to_continuous(self) -> float:
        """How many times smaller than float32 states."""
        return CONTINUOUS_BYTES * self.dim / self.state_bytes_per_token if self.tokens else 0.0


def store_sizes(path: Path, manifest: Manifest) -> StoreSizes:
    """Account for every byte of an open store.

    Args:
        path: The store's folder.
        manifest: Its manifest.
    """
    other = {entry.name: entry.bytes for entry in manifest.others}
    headers = HEADER_BYTES * len(manifest.shards)
    # A shard's two tables have one entry a passage each and are equally long.
    table = (manifest.parts["tables"] - headers) // 2
    beside = {
        kind: sum(size for name, size in other.items() if name.startswith(kind))
        for kind in ("ids", "rejects", "removed", "retrieval", "coding")
    }
    # Added passages are not coded until the next compression; what they hold counts as bits.
    spent = manifest.compression
    scales = spent.get("scale_bytes", manifest.tokens * manifest.spec.scale_bytes)
    ids = spent.get("id_bytes", manifest.tokens * manifest.spec.id_bytes)
    refs = ids + spent.get("reference_bytes", 0)
    return StoreSizes(
        bits=manifest.parts["states"] + table - scales - refs,
        scales=scales,
        refs=refs,
        codebook=beside["coding"],
        index=manifest.parts["vectors"] + beside["retrieval"],
        text=manifest.parts["passages"] + table + beside["ids"] + beside["rejects"],
        manifest=file_size(path / manifest_name(manifest.generation)) + headers + beside["removed"],
        tokens=manifest.tokens,
        dim=manifest.spec.dim,
    )
