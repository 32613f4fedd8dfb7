"""Where a :class:`btr.binarize.WordResidual` begins: the nearest maps.

``N`` tokens, ``d`` width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from btr.binarize import WordResidual, hard_sign
from btr.errors import UsageError
from btr.readers.id_rows import MOST_IDS
from btr.train.least_squares import LeastSquares

RIDGE = 1e-4


def check_vocabulary(size: int) -> None:
    """Refuse vocabularies whose ids have no place in a row.

    Raises:
        UsageError: This is one.
    """
    if size > MOST_IDS:
        raise UsageError("--rule words is for smaller vocabularies",
                         expected=f"{MOST_IDS} tokens at most", found=str(size))  # fmt: skip


@torch.no_grad()
def fit_words(words: WordResidual, embeddings: Tensor, states: Tensor) -> None:
    """Set what words make expect to the nearest map, and that of the bits to the rest.

    Args:
        words: Float32.
        embeddings: ``[N, d]``, of each token's word.
        states: ``[N, d]``, what is binarized.
    """
    given = words.words(embeddings)
    found = _nearest(torch.cat([given, torch.ones(len(given), 1)], dim=1), states)
    words.mean.weight.copy_(found[:-1].T)
    words.mean.bias.copy_(found[-1])
    rest = states - words.mean(given)
    words.bits.weight.copy_(_nearest(hard_sign(rest), rest).T)


def _nearest(given: Tensor, wanted: Tensor) -> Tensor:
    """The map of ``[N, a]`` to ``[N, b]``, ``[a, b]``."""
    fit = LeastSquares()
    fit.add(given, wanted)
    return fit.solve(RIDGE)
