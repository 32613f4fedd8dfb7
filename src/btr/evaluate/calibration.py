"""Make a generative reader's confidence the probability that its answer is right.

A generated answer's own probability says how sure the decoder was of these words, not how often it
is right. Two numbers, fitted on held-out questions, turn one into the other (Platt scaling):
``log-odds of right = slope * log-probability + intercept``. They go into the checkpoint.

    btr eval --reader R --mode btr --data DEV --predictions P
    python -m btr.evaluate.calibration R/btr P
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from btr.data.lines import read_numbered_records
from btr.errors import BtrError, InputError
from btr.files import copy_file, replaced_folder
from btr.readers.checkpoint import read_config
from btr.readers.digests import DIGESTS, check_digests, write_digests
from btr.readers.t5_citations import confidence

_STEPS, _RIDGE = 100, 1e-3


def fit_calibration(
    log_probabilities: Sequence[float], right: Sequence[float]
) -> tuple[float, float]:
    """The slope and intercept of greatest likelihood.

    A little ridge keeps them finite where the two classes can be told apart without fail.

    Args:
        log_probabilities: Of answers, at least two.
        right: 1 where the answer was right, else 0.

    Raises:
        ValueError: There are fewer than two answers, or their numbers differ.
    """
    x, y = np.array(log_probabilities, float), np.array(right, float)
    if len(x) < 2 or x.shape != y.shape:
        raise ValueError(f"cannot calibrate on {len(x)} answers and {len(y)} results")
    features = np.stack([x, np.ones_like(x)], 1)
    found = np.zeros(2)
    for _ in range(_STEPS):  # Newton's method on a concave function: a handful suffices
        share = 1 / (1 + np.exp(-np.clip(features @ found, -500, 500)))
        gradient = features.T @ (y - share) - _RIDGE * found
        curvature = (features * (share * (1 - share))[:, None]).T @ features + _RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # A long step may overshoot where the curve is flat.
        found = found + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-10:
            break
    return float(found[0]), float(found[1])


def calibration_error(
    confidences: Sequence[float], right: Sequence[float], bins: int = 10
) -> float:
    """Expected calibration error: mean gap between confidence and share of right answers.

    Over ``bins`` groups of equally many answers, weighted by their sizes; 0 is best.
    """
    order = np.argsort(confidences, kind="stable")
    groups = np.array_split(order, min(bins, len(order)))
    c, y = np.array(confidences, float), np.array(right, float)
    return float(sum(len(g) * abs(c[g].mean() - y[g].mean()) for g in groups) / len(order))


def calibrate(checkpoint: Path, predictions: Path) -> dict[str, float]:
    """Fit on ``btr eval --predictions`` and write the numbers into the checkpoint.

    The checkpoint is written anew beside itself and renamed, like every checkpoint.

    Returns:
        The two numbers, how many answers they rest on, and the calibration error before and after.

    Raises:
        InputError: Not a generative checkpoint, or no usable predictions.
        CorruptError: The checkpoint is damaged.
    """
    check_digests(checkpoint)
    described = read_config(checkpoint)
    section = described.get("btr")
    if not isinstance(section, dict) or section.get("family") != "t5":
        raise InputError("only readers that generate are calibrated", where=str(checkpoint),
                         expected="a checkpoint of the t5 family with a btr section")  # fmt: skip
    log_probabilities, right = _read_predictions(predictions, section.get("calibration"))
    slope, intercept = fit_calibration(log_probabilities, right)
    raw = [confidence(x, None) for x in log_probabilities]
    after = [confidence(x, (slope, intercept)) for x in log_probabilities]
    section["calibration"] = [slope, intercept]
    with replaced_folder(checkpoint) as beside:
        for file in sorted(checkpoint.iterdir()):
            if file.is_file() and file.name not in ("config.json", DIGESTS):
                copy_file(file, beside / file.name)
        text = json.dumps(described, indent=2, sort_keys=True) + "\n"
        (beside / "config.json").write_text(text, encoding="utf-8")
        write_digests(beside)
    return {
        "slope": slope,
        "intercept": intercept,
        "answers": len(right),
        "error_before": calibration_error(raw, right),
        "error_after": calibration_error(after, right),
    }


def _read_predictions(path: Path, used: list[float] | None) -> tuple[list[float], list[float]]:
    """Log-probabilities of answers and whether they were right."""
    log_probabilities, right = [], []
    for number, record in read_numbered_records(path):
        try:
            shown, result = float(record["probability"]), float(record["em"])
        except (KeyError, TypeError, ValueError):
            raise InputError("bad line of predictions", where=f"{path}, line {number}",
                             expected='numbers "probability" and "em"',
                             todo="write it with btr eval --predictions") from None  # fmt: skip
        shown = min(max(shown, 1e-300), 1.0)
        if used:  # a calibrated checkpoint's own confidences, turned back
            odds = math.log(shown) - math.log(max(1 - shown, 1e-300))
            log_probabilities.append((odds - used[1]) / used[0])
        else:
            log_probabilities.append(math.log(shown))
        right.append(result)
    if len(right) < 2:
        raise InputError("too few predictions to calibrate on", where=str(path),
                         expected="at least 2", found=str(len(right)))  # fmt: skip
    return log_probabilities, right


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("predictions", type=Path)
    given = parser.parse_args(arguments)
    try:
        print(json.dumps(calibrate(given.checkpoint, given.predictions)))
    except BtrError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
