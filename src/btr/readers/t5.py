"""The Fusion-in-Decoder reader: answers generated over all passages at once, in three modes.

``m`` passages a question, ``N`` packed tokens of all ``[query; passage]`` sequences, ``d`` width.
Passages are read longest first, whatever order they came in, so their order never changes an
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from btr.data.passages import Passage
from btr.errors import IncompatibleError, UsageError
from btr.readers.base import DEFAULT_OPTIONS, SEARCHES, Mode, Reading, ReadOptions
from btr.readers.batches import Clock, joined_guesses, reading_order
from btr.readers.checkpoint import tokenizer_digest, vocabulary_of, weights_digest
from btr.readers.t5_checkpoint import T5ReaderConfig, load_network
from btr.readers.t5_citations import cite, passage_weights
from btr.readers.t5_decoder import Memory
from btr.readers.t5_engine import FidEngine
from btr.readers.t5_extract import likeliest_spans
from btr.readers.t5_generate import (
    Generated,
    beam_search,
    greedy,
    sequence_log_probabilities,
)
from btr.readers.t5_network import Restored, SplitT5
from btr.readers.t5_text import FidText, PassageTokens
from btr.store.format import PassageState


class T5Reader:
    """A T5 Fusion-in-Decoder reader in one mode.

    Args:
        network: The split network, in eval mode.
        tokenizer: Its fast tokenizer.
        config: Its layout, budgets and templates.
        name: What users call it.

    Raises:
        UsageError: A template is bad, or the query budget too small for it.
    """

    family = "t5"

    def __init__(
        self,
        network: SplitT5,
        tokenizer: PreTrainedTokenizerBase,
        config: T5ReaderConfig,
        name: str,
    ) -> None:
        self.network, self.tokenizer, self.config, self.name = network, tokenizer, config, name
        self.mode: Mode = config.mode
        contiguous = config.positions == "concatenated"
        self.engine = FidEngine(
            network, scale=config.scale, query_budget=None if contiguous else config.query_budget
        )
        self.dtype = self.engine.dtype
        self.text = FidText(
            tokenizer, config.query_template, config.passage_template, self.engine.decoder.end_token
        )
        self.text.check_query_budget(config.query_budget, name)
        self.prompt = self.text.literal(config.answer_prompt)
        self._fingerprint: dict[str, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        name: str = "",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> T5Reader:
        """Load a checkpoint folder, or a plain one that Hugging Face wrote.

        Raises:
            InputError: There is no such checkpoint.
            IncompatibleError: It is not a T5.
            CorruptError: Its weights do not fit or are damaged.
            UsageError: Its templates or its query budget make no sense.
        """
        network, tokenizer, config = load_network(folder, dtype=dtype)
        return cls(network.to(device), tokenizer, config, name or folder.name)

    @property
    def width(self) -> int:
        """``d``, the length of a token's state."""
        return self.engine.width

    @property
    def split_layer(self) -> int:
        """Layers below the cut; 0 for a plain reader."""
        return self.config.split_layer

    @property
    def store_kind(self) -> str:
        """Kind of rows that :meth:`encode` makes (docs/format.md)."""
        return f"bits+{self._beside_bits}" if self.mode == "btr" else "fp16"

    @property
    def _beside_bits(self) -> str:
        """What a row of a btr reader has beside its bits."""
        return self.config.scale + ("+ids" if self.network.words is not None else "")

    @property
    def fingerprint(self) -> dict[str, str]:
        """What stored states depend on; computed once."""
        if self._fingerprint is None:
            model = self.network.model
            lower = {"shared.weight": model.shared.weight}
            lower["relative_bias"] = self.network.relative_bias().by_distance
            for i, block in enumerate(self.network.blocks[: self.split_layer]):
                lower |= {f"block.{i}.{n}": t for n, t in block.state_dict().items()}
            if self.mode == "btr":
                lower["binarizer"] = self.network.next_norm.weight
                if self.network.words is not None:
                    named = self.network.words.mean.state_dict().items()
                    lower |= {f"words.{n}": t for n, t in named}
            self._fingerprint = {
                "family": self.family,
                "mode": self.mode,
                "lower_weights": weights_digest(lower),
                "tokenizer": tokenizer_digest(self.tokenizer),
                "split_layer": str(self.split_layer),
                "width": str(self.width),
                "scale": self._beside_bits if self.mode == "btr" else "none",
                "passage_budget": str(self.config.passage_budget),
                "template": self.config.passage_template,
            }
        return self._fingerprint

    # -- offline ------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, passages: Sequence[Passage]) -> list[PassageState]:
        """Lower layers of passages: signs and scales in ``btr`` mode, else float16 states.

        The result for a passage depends on the passages given with it only by rounding, and
        batches are cut from the given ones alone: the same call gives the same bytes.

        Raises:
            UsageError: The reader is a plain one; it has no lower layers to store.
            IncompatibleError: A continuous state is beyond float16; names its passage.
        """
        if self.mode == "plain":
            raise UsageError("a plain reader has no states to store", where=self.name,
                             todo="use its decomposed or btr checkpoint")  # fmt: skip
        tokens = [self._tokens(p) for p in passages]
        rows = self.engine.encode([t.ids for t in tokens])
        if self.mode == "decomposed":
            for passage, part in zip(passages, rows, strict=True):
                if np.isinf(part.view(np.float16)).any():
                    raise IncompatibleError(
                        "a state of this passage is too large for a store of float16 states",
                        where=f"passage {passage.id!r}", expected="65,504 at most", found="more",
                        todo="use the reader's btr checkpoint, or read without a store",
                    )  # fmt: skip
        return [
            PassageState(r, t.text_start, t.truncated) for r, t in zip(rows, tokens, strict=True)
        ]

    @property
    def lower_parameters(self) -> int:
        """Weights of the layers below the cut."""
        lower = self.network.blocks[: self.split_layer]
        return sum(p.numel() for block in lower for p in block.parameters())

    @property
    def vocabulary(self) -> list[str]:
        """Every token id's token."""
        return vocabulary_of(self.tokenizer)

    def token_ids(self, passages: Sequence[Passage]) -> list[list[int]]:
        """The token of each row that :meth:`encode` makes."""
        return [list(self._tokens(passage).ids) for passage in passages]

    def _tokens(self, passage: Passage) -> PassageTokens:
        return self.text.passage(passage.title, passage.text, self.config.passage_budget)

    # -- at query time ------------------------------------------------------------------------

    def read(
        self,
        question: str,
        passages: Sequence[Passage],
        states: Sequence[PassageState] | None = None,
        *,
        top: int = 5,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Reading:
        """Answer a question from passages; see :meth:`read_many`."""
        given = None if states is None else [states]
        return self.read_many([question], [passages], given, top=top, options=options)[0]

    @torch.inference_mode()
    def read_many(
        self,
        questions: Sequence[str],
        passages: Sequence[Sequence[Passage]],
        states: Sequence[Sequence[PassageState]] | None = None,
        *,
        top: int = 5,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> list[Reading]:
        """Answer several questions together, each from its own passages.

        Decoder weights are read once a step for all of them. What is answered is the same as one by
        one, but for rounding.

        Args:
            questions: Any length; past the query budget one is cut at its end.
            passages: Each question's, in any order.
            states: Their stored states, in the same order, or None to encode them now. A plain
                reader takes none.
            top: Most answers to return; greedy search has one.
            options: Runtime compression and search.

        Returns:
            Readings; their stages are those of the whole call.

        Raises:
            UsageError: States were given to a plain reader, or do not fit the passages, or an
                option is impossible.
        """
        check_options(options)
        if states is not None and (
            self.mode == "plain" or [len(s) for s in states] != [len(p) for p in passages]
        ):
            raise UsageError("states do not fit the call", where=self.name,
                             expected="none for a plain reader, else one a passage",
                             found=f"{len(states)} questions with states")  # fmt: skip
        results: list[Reading] = [Reading((), 1.0) for _ in questions]
        asked = [i for i, given in enumerate(passages) if given]
        if not asked:
            return results
        clock = Clock()
        inputs = [
            self._inputs(passages[i], None if states is None else states[i], clock) for i in asked
        ]
        queries = [self.text.query(questions[i], self.config.query_budget) for i in asked]
        memories = self.engine.remember(
            [ids for ids, _ in queries], [given.states for given in inputs], options.merging, clock
        )
        if options.choices:
            generated = self._choose(memories, options)
        else:
            generated = self._generate(memories, inputs, top, options)
        clock.lap("decode")
        for i, memory, given, several, query in zip(
            asked, memories, inputs, generated, queries, strict=True
        ):
            answers = []
            for one, choice in zip(several, options.choices or [""] * len(several), strict=True):
                weights = passage_weights(one, memory, self.engine.decoder, self.prompt)
                calibration = self.config.calibration
                answers.append(cite(one, given.passages, weights, self.text, calibration, choice))
            if options.choices:
                answers = sorted(answers, key=lambda a: -a.probability)[:top]
            elif options.search == "extract":
                # Tokens that stand for several words may be quoted as what others say already.
                texts = [a.text for a in answers]
                answers = [a for i, a in enumerate(answers) if a.text not in texts[:i]]
            doubt = 0.0
            if self.config.calibration and answers and not options.choices:
                doubt = 1 - answers[0].probability
            results[i] = Reading(tuple(answers), doubt, given.truncated, query[1], clock.stages_ms)
        clock.lap("cite")
        return results

    def _inputs(
        self, passages: Sequence[Passage], states: Sequence[PassageState] | None, clock: Clock
    ) -> _Inputs:
        """A question's passages ready for the joint layers, longest first."""
        if states is None:
            tokens = [self._tokens(p) for p in passages]
            clock.lap("tokenize")
            begin = self.engine.embed if self.mode == "plain" else self.engine.settle
            restored = begin([t.ids for t in tokens])
            cut = sum(t.truncated for t in tokens)
            shapes = [(len(t.ids), t.text_start) for t in tokens]
            clock.lap("passages")
        else:
            restored = self.engine.restore([s.rows for s in states], joined_guesses(states))
            cut = sum(s.truncated for s in states)
            shapes = [(len(s.rows), s.text_start) for s in states]
            clock.lap("unpack")
        order = reading_order([length for length, _ in shapes], passages)
        # The last token closes the passage; a title may have crowded out all of the text.
        text_tokens = [max(0, length - start - 1) for length, start in shapes]
        return _Inputs(
            [passages[i] for i in order],
            [restored[i] for i in order],
            [text_tokens[i] for i in order],
            cut,
        )

    def _generate(
        self,
        memories: Sequence[Memory],
        inputs: Sequence[_Inputs],
        top: int,
        options: ReadOptions,
    ) -> list[list[Generated]]:
        """Every question's answers, best first."""
        decoder = self.engine.stepper(int8=options.int8)
        longest = options.longest or self.config.answer_budget
        if options.search == "greedy":
            likeliest = greedy(decoder, memories, longest=longest, prompt=self.prompt,
                               shortest=options.shortest)  # fmt: skip
            return [[one] for one in likeliest]
        if options.search == "beam":
            return [
                beam_search(decoder, memory, beams=options.beams, longest=longest,
                            prompt=self.prompt, top=top)
                for memory in memories
            ]  # fmt: skip
        return [
            likeliest_spans(
                decoder, memory,
                [self.text.spans(p.text, n)
                 for p, n in zip(given.passages, given.text_tokens, strict=True)],
                longest=longest, top=top, prompt=self.prompt,
            )
            for memory, given in zip(memories, inputs, strict=True)
        ]  # fmt: skip

    def _choose(self, memories: Sequence[Memory], options: ReadOptions) -> list[list[Generated]]:
        """Every question's choices in their order, with the log of their shares."""
        sequences = [tuple(self.text.encode(choice)[0]) for choice in options.choices]
        decoder = self.engine.stepper(int8=options.int8)
        chosen = []
        for memory in memories:
            sums = sequence_log_probabilities(decoder, memory, sequences, self.prompt)
            shares = sums.log_softmax(0).tolist()
            chosen.append([Generated(s, p) for s, p in zip(sequences, shares, strict=True)])
        return chosen


@dataclass(frozen=True, slots=True, eq=False)
class _Inputs:
    """A question's passages in the order they are read in.

    Attributes:
        passages: The passages.
        states: What the joint layers begin with.
        text_tokens: How many tokens of each passage's text are among them.
        truncated: Passages that were cut.
    """

    passages: list[Passage]
    states: list[Restored]
    text_tokens: list[int]
    truncated: int


def check_options(options: ReadOptions) -> None:
    """Refuse impossible options.

    Raises:
        UsageError: Names the first of them.
    """
    merging = options.merging
    for what, ok, expected, found in (
        ("ratio of intra-passage merging", 0 <= merging.intra <= 0.5, "0 to 0.5", merging.intra),
        ("ratio of cross-passage merging", 0 <= merging.cross <= 0.5, "0 to 0.5", merging.cross),
        ("period of cross-passage merging", merging.every >= 1, "at least 1", merging.every),
        ("search", options.search in SEARCHES, " or ".join(SEARCHES), options.search),
        ("number of beams", options.beams >= 1, "at least 1", options.beams),
        ("longest answer", options.longest is None or options.longest >= 1, "at least 1",
         options.longest),
        ("choices", all(c.strip() for c in options.choices) and len(options.choices) != 1,
         "none, or two and more texts", options.choices),
    ):  # fmt: skip
        if not ok:
            raise UsageError(f"impossible {what}", expected=expected, found=str(found))
