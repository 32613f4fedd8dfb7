"""Readers of documents timed against each other, all modes side by side.

Everything that a mode could be given beforehand is given to all: stored states to the split
readers, token ids to the plain one. So a ratio says what the reading costs, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from btr.bench.race import Contender
from btr.data.passages import Passage
from btr.readers.base import DEFAULT_OPTIONS, MODES, Reader, ReadOptions
from btr.store.format import PassageState


@dataclass(frozen=True, slots=True)
class Workload:
    """A question with its passages."""

    question: str
    passages: Sequence[Passage]


def contender(
    label: str,
    reader: Reader,
    work: Sequence[Workload],
    *,
    states: Sequence[Sequence[PassageState]] | None = None,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> Contender:
    """A reader in the race.

    Args:
        label: Its name in the report.
        reader: In any mode.
        work: What it answers.
        states: Of every workload's passages; None encodes them now, as a store would hold them.
        options: How it reads.
    """
    if states is None and reader.mode != "plain":
        states = [reader.encode(w.passages) for w in work]

    def run(i: int) -> Mapping[str, float]:
        given = None if states is None else states[i]
        return reader.read(work[i].question, work[i].passages, given, options=options).stages_ms

    techniques = ["decomposition", "bits"][: MODES.index(reader.mode)]
    techniques += ["merging"] if options.merging else []
    return Contender(label, reader.family, reader.mode, techniques, run)
