"""Damage anywhere in a checkpoint is found before anything of it is used."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from btr.errors import BtrError
from btr.readers.digests import DIGESTS, check_digests
from tiny_readers import make_reader

TRIES = 1000


def test_changed_bytes_of_a_checkpoint_are_found(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    make_reader(tmp_path / "btr", tokenizer, "btr", 2)
    folder, draw = tmp_path / "btr", random.Random("checkpoints")
    check_digests(folder)
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    assert {"model.safetensors", "config.json", "tokenizer.json", DIGESTS} <= {
        path.name for path in paths
    }
    for number in range(TRIES):
        path = paths[number % len(paths)]
        data = path.read_bytes()
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(BtrError):
            check_digests(folder)
        path.write_bytes(data)
    for path in paths:
        data = path.read_bytes()
        for wrong in (data[:-9], data + b"\0", b""):
            path.write_bytes(wrong)
            with pytest.raises(BtrError):
                check_digests(folder)
        path.write_bytes(data)
    check_digests(folder)
