"""The extractive reader: exact spans from packed passages, in three modes of one interface.

``N`` packed tokens of all passages with their copy of the query, ``d`` width. Passages are read
longest first, whatever order they came in, so their order never changes an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from btr.binarize import PostNormBinarizer, WordResidual
from btr.bits import pack_signs, put_levels, unpack_signs
from btr.data.passages import Passage
from btr.errors import UsageError
from btr.readers.base import DEFAULT_OPTIONS, Answer, Mode, Reading, ReadOptions
from btr.readers.batches import Clock, encode_by_length, joined_guesses, reading_order
from btr.readers.bert_checkpoint import BertReaderConfig, load_network
from btr.readers.bert_layers import run_layer
from btr.readers.bert_network import SplitBert
from btr.readers.bert_text import encode_text, tokenize_passage, tokenize_query
from btr.readers.checkpoint import tokenizer_digest, vocabulary_of, weights_digest
from btr.readers.id_rows import ids_of
from btr.readers.packed import PackedAttention, filled
from btr.readers.spans import LONGEST_ANSWER, span_scores, top_spans
from btr.store.format import PassageState, packed_ids

CANDIDATES = 10
"""Best spans of a passage that take part in the count of equal answers."""


class BertReader:
    """A BERT-style extractive reader in one mode.

    Args:
        network: The split network, in eval mode.
        tokenizer: Its fast tokenizer.
        config: Its layout and budgets.
        name: What users call it.
    """

    family = "bert"

    def __init__(
        self,
        network: SplitBert,
        tokenizer: PreTrainedTokenizerBase,
        config: BertReaderConfig,
        name: str,
    ) -> None:
        self.network, self.tokenizer, self.config, self.name = network, tokenizer, config, name
        self.mode: Mode = config.mode
        self.dtype = network.model.qa_outputs.weight.dtype
        self.device = network.model.qa_outputs.weight.device
        self._fingerprint: dict[str, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        name: str = "",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> BertReader:
        """Load a checkpoint folder, or a plain one that Hugging Face wrote.

        Raises:
            InputError: There is no such checkpoint.
            IncompatibleError: It is not a BERT.
            CorruptError: Its weights do not fit or are damaged.
        """
        network, tokenizer, config = load_network(folder, dtype=dtype)
        return cls(network.to(device), tokenizer, config, name or folder.name)

    @property
    def width(self) -> int:
        """``d``, the length of a token's state."""
        width: int = self.network.model.config.hidden_size
        return width

    @property
    def split_layer(self) -> int:
        """Layers below the cut; 0 for a plain reader."""
        return self.config.split_layer

    @property
    def store_kind(self) -> str:
        """Kind of rows that :meth:`encode` makes (docs/format.md)."""
        if self.mode != "btr":
            return "fp16"
        return "bits" if self.network.words is None else "bits+ids"

    @property
    def fingerprint(self) -> dict[str, str]:
        """What stored states depend on; computed once."""
        if self._fingerprint is None:
            bert = self.network.model.bert
            lower = {f"embeddings.{n}": t for n, t in bert.embeddings.state_dict().items()}
            for i, layer in enumerate(self.network.lower):
                lower |= {f"layer.{i}.{n}": t for n, t in layer.state_dict().items()}
            if self.network.words is not None:
                mean = self.network.words.mean.state_dict()
                lower |= {f"words.{n}": t for n, t in mean.items()}
            self._fingerprint = {
                "family": self.family,
                "mode": self.mode,
                "lower_weights": weights_digest(lower),
                "tokenizer": tokenizer_digest(self.tokenizer),
                "split_layer": str(self.config.split_layer),
                "width": str(self.width),
                "query_budget": str(self.config.query_budget),
                "passage_budget": str(self.config.passage_budget),
                "template": "title [SEP] text [SEP]",
            }
        return self._fingerprint

    # -- offline ------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, passages: Sequence[Passage]) -> list[PassageState]:
        """Lower layers of passages: packed signs in ``btr`` mode, float16 states in ``decomposed``.

        The result for a passage depends on the passages given with it only by rounding, and
        batches are cut from the given ones alone: the same call gives the same bytes.

        Raises:
            UsageError: The reader is a plain one; it has no lower layers to store.
        """
        if self.mode == "plain":
            raise UsageError("a plain reader has no states to store", where=self.name,
                             todo="use its decomposed or btr checkpoint")  # fmt: skip
        inputs = [PassageTokens.of(self, p) for p in passages]

        def rows_of(batch: list[int]) -> NDArray[np.uint8]:
            chosen = [inputs[i] for i in batch]
            return self._to_rows(self._lower_states(chosen), self._ids(chosen))

        rows = encode_by_length([len(t.ids) for t in inputs], rows_of)
        return [
            PassageState(row, t.text_start, t.truncated)
            for row, t in zip(rows, inputs, strict=True)
        ]

    @property
    def lower_parameters(self) -> int:
        """Weights of the layers below the cut."""
        return sum(p.numel() for layer in self.network.lower for p in layer.parameters())

    @property
    def vocabulary(self) -> list[str]:
        """Every token id's token."""
        return vocabulary_of(self.tokenizer)

    def token_ids(self, passages: Sequence[Passage]) -> list[list[int]]:
        """The token of each row that :meth:`encode` makes."""
        return [PassageTokens.of(self, passage).ids for passage in passages]

    def _lower_states(self, inputs: Sequence[PassageTokens]) -> Tensor:
        """Packed ``[N, d]`` states of passages after the lower layers."""
        lengths = [len(t.ids) for t in inputs]
        hidden = filled(self._embed([t.ids for t in inputs], self.config.query_budget, 1))
        attend = PackedAttention(lengths, self.network.heads)
        for layer in self.network.lower:
            hidden = run_layer(layer, hidden, attend)
        return hidden[: sum(lengths)]

    def _embed(self, rows: Sequence[Sequence[int]], first_position: int, segment: int) -> Tensor:
        """Packed ``[N, d]`` input states; every row counts its positions from ``first``."""
        ids = torch.tensor([i for row in rows for i in row], device=self.device)
        positions = torch.tensor([i for row in rows for i in range(len(row))], device=self.device)
        positions += first_position
        states: Tensor = self.network.model.bert.embeddings(
            input_ids=ids[None],
            token_type_ids=torch.full_like(ids, segment)[None],
            position_ids=positions[None],
        )
        return states[0]

    def _ids(self, inputs: Sequence[PassageTokens]) -> Tensor:
        """Packed token ids ``[N]`` of passages."""
        return torch.tensor([i for t in inputs for i in t.ids], device=self.device)

    def _to_rows(self, states: Tensor, ids: Tensor) -> NDArray[np.uint8]:
        if self.mode != "btr":
            return states.to(torch.float16).cpu().numpy().view(np.uint8)
        words = self.network.words
        if words is None:
            return pack_signs(states).cpu().numpy()
        rest = states - words.expected_of(ids, self.network.vocabulary)
        parts = [pack_signs(rest).cpu().numpy(), packed_ids(ids.cpu().numpy())]
        return np.concatenate(parts, axis=1)

    def _from_rows(self, states: Sequence[PassageState]) -> Tensor:
        """Stored states to restored ones, packed ``[N, d]`` in the reader's dtype."""
        rows, binarizer = np.concatenate([state.rows for state in states]), self.network.binarizer
        if binarizer is None:
            return torch.from_numpy(rows.view(np.float16)).to(self.device, self.dtype)
        bits = rows[:, : self.width // 8]
        packed = bits if self.device.type == "cpu" else torch.tensor(bits, device=self.device)
        # Without words the map is in the table that bytes are looked up in.
        line: dict[str, Tensor] = {}
        if isinstance(binarizer, PostNormBinarizer):
            line = {"scale": binarizer.scale, "offset": binarizer.offset}
        restored = unpack_signs(packed, self.dtype, **line)
        if (guessed := joined_guesses(states)) is not None:
            put_levels(restored, guessed.places, guessed.levels, **line)
        if isinstance(binarizer, WordResidual):
            vocabulary = self.network.vocabulary
            ids = ids_of(rows, len(vocabulary.weight)).to(self.device)
            restored = binarizer.restore(restored, binarizer.expected_of(ids, vocabulary))
        return restored

    # -- at query time ------------------------------------------------------------------------

    @torch.inference_mode()
    def read(
        self,
        question: str,
        passages: Sequence[Passage],
        states: Sequence[PassageState] | None = None,
        *,
        top: int = 5,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> Reading:
        """Answer a question from passages.

        Args:
            question: The question, any length; past the query budget it is cut.
            passages: Where to look, in any order.
            states: Their stored states, in the same order, or None to encode them now. A plain
                reader takes none.
            top: Most answers to return; they differ in text.
            options: It takes no merging, and as choices only the classes it was trained for.

        Returns:
            Spans with one probability distribution over all passages and "not answered".

        Raises:
            UsageError: States were given to a plain reader, or their number is not that of the
                passages, or tokens are to be merged, or the choices are not its classes.
        """
        if options.merging:
            raise UsageError("an extractive reader cannot merge tokens: merged ones have no place",
                             where=self.name, todo="leave merging off")  # fmt: skip
        if options.choices and set(options.choices) != set(self.config.labels):
            raise UsageError("an extractive reader cannot choose between these answers",
                             where=self.name, expected=", ".join(self.config.labels) or "none",
                             found=", ".join(options.choices),
                             todo="train it with --classes, or use a generative one")  # fmt: skip
        if states is not None and (self.mode == "plain" or len(states) != len(passages)):
            raise UsageError("states do not fit the call", where=self.name,
                             expected="none for a plain reader, else one a passage",
                             found=f"{len(states)} for {len(passages)} passages")  # fmt: skip
        if not passages:
            return Reading((), 1.0)
        clock = Clock()
        order, parts = self._passage_states(passages, states, clock)
        query_ids = tokenize_query(self.tokenizer, question, self.config.query_budget)
        query = self._embed([query_ids], 0, 0)
        attend = PackedAttention([len(query_ids)], self.network.heads)
        for layer in self.network.lower:
            query = run_layer(layer, query, attend)
        clock.lap("query")
        hidden = self._joint(query, parts)
        clock.lap("joint")
        ordered, no_answer = [passages[i] for i in order], 0.0
        if options.choices:
            answers = self._classify(hidden, ordered, top)
        else:
            head = self.network.model.qa_outputs
            logits = [head(states).float().cpu() for states in hidden]
            answers, no_answer = self._decode(logits, ordered, top)
        clock.lap("decode")
        cut = sum(p.truncated for p in parts)
        return Reading(answers, no_answer, cut, stages_ms=clock.stages_ms)

    def read_many(
        self,
        questions: Sequence[str],
        passages: Sequence[Sequence[Passage]],
        states: Sequence[Sequence[PassageState]] | None = None,
        *,
        top: int = 5,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> list[Reading]:
        """Answer questions one by one; see :meth:`read`. All layers are per passage anyway."""
        given = [None] * len(questions) if states is None else states
        return [
            self.read(question, theirs, kept, top=top, options=options)
            for question, theirs, kept in zip(questions, passages, given, strict=True)
        ]

    def _passage_states(
        self, passages: Sequence[Passage], states: Sequence[PassageState] | None, clock: Clock
    ) -> tuple[list[int], list[PassageInput]]:
        """Passage states ready for the joint layers, longest passage first."""
        if states is not None:
            order = reading_order([len(s.rows) for s in states], passages)
            restored = self._from_rows([states[i] for i in order])
            lengths = [len(states[i].rows) for i in order]
            kept = [(states[i].text_start, states[i].truncated) for i in order]
            clock.lap("unpack")
        else:
            tokens = [PassageTokens.of(self, p) for p in passages]
            order = reading_order([len(t.ids) for t in tokens], passages)
            lengths = [len(tokens[i].ids) for i in order]
            kept = [(tokens[i].text_start, tokens[i].truncated) for i in order]
            clock.lap("tokenize")
            chosen = [tokens[i] for i in order]
            restored = self.network.binarize(self._lower_states(chosen), self._ids(chosen))
            clock.lap("passages")
        rows = torch.split(restored, lengths)
        return order, [PassageInput(r, *k) for r, k in zip(rows, kept, strict=True)]

    def _joint(self, query: Tensor, passages: Sequence[PassageInput]) -> list[Tensor]:
        """Joint layers: per passage ``[1 + T, d]`` states.

        Row 0 is ``[CLS]``, the others are the ``T`` tokens of the passage's text. The last layer
        computes only these rows: nobody asks for the others.
        """
        hidden = filled(torch.cat([part for p in passages for part in (query, p.states)]))
        lengths = [len(query) + len(p.states) for p in passages]
        asking = [len(p.states) - p.text_start for p in passages]
        ends = np.cumsum(lengths).tolist()
        rows = torch.tensor(
            [
                row
                for end, length, ask in zip(ends, lengths, asking, strict=True)
                for row in (end - length, *range(end - ask, end - 1))
            ],
            device=self.device,
        )
        attend = PackedAttention(lengths, self.network.heads)
        *inner, last = self.network.joint
        for layer in inner:
            hidden = run_layer(layer, hidden, attend)
        attend = PackedAttention(lengths, self.network.heads, asking=asking)
        hidden = run_layer(last, hidden, attend, filled(rows))
        return list(torch.split(hidden[: len(rows)], asking))

    def _classify(
        self, hidden: Sequence[Tensor], passages: Sequence[Passage], top: int
    ) -> tuple[Answer, ...]:
        """Classes by the mean of the logits that each passage's ``[CLS]`` gives.

        The source of a class is the passage that speaks for it most.
        """
        head = self.network.classifier
        assert head is not None  # noqa: S101 -- the reader has labels
        logits = head(torch.stack([states[0] for states in hidden])).float().cpu()
        shares, sources = logits.mean(0).softmax(0), logits.log_softmax(1).argmax(0)
        answers = [
            Answer(label, float(share), passages[int(source)], None, None)
            for label, share, source in zip(self.config.labels, shares, sources, strict=True)
        ]
        return tuple(sorted(answers, key=lambda a: -a.probability)[:top])

    def _decode(
        self, logits: Sequence[Tensor], passages: Sequence[Passage], top: int
    ) -> tuple[tuple[Answer, ...], float]:
        """One normalisation over all spans of all passages and "not answered".

        A span's score is its logits less those of its own passage's ``[CLS]``, which makes passages
        comparable; that of "not answered" is 0 for one passage and grows with their number, as
        their false alarms do. Equal texts are one answer, with the sum of their probabilities;
        its source is the best of its spans.
        """
        padded = torch.nn.utils.rnn.pad_sequence(list(logits), batch_first=True)
        lengths = torch.tensor([len(row) for row in logits])
        place = torch.arange(padded.shape[1])
        allowed = (place > 0) & (place < lengths[:, None])
        none = padded[:, 0].sum(1)
        scores = span_scores(padded[..., 0], padded[..., 1], allowed, LONGEST_ANSWER)
        scores = scores - none[:, None, None]
        nothing = self.config.abstention * math.log(len(passages))
        total = float(torch.logsumexp(torch.cat([scores.flatten(), torch.tensor([nothing])]), 0))
        values, firsts, lasts = (x.tolist() for x in top_spans(scores, max(top, CANDIDATES)))
        ranked = sorted(
            (-value, passage.id, first, last, i)
            for i, passage in enumerate(passages)
            for value, first, last in zip(values[i], firsts[i], lasts[i], strict=True)
            if value > -math.inf
        )
        mass: dict[str, float] = {}
        best: dict[str, tuple[Passage, int, int]] = {}
        offsets: dict[int, list[tuple[int, int]]] = {}
        for negated, _, first, last, i in ranked:
            if i not in offsets:
                offsets[i] = encode_text(self.tokenizer, passages[i].text)[1]
            a, b = offsets[i][first - 1][0], offsets[i][last - 1][1]
            key = passages[i].text[a:b].casefold()
            mass[key] = mass.get(key, 0.0) + math.exp(-negated - total)
            best.setdefault(key, (passages[i], a, b))
        chosen = sorted(best, key=lambda key: -mass[key])[:top]
        answers = []
        for key in chosen:
            passage, a, b = best[key]
            answers.append(Answer(passage.text[a:b], min(1.0, mass[key]), passage, a, b))
        return tuple(answers), math.exp(nothing - total)


class PassageInput:
    """A passage on its way into the joint layers: ``states`` is ``[P, d]``."""

    __slots__ = ("states", "text_start", "truncated")

    def __init__(self, states: Tensor, text_start: int, truncated: bool) -> None:
        self.states, self.text_start, self.truncated = states, text_start, truncated


class PassageTokens:
    """A tokenised passage."""

    __slots__ = ("ids", "text_start", "truncated")

    def __init__(self, ids: list[int], text_start: int, truncated: bool) -> None:
        self.ids, self.text_start, self.truncated = ids, text_start, truncated

    @classmethod
    def of(cls, reader: BertReader, passage: Passage) -> PassageTokens:
        """Tokenise a passage within the reader's budget."""
        budget = reader.config.passage_budget
        return cls(*tokenize_passage(reader.tokenizer, passage.title, passage.text, budget)[:3])
