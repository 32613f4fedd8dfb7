"""Answer metrics as the field defines them: SQuAD normalisation, exact match, F1, and intervals."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DRAWS_AT_ONCE = 1 << 22


def normalize_answer(text: str) -> str:
    """Lower case without ASCII punctuation, articles and surplus white space (SQuAD 1.1)."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def holds_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether a text has one of the answers in it, as whole words after normalisation."""
    words = f" {normalize_answer(text)} "
    wanted = [normalize_answer(answer) for answer in answers]
    return any(f" {answer} " in words for answer in wanted if answer)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals one of the answers after normalisation, else 0.0."""
    wanted = normalize_answer(prediction)
    return float(any(normalize_answer(answer) == wanted for answer in answers))


def f1_score(prediction: str, answers: Sequence[str]) -> float:
    """The best token F1 of the prediction against any answer, 0 .. 1; 0.0 without answers."""
    return max((_f1(prediction, answer) for answer in answers), default=0.0)


def _f1(prediction: str, answer: str) -> float:
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if not predicted or not wanted:
        # As in SQuAD 2.0: nothing is right exactly where nothing is wanted.
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))


def accuracy(predictions: Sequence[str], labels: Sequence[str]) -> float:
    """Share of predictions that equal their labels, 0 .. 1.

    Raises:
        ValueError: There are none, or not as many of the one as of the other.
    """
    if not labels:
        raise ValueError("accuracy of no predictions")
    return sum(p == t for p, t in zip(predictions, labels, strict=True)) / len(labels)


def bootstrap_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: One score a question.
        confidence: Share of resampled means inside the interval.
        resamples: How many means are drawn; the result is the same for the same seed.
        seed: Of the generator.

    Returns:
        The interval's lower and upper end; the mean lies between them but for extreme skew.

    Raises:
        ValueError: There are no values.
    """
    scores = np.asarray(values, dtype=np.float64)
    if not scores.size:
        raise ValueError("interval of no values")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _DRAWS_AT_ONCE // scores.size)
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        drawn = generator.integers(scores.size, size=(count, scores.size))
        means[first : first + count] = scores[drawn].mean(axis=1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
