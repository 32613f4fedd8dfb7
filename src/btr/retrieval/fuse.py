"""Reciprocal rank fusion: several rankings of the same passages made into one."""

from __future__ import annotations

from collections.abc import Sequence


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[int]], k: int, c: float = 60.0
) -> list[tuple[int, float]]:
    """Fuse rankings by the sum of ``1 / (c + rank)``, rank counted from 1.

    Scores of the rankings are never compared, only places, so BM25 sums and cosines mix without
    calibration (Cormack, Clarke and Buettcher 2009, where c = 60).

    Args:
        rankings: Each a list of distinct ordinals, best first.
        k: How many to return at most.
        c: Damping; the larger, the less the first places count against the later ones.

    Returns:
        ``(ordinal, score)``, best first; equal scores by the smaller ordinal.

    Raises:
        ValueError: A ranking names an ordinal twice, or k or c is negative.
    """
    if k < 0 or c < 0:
        raise ValueError(f"k and c must not be negative, got k={k}, c={c}")
    scores: dict[int, float] = {}
    for ranking in rankings:
        if len(set(ranking)) != len(ranking):
            raise ValueError("a ranking names an ordinal twice")
        for rank, ordinal in enumerate(ranking, start=1):
            scores[ordinal] = scores.get(ordinal, 0.0) + 1.0 / (c + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
