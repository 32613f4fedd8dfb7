"""Stored states of the passages that a reader is adapted with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from btr.compressing import Recompression
from btr.data.passages import Passage
from btr.readers.base import Reader
from btr.readers.batches import joined_guesses
from btr.store.format import Guesses, PassageState
from btr.store.reader import TokenStore
from btr.store.shard import StateRecord

AT_ONCE = 1024
"""Passages given to a reader at a time."""

WHOLE = 1 / 3
"""Share of training batches whose states are not compressed, as those of passages that are added
to a compressed store."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredRows:
    """Passages' stored states, one after the other.

    Attributes:
        rows: ``[N, row bytes]`` uint8.
        guesses: Of the tokens that a compressed store leaves out.
    """

    rows: NDArray[np.uint8]
    guesses: Guesses | None


class StoredStates:
    """States of passages as a store keeps them, those that it has and those that it would have.

    A compressed store's readers are told of some tokens only what their neighbours say. So the
    states of passages that are not in it are compressed as it is, for training to see the same.

    Args:
        reader: The reader that is adapted.
        passages: With the ids that they have in the store.
        store: A store that the reader can be asked with; None for states that are not compressed.
        whole: Share of the calls of :meth:`rows` that are answered with uncompressed states where
            those are known, by torch's random numbers.

    Raises:
        IncompatibleError: The store is another reader's.
        CorruptError: It is damaged.
    """

    def __init__(
        self,
        reader: Reader,
        passages: Sequence[Passage],
        store: Path | None,
        *,
        whole: float = 0.0,
    ) -> None:
        self.whole = whole
        self._numbers = {_key(passage): i for i, passage in enumerate(passages)}
        self._uncompressed: dict[int, PassageState] = {}
        self._states: dict[int, PassageState | StateRecord] = {}
        self._recompression: Recompression | None = None
        if store is not None:
            with TokenStore.open(store, fingerprint=reader.fingerprint) as opened:
                self._find(opened, passages)
                if opened.coding is not None:
                    self._recompression = Recompression(
                        opened.manifest, opened.coding, len(reader.vocabulary)
                    )
        missing = [i for i in range(len(passages)) if i not in self._states]
        for first in range(0, len(missing), AT_ONCE):
            numbers = missing[first : first + AT_ONCE]
            self._make(reader, numbers, [passages[i] for i in numbers])

    def _find(self, store: TokenStore, passages: Sequence[Passage]) -> None:
        for i, passage in enumerate(passages):
            number = store.find(passage.id)
            if number is not None and _key(store.passages([number])[0]) == _key(passage):
                (state,) = store.held_states([number])
                if state is not None:
                    self._states[i] = state

    def _make(self, reader: Reader, numbers: Sequence[int], passages: Sequence[Passage]) -> None:
        states = reader.encode(passages)
        made: Sequence[PassageState | StateRecord] = states
        if self._recompression is not None:
            ids = [np.asarray(row, np.int64) for row in reader.token_ids(passages)]
            made = self._recompression.encode(states, ids)
            if self.whole:
                self._uncompressed |= zip(numbers, states, strict=True)
        self._states |= zip(numbers, made, strict=True)

    def states(self, numbers: Sequence[int]) -> list[PassageState]:
        """States of passages by number."""
        found = [self._states[i] for i in numbers]
        coded = [state for state in found if isinstance(state, StateRecord)]
        decoded = iter(self._recompression.decode(coded) if self._recompression else [])
        return [next(decoded) if isinstance(s, StateRecord) else s for s in found]

    def of(self, passages: Sequence[Passage]) -> list[PassageState]:
        """States of passages that were given."""
        return self.states([self._numbers[_key(passage)] for passage in passages])

    def rows(self, numbers: Sequence[int]) -> StoredRows:
        """The same for training, joined."""
        states = self.states(numbers)
        if self._uncompressed and float(torch.rand(())) < self.whole:
            states = [self._uncompressed.get(i, s) for i, s in zip(numbers, states, strict=True)]
        return StoredRows(np.concatenate([state.rows for state in states]), joined_guesses(states))


def _key(passage: Passage) -> tuple[str, str]:
    return passage.title, passage.text
