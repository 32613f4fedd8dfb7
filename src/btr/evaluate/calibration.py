"""Fit what a reader says of its own certainty on held-out questions.

    python -m btr.train.dev_split DEV FILE...
    btr eval --reader R --mode btr --data DEV --predictions P
    python -m btr.evaluate.calibration R/btr P

A generated answer's own probability says how sure the decoder was of these words, not how often it
is right. Two numbers turn one into the other (Platt scaling):
``log-odds of right = slope * log-probability + intercept``.

An extractive reader weighs every span of every passage against one "not answered", and learns to
do so on single passages. Each further passage adds its false alarms, so that among twenty "not
answered" never wins. Its score therefore grows with their number n: ``abstention * ln(n)``, the
number such that of the questions that the passages do answer, :data:`REFUSED` are refused.

The numbers go into the checkpoint's configuration.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from btr.data.lines import read_numbered_records
from btr.errors import InputError, one_line_errors
from btr.readers.checkpoint import read_reader, rewrite_checkpoint
from btr.readers.t5_citations import confidence

REFUSED = 0.05
"""Share of answerable questions that an extractive reader may refuse."""

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


def fit_abstention(odds: Sequence[float], passages: Sequence[int]) -> float:
    """The weight of ``ln(n)`` that refuses :data:`REFUSED` of answerable questions, at least 0.

    Args:
        odds: Of every question, the log-odds of "answered" where "not answered" has score 0.
        passages: How many each was answered from, 2 or more.

    Raises:
        ValueError: There is no question.
    """
    if not odds:
        raise ValueError("no questions")
    return max(0.0, float(np.quantile(np.array(odds) / np.log(passages), REFUSED)))


def calibrate(checkpoint: Path, predictions: Path) -> dict[str, float]:
    """Fit on ``btr eval --predictions`` and write the numbers into the checkpoint.

    The checkpoint is written anew beside itself and renamed, like every checkpoint.

    Returns:
        What was fitted, how many answers it rests on, and what it changes on them.

    Raises:
        InputError: A checkpoint without a btr section, or no usable predictions.
        CorruptError: The checkpoint is damaged.
    """
    described, section = read_reader(checkpoint)
    fit = _fit_confidence if section.get("family") == "t5" else _fit_abstention
    settings, report = fit(section, predictions)
    section |= settings
    rewrite_checkpoint(checkpoint, checkpoint, described)
    return report


Fitted = tuple[dict[str, Any], dict[str, float]]
"""What goes into the checkpoint's section, and the report."""


def _fit_confidence(section: Mapping[str, Any], predictions: Path) -> Fitted:
    used = section.get("calibration")
    log_probabilities, right = [], []
    for shown, result in _numbers(predictions, "probability", "em"):
        if used:  # a calibrated checkpoint's own confidences, turned back
            log_probabilities.append((_log_odds(shown) - used[1]) / used[0])
        else:
            log_probabilities.append(math.log(max(shown, _LEAST)))
        right.append(result)
    _enough(right, predictions)
    slope, intercept = fit_calibration(log_probabilities, right)
    raw = [confidence(x, None) for x in log_probabilities]
    after = [confidence(x, (slope, intercept)) for x in log_probabilities]
    return {"calibration": [slope, intercept]}, {
        "slope": slope,
        "intercept": intercept,
        "answers": len(right),
        "error_before": calibration_error(raw, right),
        "error_after": calibration_error(after, right),
    }


def _fit_abstention(section: Mapping[str, Any], predictions: Path) -> Fitted:
    used = float(section.get("abstention", 0.0))
    odds: dict[bool, list[float]] = {True: [], False: []}
    passages: dict[bool, list[int]] = {True: [], False: []}
    for refused, count, place in _numbers(predictions, "no_answer", "passages", "found"):
        if count >= 2:
            answerable = place > 0
            odds[answerable].append(used * math.log(count) - _log_odds(refused))
            passages[answerable].append(int(count))
    _enough(odds[True], predictions)
    weight = fit_abstention(odds[True], passages[True])

    def refused_of(answerable: bool, weight: float) -> float:
        given = zip(odds[answerable], passages[answerable], strict=True)
        refused = [float(value < weight * math.log(n)) for value, n in given]
        return float(np.mean(refused or [0.0]))

    return {"abstention": weight}, {
        "abstention": weight,
        "answerable": len(odds[True]),
        "unanswerable": len(odds[False]),
        "refused_answerable_before": refused_of(True, used),
        "refused_answerable": refused_of(True, weight),
        "refused_unanswerable_before": refused_of(False, used),
        "refused_unanswerable": refused_of(False, weight),
    }


_LEAST = 1e-300


def _log_odds(probability: float) -> float:
    probability = min(max(probability, _LEAST), 1.0)
    return math.log(probability) - math.log(max(1 - probability, _LEAST))


def _numbers(path: Path, *names: str) -> Iterator[list[float]]:
    """The named fields of every prediction."""
    for number, record in read_numbered_records(path):
        try:
            yield [float(record[name]) for name in names]
        except (KeyError, TypeError, ValueError):
            raise InputError("bad line of predictions", where=f"{path}, line {number}",
                             expected="numbers " + ", ".join(f'"{name}"' for name in names),
                             todo="write it with btr eval --predictions") from None  # fmt: skip


def _enough(answers: Sequence[float], path: Path) -> None:
    if len(answers) < 2:
        raise InputError("too few predictions to calibrate on", where=str(path),
                         expected="at least 2", found=str(len(answers)))  # fmt: skip


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("predictions", type=Path)
    given = parser.parse_args(arguments)
    print(json.dumps(calibrate(given.checkpoint, given.predictions)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
