"""The token store: passages and their precomputed states on disk (``docs/format.md``)."""

from __future__ import annotations

from btr.store.check import VerifyReport, verify
from btr.store.format import FileEntry, Manifest, PassageState, StoreSpec
from btr.store.reader import TokenStore
from btr.store.writer import StoreWriter

__all__ = [
    "FileEntry",
    "Manifest",
    "PassageState",
    "StoreSpec",
    "StoreWriter",
    "TokenStore",
    "VerifyReport",
    "verify",
]
