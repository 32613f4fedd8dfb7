"""From a reader's name and a mode to the reader.

A reader is a folder with up to three checkpoints (``plain``, ``decomposed``, ``btr``), or a single
checkpoint. The mode picks the weights that were trained for it; btr weights never stand in for a
plain reader.
"""

from __future__ import annotations

import torch

from btr.errors import InputError
from btr.models import reader_folder
from btr.readers.base import MODES, Mode, Reader
from btr.readers.bert import BertReader


def load_reader(name: str, mode: Mode, *, dtype: torch.dtype = torch.float32) -> Reader:
    """Load a reader.

    Args:
        name: One that ships (``btr models``), a folder, or a Hugging Face Hub id.
        mode: Which of its checkpoints.
        dtype: Of its weights and arithmetic.

    Raises:
        InputError: No such reader, or it has no checkpoint for the mode.
    """
    folder = reader_folder(name)
    if (folder / mode / "config.json").exists():
        return BertReader.from_pretrained(folder / mode, name=name, dtype=dtype)
    if (folder / "config.json").exists():
        reader = BertReader.from_pretrained(folder, name=name, dtype=dtype)
        if reader.mode == mode:
            return reader
        have = [reader.mode]
    else:
        have = [m for m in MODES if (folder / m / "config.json").exists()]
    raise InputError(f"reader {name} has no {mode} checkpoint", where=str(folder),
                     found=", ".join(have) or "no checkpoint at all",
                     todo="train that step, or choose another --mode or --reader")  # fmt: skip
