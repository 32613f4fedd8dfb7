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


Search = Literal["greedy", "beam", "extract"]
SEARCHES: tuple[Search, ...] = ("greedy", "beam", "extract")


@dataclass(frozen=True, slots=True)
class Merging:
    """Runtime compression (method, section 6): how many tokens become one, and how they count.

    Attributes:
        intra: Share of each ``[query; passage]`` that is merged after every joint layer, 0 .. 0.5.
        cross: Share of all tokens that is merged in the decoder, every ``every`` layers, 0 .. 0.5.
        every: ``g``, decoder layers between two cross-passage mergings.
        weighted: Average by how many tokens each one stands for, as ToMe does; False: plainly.
        correction: Add the log of that number to attention logits, as ToMe does.
    """

    intra: float = 0.0
    cross: float = 0.0
    every: int = 3
    weighted: bool = True
    correction: bool = True

    def __bool__(self) -> bool:
        """Whether anything is merged."""
        return bool(self.intra or self.cross)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a question is read, where a reader has a choice; all of it may differ from call to call.

    Attributes:
        merging: Runtime compression; only of readers that generate, as a merged token has no place.
        search: How an answer is generated: the likeliest next token ("greedy"), "beam" search, or
            the likeliest span of the passages, exactly ("extract").
        beams: Hypotheses of a beam search.
        longest: Most tokens of an answer; None for the checkpoint's budget.
        shortest: Fewest; benchmarks force equal lengths by it.
        int8: Decode with 8-bit weights, faster on CPUs.
        choices: The answer is one of these texts, whatever ``search`` says: labels, or the letters
            of a multiple choice. Probabilities are shares among them.
    """

    merging: Merging = Merging()
    search: Search = "greedy"
    beams: int = 4
    longest: int | None = None
    shortest: int = 0
    int8: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Citation:
    """A passage that an answer draws on.

    Attributes:
        passage: The passage.
        weight: Its share of the decoder's attention over all passages, 0 .. 1.
        start: First character of the answer in its text, or None where it does not stand there.
        end: One past the last.
    """

    passage: Passage
    weight: float
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its source.

    Attributes:
        text: ``passage.text[start:end]``, or the generated text where it stands in no passage.
        probability: An extractive reader's: its share of the one distribution over all spans of all
            passages and "no answer", equal texts counted together. A generative reader's: the
            probability of its tokens and, if it came, the end token; of a calibrated one, the
            probability that the answer is right. Of given choices: its share among them.
        passage: Where it stands, the best place if there are several; else the passage that the
            decoder looked at most.
        start: First character in the passage's text, None if it does not stand there.
        end: One past the last.
        citations: Passages that a generated answer draws on, strongest first.
    """

    text: str
    probability: float
    passage: Passage
    start: int | None
    end: int | None
    citations: tuple[Citation, ...] = ()

    @property
    def document_start(self) -> int | None:
        """First character in the document's own text."""
        return None if self.start is None else self.passage.start + self.start

    @property
    def document_end(self) -> int | None:
        """One past the last character in the document's own text."""
        return None if self.end is None else self.passage.start + self.end


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader made of a question.

    Attributes:
        answers: Best first; empty only if no passage had any text.
        no_answer: Probability that none of the passages answers the question; of a calibrated
            generative reader, that its best answer is wrong; 0 of a reader that cannot tell.
        truncated: Passages of which the reader saw only the beginning.
        question_cut: Whether the question was longer than the reader's budget.
        stages_ms: Wall milliseconds by stage.
    """

    answers: tuple[Answer, ...]
    no_answer: float
    truncated: int = 0
    question_cut: bool = False
    stages_ms: Mapping[str, float] = field(default_factory=dict)


DEFAULT_OPTIONS = ReadOptions()


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
    def store_kind(self) -> str:
        """Kind of rows that :meth:`encode` makes (docs/format.md)."""

    @property
    def fingerprint(self) -> dict[str, str]:
        """What stored states depend on, by field: weights, tokenizer, layout, settings."""

    @property
    def lower_parameters(self) -> int:
        """Weights of the layers below the cut: half of the operations that a token takes there."""

    @property
    def vocabulary(self) -> list[str]:
        """Every token id's token."""

    def encode(self, passages: Sequence[Passage]) -> list[PassageState]:
        """Lower layers of passages, ready for the store."""

    def token_ids(self, passages: Sequence[Passage]) -> list[list[int]]:
        """The token of each row that :meth:`encode` makes."""

    def read(
        self,
        question: str,
        passages: Sequence[Passage],
        states: Sequence[PassageState] | None = None,
        *,
        top: int = 5,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Reading:
        """Answer from passages; ``states`` are theirs, or None to encode them now."""

    def read_many(
        self,
        questions: Sequence[str],
        passages: Sequence[Sequence[Passage]],
        states: Sequence[Sequence[PassageState]] | None = None,
        *,
        top: int = 5,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> list[Reading]:
        """Answer several questions, each from its own passages, together where that is faster."""
