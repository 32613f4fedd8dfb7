"""States of passages for a question: loaded, taken from a cache, or made now.

All three are the same; which is quickest depends on the machine. A local disk gives a state in
microseconds, a cold remote one in many milliseconds; a CPU makes one in milliseconds, a GPU in much
less. So the time of each is measured as it goes, and what is slower is left alone. A compressed
state is another than one made now: where the store has one, it is always loaded.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

from btr.data.passages import Passage
from btr.encoding import completed
from btr.machine import dtype_named
from btr.readers.base import Reader
from btr.readers.load import load_reader
from btr.store.format import PassageState
from btr.store.reader import TokenStore

CACHE_BYTES = 256 << 20
"""Rows of states that were made, kept for the next question."""

FORGET = 0.2
"""Weight of the newest measurement in a moving mean."""

PROBE = 64
"""Questions after which the way that was slower is tried again."""

SLOW_S = 0.001
"""Seconds to load a state from which making it may be quicker, and is tried."""


class StateSource:
    """Gives a reader its passages' states; threads may share it.

    Args:
        store: Has the states, or some of them.
        reader: Makes them, or, where it computes in another dtype than the store was made in, the
            same reader loaded again in that one.
        cache_bytes: Of states that were made.

    Attributes:
        load_s: Seconds to load a state, a moving mean; 0 until one was loaded.
        make_s: Seconds to make one.
    """

    def __init__(
        self, store: TokenStore, reader: Reader, *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._store, self._reader, self._room = store, reader, cache_bytes
        self._either = store.coding is None
        self.load_s = self.make_s = 0.0
        self._asked = 0
        self._cache: OrderedDict[int, PassageState] = OrderedDict()
        self._lock = threading.Lock()

    def states(self, ordinals: Sequence[int], passages: Sequence[Passage]) -> list[PassageState]:
        """States of passages, in the order asked for.

        Args:
            ordinals: In the store.
            passages: The same.

        Raises:
            CorruptError: A record is damaged.
        """
        found = self._cached(ordinals)
        wanted = self._to_load([i for i, state in enumerate(found) if state is None])
        if wanted:
            began = time.perf_counter()
            held = self._store.held_states([ordinals[i] for i in wanted])
            loaded = sum(state is not None for state in held)
            if loaded:
                self.load_s = self._mean(self.load_s, (time.perf_counter() - began) / loaded)
            for i, state in zip(wanted, held, strict=True):
                found[i] = state
        missing = [i for i, state in enumerate(found) if state is None]
        if not missing:
            return [state for state in found if state is not None]
        began = time.perf_counter()
        states = completed(self._maker, passages, found)
        self.make_s = self._mean(self.make_s, (time.perf_counter() - began) / len(missing))
        self._keep({ordinals[i]: states[i] for i in missing})
        return states

    @cached_property
    def _maker(self) -> Reader:
        """Gives the same bits as the store has: rounding decides some of them."""
        made_in = dtype_named(str(self._store.manifest.spec.settings["dtype"]))
        if self._reader.dtype == made_in:
            return self._reader
        return load_reader(self._reader.name, self._reader.mode, dtype=made_in)

    def _to_load(self, wanted: list[int]) -> list[int]:
        """Those to look for in the store, which may not have them; the others are made at once."""
        self._asked += 1
        if not self._either:
            return wanted
        again = self._asked % PROBE == 0
        if self.make_s and self.load_s > self.make_s:
            return wanted if again else []
        # One is enough to learn what making takes.
        return wanted[1:] if self.load_s > SLOW_S and (again or not self.make_s) else wanted

    def _cached(self, ordinals: Sequence[int]) -> list[PassageState | None]:
        with self._lock:
            for ordinal in ordinals:
                if ordinal in self._cache:
                    self._cache.move_to_end(ordinal)
            return [self._cache.get(ordinal) for ordinal in ordinals]

    def _keep(self, made: dict[int, PassageState]) -> None:
        with self._lock:
            for ordinal, state in made.items():
                if ordinal not in self._cache:
                    self._cache[ordinal] = state
                    self._room -= state.rows.nbytes
            while self._room < 0 and self._cache:
                self._room += self._cache.popitem(last=False)[1].rows.nbytes

    @staticmethod
    def _mean(before: float, now: float) -> float:
        return now if not before else before + FORGET * (now - before)
