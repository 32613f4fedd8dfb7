"""What a reader is, whatever its family: lower layers offline, stored states, an answer.

A reader encodes passages once (:meth:`Reader.encode`), and later answers any question from what was
stored (:meth:`Reader.read`). In ``plain`` mode there is nothing to store and ``read`` takes the
passages alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from btr.data.passages import Passage
from btr.store.format import PassageState

if TYPE_CHECKING:
    import torch

Mode = Literal["plain", "decomposed", "btr"]
MODES: tuple[Mode, ...] = ("plain", "decomposed", "btr")


@dataclass(frozen=True, slots=True)
class Answer:
    """An exact span with its source.

    Attributes:
        text: ``passage.text[start:end]``.
        probability: Share of the one distribution over all spans of all passages and "no answer",
            equal texts counted together.
        passage: Where it stands; the best place if there are several.
        start: First character in the passage's text.
        end: One past the last.
    """

    text: str
    probability: float
    passage: Passage
    start: int
    end: int

    @property
    def document_start(self) -> int:
        """First character in the document's own text."""
        return self.passage.start + self.start

    @property
    def document_end(self) -> int:
        """One past the last character in the document's own text."""
        return self.passage.start + self.end


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader made of a question.

    Attributes:
        answers: Best first, all of them spans; empty only if no passage had any text.
        no_answer: Probability that none of the passages answers the question.
        truncated: Passages of which the reader saw only the beginning.
        stages_ms: Wall milliseconds by stage.
    """

    answers: tuple[Answer, ...]
    no_answer: float
    truncated: int = 0
    stages_ms: Mapping[str, float] = field(default_factory=dict)


class Reader(Protocol):
    """One checkpoint in one mode."""

    name: str
    family: str
    mode: Mode
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """Length of a token's state."""

    @property
    def split_layer(self) -> int:
        """Layers below the cut; 0 for a plain reader."""

    @property
    def fingerprint(self) -> dict[str, str]:
        """What stored states depend on, by field: weights, tokenizer, layout, settings."""

    def encode(self, passages: Sequence[Passage]) -> list[PassageState]:
        """Lower layers of passages, ready for the store."""

    def read(
        self,
        question: str,
        passages: Sequence[Passage],
        states: Sequence[PassageState] | None = None,
        *,
        top: int = 5,
    ) -> Reading:
        """Answer from passages; ``states`` are theirs, or None to encode them now."""
