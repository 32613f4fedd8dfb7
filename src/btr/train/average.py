"""The mean of several checkpoints' weights as a checkpoint ("model soup", arXiv 2203.05482).

    python -m btr.train.average OUTPUT CHECKPOINT CHECKPOINT...

Of runs that went on from each other or from one start it is often better than each: what their last
steps' few questions did by chance is averaged out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from btr.errors import InputError, UsageError, one_line_errors
from btr.files import explaining
from btr.readers.checkpoint import (
    WEIGHTS,
    check_tensors,
    load_tensors,
    read_reader,
    rewrite_checkpoint,
)


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
    described, tokenizer = _kind(first)
    found = load_tensors(first)
    dtypes = {name: tensor.dtype for name, tensor in found.items()}
    sums = {name: tensor.float() for name, tensor in found.items()}
    check_tensors(sums, sums, str(first / WEIGHTS))
    for checkpoint in checkpoints[1:]:
        other, other_tokenizer = _kind(checkpoint)
        for what, same in (
            ("configuration", other == described),
            ("tokenizer", other_tokenizer == tokenizer),
        ):
            if not same:
                raise InputError(f"another {what} than the first", where=str(checkpoint),
                                 todo=f"give checkpoints like {first}")  # fmt: skip
        found = load_tensors(checkpoint)
        check_tensors(found, sums, str(checkpoint / WEIGHTS))
        for name, tensor in found.items():
            sums[name] += tensor.float()
    means = {name: (x / len(checkpoints)).to(dtypes[name]) for name, x in sums.items()}
    rewrite_checkpoint(first, output, described, means)


def _kind(checkpoint: Path) -> tuple[dict[str, object], bytes]:
    """What must be equal: the configuration but what was fitted to answers, and the tokenizer."""
    described, section = read_reader(checkpoint)
    unfitted = {"calibration": None, "abstention": 0.0}
    section |= {name: value for name, value in unfitted.items() if name in section}
    with explaining(checkpoint / "tokenizer.json"):
        return described, (checkpoint / "tokenizer.json").read_bytes()


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    given = parser.parse_args(arguments)
    average_checkpoints(given.output, given.checkpoints)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
