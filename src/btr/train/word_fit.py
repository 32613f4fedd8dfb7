"""Where a :class:`btr.binarize.WordResidual` begins: the nearest maps.

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
    """Set what words make a network expect to the nearest map, and that of the bits to the rest.

    Args:
        network: Float32, with a :class:`btr.binarize.WordResidual`.
        passages: Token ids of each, at least one.

    Raises:
        ValueError: It has none.
    """
    words = network.words
    if words is None:
        raise ValueError("the network's bits are not of what words leave unsaid")
    chosen = passages[:: -(-len(passages) // PASSAGES)]
    given, wanted = [], []
    for batch in by_length([len(ids) for ids in chosen]):
        ids = torch.cat([torch.as_tensor(chosen[i], dtype=torch.long) for i in batch])
        hidden = network.run_lower(ids, [len(chosen[i]) for i in batch])
        given.append(words.words(network.model.shared(ids)))
        wanted.append(rms_norm(network.next_norm, hidden))
    embeddings, states = torch.cat(given), torch.cat(wanted)
    found = _nearest(torch.cat([embeddings, torch.ones(len(embeddings), 1)], dim=1), states)
    words.mean.weight.copy_(found[:-1].T)
    words.mean.bias.copy_(found[-1])
    rest = states - words.mean(embeddings)
    words.bits.weight.copy_(_nearest(hard_sign(rest), rest).T)


def _nearest(given: Tensor, wanted: Tensor) -> Tensor:
    """The map of ``[N, a]`` to ``[N, b]``, ``[a, b]``."""
    fit = LeastSquares()
    fit.add(given, wanted)
    return fit.solve(RIDGE)
