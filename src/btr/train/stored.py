"""Stored states of the passages that a reader is adapted with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from btr.data.passages import Passage
from btr.errors import InputError
from btr.readers.base import Reader
from btr.store.reader import TokenStore

Rows = NDArray[np.uint8]

AT_ONCE = 1024
"""Passages given to a reader at a time."""


def stored_rows(reader: Reader, passages: Sequence[Passage], store: Path | None) -> list[Rows]:
    """Rows of passages, ``[tokens, row bytes]`` each: the store's where it has them, else made now.

    Args:
        reader: The reader that is adapted.
        passages: With the ids that they have in the store.
        store: A store that the reader can be asked with, or None.

    Raises:
        IncompatibleError: The store is another reader's.
        CorruptError: It is damaged.
    """
    found: dict[int, Rows] = {}
    if store is not None:
        opened = TokenStore.open(store, fingerprint=reader.fingerprint)
        for i, passage in enumerate(passages):
            try:
                number = opened.ordinal(passage.id)
            except InputError:
                continue
            there = opened.passages([number])[0]
            if (there.title, there.text) == (passage.title, passage.text):
                (state,) = opened.held_states([number])
                if state is not None:
                    found[i] = state.rows
    missing = [i for i in range(len(passages)) if i not in found]
    for first in range(0, len(missing), AT_ONCE):
        group = missing[first : first + AT_ONCE]
        states = reader.encode([passages[i] for i in group])
        found |= {i: state.rows for i, state in zip(group, states, strict=True)}
    return [found[i] for i in range(len(passages))]


def pad_rows(rows: Sequence[Rows]) -> Tensor:
    """Ragged rows to ``[n, longest, row bytes]`` uint8, zeros where padded."""
    padded = np.zeros((len(rows), max(len(r) for r in rows), rows[0].shape[1]), np.uint8)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)
