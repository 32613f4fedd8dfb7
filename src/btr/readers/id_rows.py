"""Token ids behind the bits of stored rows: two bytes each, where words make expect a part."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btr.errors import CorruptError
from btr.store.format import ID_BYTES

MOST_IDS = 1 << 8 * ID_BYTES
"""Of a vocabulary whose ids are stored."""

RULES = ("calibrated", "words")
"""What a reader's bits are of: the states themselves, or what words leave unsaid of them."""


def ids_of(rows: NDArray[np.uint8], vocabulary: int) -> Tensor:
    """The ids at the end of rows ``[N, row bytes]``, ``[N]`` int64.

    Raises:
        CorruptError: One is not of the vocabulary.
    """
    ids = np.ascontiguousarray(rows[:, -ID_BYTES:]).view("<u2")[:, 0].astype(np.int64)
    if ids.max(initial=0) >= vocabulary:
        raise CorruptError("a stored token that the reader does not have", where="states",
                           expected=f"an id below {vocabulary}", found=str(ids.max()),
                           todo="build the store again")  # fmt: skip
    return torch.from_numpy(ids)
