"""The training files to examples, with a dev split by passage held out.

Gold files (squad, qamr) give one passage a question; distant ones (``*_bm25``) twenty retrieved
passages, marked by whether an answer string occurs in them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from btr.train.span_examples import SpanData, SpanDataBuilder, SpanExample, in_dev, read_jsonl


@dataclass(frozen=True)
class Source:
    """One training file, and how many passages that hold the answer to take for a question."""

    name: str
    positives: int = 1


SOURCES = (
    Source("squad"),
    Source("qamr"),
    Source("nq_bm25", positives=2),
    Source("triviaqa_bm25", positives=1),
    Source("webquestions_bm25", positives=1),
)


@dataclass(frozen=True)
class DataSettings:
    """What is read: shares of the questions and of the dev passages, and the seed of the choice.

    ``share`` is of all training questions, for short runs that compare settings; ``qamr_share`` is
    of qamr's, whose questions are many, vague, and on few passages.
    """

    share: float = 1.0
    qamr_share: float = 0.5
    dev_share: float = 0.04
    passage_budget: int = 256
    seed: int = 1


@dataclass
class DevSet:
    """Held-out questions, by source; answers are compared as text."""

    data: SpanData
    rows: dict[str, list[tuple[SpanExample, str, list[tuple[int, int]], int, list[str]]]]


def load_data(
    folder: Path, tokenizer: PreTrainedTokenizerBase, settings: DataSettings, query_budget: int
) -> tuple[SpanData, DevSet]:
    """Read the training files; passages of the dev split are kept out of the first result."""
    train = SpanDataBuilder(tokenizer, query_budget, settings.passage_budget)
    dev = SpanDataBuilder(tokenizer, query_budget, settings.passage_budget)
    rows: dict[str, list[tuple[SpanExample, str, list[tuple[int, int]], int, list[str]]]] = {}
    chooser = random.Random(settings.seed)  # noqa: S311 -- a sample, not a secret
    for source in SOURCES:
        share = settings.share * (settings.qamr_share if source.name == "qamr" else 1.0)
        siblings: dict[str, list[int]] = {}
        pending: list[tuple[int, str, int]] = []
        for record in read_jsonl(folder / f"{source.name}.jsonl.gz"):
            contexts: list[dict[str, str]] = record["ctxs"]  # type: ignore[assignment]
            answers: list[str] = record["answers"]  # type: ignore[assignment]
            question = str(record["question"])
            hits = [c for c in contexts if c.get("hasanswer", True)][: source.positives]
            if in_dev(contexts[0]["text"], settings.dev_share):
                number = dev.question(question)
                for c in hits[:1]:
                    if dev.add(number, c["title"], c["text"], answers):
                        passage = dev.passage(c["title"], c["text"])
                        rows.setdefault(source.name, []).append(
                            (dev.data.examples[-1], c["text"], passage[1], passage[2], answers)
                        )
                continue
            if chooser.random() >= share:
                continue
            hits = [c for c in hits if not in_dev(c["text"], settings.dev_share)]
            number = train.question(question)
            added = [train.add(number, c["title"], c["text"], answers) for c in hits]
            if not any(added):
                continue
            misses = [c for c in contexts if not c.get("hasanswer", True)][:4]
            if misses:
                train.data.negatives[number] = [
                    train.passage(c["title"], c["text"])[0] for c in misses
                ]
            else:
                here = train.passage(hits[0]["title"], hits[0]["text"])[0]
                siblings.setdefault(hits[0]["title"], []).append(here)
                pending.append((number, hits[0]["title"], here))
        # A gold passage's best distractor is another passage of the same article.
        for number, title, here in pending:
            others = sorted({p for p in siblings[title] if p != here})
            if others:
                train.data.negatives[number] = chooser.sample(others, min(4, len(others)))
    return train.data, DevSet(dev.data, rows)
