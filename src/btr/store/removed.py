"""The ordinals of removed passages: one checked file a generation (docs/format.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from btr import files
from btr.errors import CorruptError
from btr.store.format import Manifest
from btr.store.shard import CRC_BYTES, REMOVED, crc_matches, section_seed, with_crc

ITEM = np.dtype("<u8")


def write_removed(path: Path, store_id: bytes, generation: int, ordinals: np.ndarray) -> None:
    """Write ascending ordinals; the file appears when it is whole."""
    seed = section_seed(store_id, generation, REMOVED)
    files.write_file(path, with_crc(seed, ordinals.astype(ITEM).tobytes()))


def load_removed(path: Path, manifest: Manifest, size: int) -> np.ndarray:
    """Ascending ordinals, int64.

    Raises:
        CorruptError: They are damaged, or not what the manifest counts.
    """
    if size != manifest.removed * ITEM.itemsize + CRC_BYTES:
        raise CorruptError("wrong size of a list of removed passages", where=str(path),
                           expected=f"{manifest.removed} ordinals",
                           found=f"{size} bytes")  # fmt: skip
    data = files.read_file(path, size)
    seed = section_seed(manifest.spec.store_id, manifest.generation, REMOVED)
    ordinals = np.frombuffer(data[:-CRC_BYTES], ITEM)
    if (
        len(data) != size
        or not crc_matches(seed, data)
        or np.any(ordinals[1:] <= ordinals[:-1])
        or ordinals[-1] >= manifest.ordinals
    ):
        raise CorruptError("damaged list of removed passages", where=str(path),
                           todo="restore the file")  # fmt: skip
    return ordinals.astype(np.int64)
