"""For the process that others are forked from: importing this imports what a first loop does."""

from __future__ import annotations

from pathlib import Path

from stub_training import build

build(Path())
