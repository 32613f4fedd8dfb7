"""For the process that others are forked from: importing this loads the compiled loops."""

from __future__ import annotations

import tempfile
from pathlib import Path

import stub_store as stub
from stub_changes import COMPRESSIONS, squeeze

with stub.unsynced(), tempfile.TemporaryDirectory() as _folder:
    stub.build(Path(_folder, "store"), 5)
    squeeze(Path(_folder, "store"), COMPRESSIONS["compress --lossless"])
