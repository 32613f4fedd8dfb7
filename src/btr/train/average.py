"""The mean of several checkpoints' weights as a checkpoint ("model soup", arXiv 2203.05482).

    python -m btr.train.average OUTPUT CHECKPOINT CHECKPOINT...

Of runs that went on from each other or from one start it is often better than each: what their last
steps' few questions did by chance is averaged out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from btr.errors import BtrError, InputError, UsageError
from btr.files import copy_file, explaining, replaced_folder
from btr.readers.checkpoint import check_tensors, load_tensors, read_config
from btr.readers.digests import DIGESTS, check_digests, write_digests

WEIGHTS = "model.safetensors"


def average_checkpoints(output: Path, checkpoints: Sequence[Path]) -> None:
    """Write the mean of readers' weights, with all else of the first one.

    Numbers that were fitted to one reader's answers (calibration, abstention) go back to none.

    Args:
        output: Folder to make.
        checkpoints: At least two, of one network, split and tokenizer.

    Raises:
        UsageError: There are too few, or ``output`` exists.
        InputError: One is no reader, or another kind of reader than the first.
        CorruptError: One is damaged.
    """
    if len(checkpoints) < 2:
        raise UsageError("a mean is of several checkpoints", todo="give at least two")
    if output.exists():
        raise UsageError("the folder is there already", where=str(output),
                         todo="remove it or give another")  # fmt: skip
    first = checkpoints[0]
    described = _configuration(first)
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for checkpoint in checkpoints:
        check_digests(checkpoint)
        for what, mine, other in (
            ("configuration", described, _configuration(checkpoint)),
            ("tokenizer", _tokenizer(first), _tokenizer(checkpoint)),
        ):
            if mine != other:
                raise InputError(f"another {what} than the first", where=str(checkpoint),
                                 todo=f"give checkpoints like {first}")  # fmt: skip
        found = load_tensors(checkpoint)
        dtypes = dtypes or {name: tensor.dtype for name, tensor in found.items()}
        sums = sums or {name: torch.zeros_like(t).float() for name, t in found.items()}
        check_tensors(found, sums, str(checkpoint / WEIGHTS))
        for name, tensor in found.items():
            sums[name] += tensor.float()
    means = {name: (x / len(checkpoints)).to(dtypes[name]) for name, x in sums.items()}
    with replaced_folder(output) as beside:
        for file in sorted(first.iterdir()):
            if file.is_file() and file.name not in (WEIGHTS, "config.json", DIGESTS):
                copy_file(file, beside / file.name)
        save_file(means, beside / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(described, indent=2, sort_keys=True) + "\n"
        (beside / "config.json").write_text(text, encoding="utf-8")
        write_digests(beside)


def _configuration(checkpoint: Path) -> dict[str, object]:
    """A reader's configuration without what was fitted to its answers."""
    described = read_config(checkpoint)
    section = described.get("btr")
    if not isinstance(section, dict):
        raise InputError("no reader of btr", where=str(checkpoint),
                         expected="a checkpoint with a btr section")  # fmt: skip
    unfitted = {"calibration": None, "abstention": 0.0}
    known = {name: value for name, value in unfitted.items() if name in section}
    return {**described, "btr": section | known}


def _tokenizer(checkpoint: Path) -> bytes:
    with explaining(checkpoint / "tokenizer.json"):
        return (checkpoint / "tokenizer.json").read_bytes()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    given = parser.parse_args(arguments)
    try:
        average_checkpoints(given.output, given.checkpoints)
    except BtrError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
