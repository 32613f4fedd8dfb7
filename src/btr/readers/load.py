"""From a reader's name and a mode to the reader.

A reader is a folder with up to three checkpoints (``plain``, ``decomposed``, ``btr``), or a single
checkpoint. The mode picks the weights that were trained for it; btr weights never stand in for a
plain reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from btr.errors import CorruptError, IncompatibleError, InputError
from btr.machine import default_device, dtype_named
from btr.models import reader_folder
from btr.readers.base import MODES, Mode, Reader
from btr.readers.bert import BertReader
from btr.readers.checkpoint import read_config
from btr.readers.digests import check_digests
from btr.readers.t5 import T5Reader

FAMILIES: dict[str, type[BertReader] | type[T5Reader]] = {"bert": BertReader, "t5": T5Reader}
"""Reader of every ``model_type`` that a checkpoint may have."""


def load_reader(
    name: str,
    mode: Mode,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Reader:
    """Load a reader.

    Args:
        name: One that ships (``btr models``), a folder, or a Hugging Face Hub id.
        mode: Which of its checkpoints.
        dtype: Of its weights and arithmetic.
        device: Where it computes; None for a GPU where there is one.

    Raises:
        InputError: No such reader, or it has no checkpoint for the mode.
        IncompatibleError: It is of no family that btr reads.
        CorruptError: Its weights do not fit or are damaged.
    """
    folder = reader_folder(name)
    if (folder / mode / "config.json").exists():
        return load_checkpoint(folder / mode, name=name, dtype=dtype, device=device)
    if (folder / "config.json").exists():
        reader = load_checkpoint(folder, name=name, dtype=dtype, device=device)
        if reader.mode == mode:
            return reader
        have = [reader.mode]
    else:
        have = [m for m in MODES if (folder / m / "config.json").exists()]
    raise InputError(f"reader {name} has no {mode} checkpoint", where=str(folder),
                     found=", ".join(have) or "no checkpoint at all",
                     todo="train that step, or choose another --mode or --reader")  # fmt: skip


def load_store_reader(settings: Mapping[str, Any]) -> Reader:
    """Load the reader that made a store, in its arithmetic; errors as for :func:`load_reader`.

    Args:
        settings: Of the store's spec.
    """
    mode: Mode = "btr" if settings["mode"] == "btr" else "decomposed"
    return load_reader(str(settings["reader"]), mode, dtype=dtype_named(str(settings["dtype"])))


def load_checkpoint(
    folder: Path,
    *,
    name: str = "",
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> BertReader | T5Reader:
    """Load one checkpoint folder, of whatever family; errors as for :func:`load_reader`."""
    try:
        kind = read_config(folder).get("model_type")
    except CorruptError:
        # A damaged file is better told from a wrong one by its recorded checksum.
        check_digests(folder)
        raise
    if kind not in FAMILIES:
        raise IncompatibleError("no reader for this kind of model",
                                where=str(folder / "config.json"),
                                expected="model_type " + " or ".join(FAMILIES),
                                found=str(kind)[:80])  # fmt: skip
    return FAMILIES[kind].from_pretrained(
        folder, name=name, dtype=dtype, device=device or default_device()
    )
