"""``btr train`` in a process that is killed; importing this imports what it does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from multiprocessing.connection import Connection

import btr.train.launch
from btr.cli.main import main

__all__ = ["btr", "train"]


def train(_: Connection, words: Sequence[str]) -> int:
    """Run the command, saying nothing; its status."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return main(["train", *words])
