"""Where a :class:`btr.binarize.WordRestorer` begins: the nearest map from bits and words to states.

``N`` packed tokens, ``d`` width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from btr.binarize import hard_sign
from btr.readers.batches import by_length
from btr.readers.t5_layers import rms_norm
from btr.readers.t5_network import SplitT5
from btr.train.fid_examples import Ids
from btr.train.least_squares import LeastSquares

PASSAGES = 400
"""Of a corpus, spread evenly: 50,000 tokens for the 2 d + 1 unknowns of a dimension."""

RIDGE = 1e-4


@torch.no_grad()
def fit_words(network: SplitT5, passages: Sequence[Ids]) -> None:
    """Set a network's word restorer to the nearest map from bits and words to what was binarized.

    Args:
        network: Float32, with a word restorer.
        passages: Token ids of each, at least one.

    Raises:
        ValueError: The network has no word restorer.
    """
    words = network.words
    if words is None:
        raise ValueError("the network restores its bits without words")
    chosen = passages[:: -(-len(passages) // PASSAGES)]
    fit = LeastSquares()
    for batch in by_length([len(ids) for ids in chosen]):
        ids = torch.cat([torch.as_tensor(chosen[i], dtype=torch.long) for i in batch])
        hidden = network.run_lower(ids, [len(chosen[i]) for i in batch])
        wanted = rms_norm(network.next_norm, hidden)
        embeddings = words.words(network.model.shared(ids))
        fit.add(_with_one(hard_sign(wanted), embeddings), wanted)
    width = len(words.bits.weight)
    bits, word, constant = torch.split(fit.solve(RIDGE), [width, width, 1])
    words.bits.weight.copy_(bits.T)
    words.bits.bias.copy_(constant[0])
    words.word.weight.copy_(word.T)


def _with_one(*parts: Tensor) -> Tensor:
    """``[N, a]`` and the like side by side, and a column of ones."""
    return torch.cat([*parts, torch.ones(len(parts[0]), 1)], dim=1)
