"""The training files to examples, with a dev split by passage held out.

Gold files (squad, qamr, cloze) give one passage a question; distant ones (``*_bm25``) twenty
retrieved passages, marked by whether an answer string occurs in them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from btr.errors import InputError
from btr.train.span_examples import SpanData, SpanDataBuilder, SpanExample, in_dev, read_jsonl

DEV_SOURCES = ("squad", "nq_bm25")
"""Training files whose held-out passages are the dev set."""

POSITIVES = {"nq_bm25": 2}
"""Passages that hold the answer to take for a question, where it is not 1."""

NEGATIVES = 4
"""Passages without the answer that are kept for a question to choose from."""


@dataclass(frozen=True)
class DataSettings:
    """What is read.

    Attributes:
        mix: Share of each file's questions, as ``name:share`` with commas.
        share: Of all training questions, for short runs that compare settings.
        dev_share: Of the passages that are held out.
        passage_budget: Most tokens of a passage.
        seed: Of every choice.
    """

    mix: str = "squad:1,qamr:0.45,nq_bm25:1,triviaqa_bm25:1,webquestions_bm25:1"
    share: float = 1.0
    dev_share: float = 0.04
    passage_budget: int = 256
    seed: int = 1

    def shares(self) -> dict[str, float]:
        """The mix as numbers."""
        pairs = (part.partition(":") for part in self.mix.split(","))
        return {name: float(share or 1) * self.share for name, _, share in pairs}


@dataclass(frozen=True)
class DevQuestion:
    """A held-out question with what it takes to turn a span into text."""

    example: SpanExample
    text: str
    offsets: list[tuple[int, int]]
    text_start: int
    answers: Sequence[str]


@dataclass
class DevSet:
    """Held-out questions by source, over their own data."""

    data: SpanData
    questions: dict[str, list[DevQuestion]] = field(default_factory=dict)


def find_file(folders: Sequence[Path], name: str) -> Path:
    """The file of a source in the first folder that has it.

    Raises:
        InputError: None has.
    """
    for folder in folders:
        if (folder / f"{name}.jsonl.gz").exists():
            return folder / f"{name}.jsonl.gz"
    raise InputError(f"no training file {name}.jsonl.gz",
                     where=", ".join(str(f) for f in folders),
                     todo="give its folder with --data, or leave it out of --mix")  # fmt: skip


def load_train(
    folders: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    query_budget: int,
) -> SpanData:
    """The examples of all files in the mix, without the dev split's passages and questions."""
    builder = SpanDataBuilder(tokenizer, query_budget, settings.passage_budget)
    chooser = random.Random(settings.seed)  # noqa: S311 -- a sample, not a secret
    for name, share in settings.shares().items():
        siblings: dict[str, set[int]] = {}
        gold: list[tuple[int, str, int]] = []
        for record in read_jsonl(find_file(folders, name)):
            if _held_out(record, settings.dev_share):
                continue  # with its other passages too, or its answer could be learned by heart
            contexts = [c for c in _contexts(record) if not in_dev(c["text"], settings.dev_share)]
            if not contexts or chooser.random() >= share:
                continue
            hits = [c for c in contexts if c.get("hasanswer", True)][: POSITIVES.get(name, 1)]
            misses = [c for c in contexts if not c.get("hasanswer", True)][:NEGATIVES]
            number = builder.question(record["question"])
            added = [builder.add(number, c["title"], c["text"], record["answers"]) for c in hits]
            if not any(added):
                continue
            if misses:
                numbers = [builder.passage(c["title"], c["text"])[0] for c in misses]
                builder.data.negatives[number] = numbers
            else:
                here = builder.passage(hits[0]["title"], hits[0]["text"])[0]
                siblings.setdefault(hits[0]["title"], set()).add(here)
                gold.append((number, hits[0]["title"], here))
        # A gold passage's best distractor is another passage of the same article.
        for number, title, here in gold:
            others = sorted(siblings[title] - {here})
            if others:
                chosen = chooser.sample(others, min(NEGATIVES, len(others)))
                builder.data.negatives[number] = chosen
    return builder.data


def load_dev(
    folders: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    settings: DataSettings,
    query_budget: int,
) -> DevSet:
    """Questions whose first passage that holds an answer was held out."""
    builder = SpanDataBuilder(tokenizer, query_budget, settings.passage_budget)
    dev = DevSet(builder.data)
    for name in DEV_SOURCES:
        rows = dev.questions.setdefault(name, [])
        for record in read_jsonl(find_file(folders, name)):
            hit = _held_out(record, settings.dev_share)
            if hit is None:
                continue
            title, text, answers = hit["title"], hit["text"], record["answers"]
            if builder.add(builder.question(record["question"]), title, text, answers):
                _, offsets, text_start = builder.passage(title, text)
                example = builder.data.examples[-1]
                rows.append(DevQuestion(example, text, offsets, text_start, answers))
    return dev


def _held_out(record: Mapping[str, Any], share: float) -> dict[str, Any] | None:
    """A dev question's passage: the first that holds an answer, if that is held out."""
    hits = [c for c in _contexts(record) if c.get("hasanswer", True)][:1]
    return hits[0] if hits and in_dev(hits[0]["text"], share) else None


def _contexts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    contexts: list[dict[str, Any]] = record["ctxs"]
    return contexts
