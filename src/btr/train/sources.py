"""Training files: FiD/Atlas jsonl with a share of each, and which questions are held out for dev.

A question is held out by the text of its first passage that holds an answer, so that this passage
is unseen too; without such a passage by its first one, without passages by its own text. What is
held out depends on nothing else: neither on the other files nor on the seed. No passage of the
held-out share is trained on, with whatever question.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from btr.data.passages import Passage
from btr.data.questions import Question, read_questions
from btr.errors import InputError, UsageError
from btr.evaluate.run import NO_PASSAGE, labels_in


@dataclass(frozen=True)
class Source:
    """A file of questions and the share of them to train on, 0 .. 1."""

    path: Path
    share: float = 1.0

    @property
    def name(self) -> str:
        """The file's name without its endings."""
        return self.path.name.partition(".")[0]


def parse_source(text: str) -> Source:
    """``FILE`` or ``FILE=SHARE``.

    Raises:
        UsageError: The share is no number in 0 .. 1.
    """
    path, _, share = text.rpartition("=") if "=" in text else (text, "", "1")
    try:
        number = float(share)
    except ValueError:
        number = -1.0
    if not 0 < number <= 1:
        raise UsageError("bad share of a training file", where=text, expected="FILE=SHARE, 0 to 1",
                         found=share)  # fmt: skip
    return Source(Path(path), number)


def held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the dev split, which is ``share`` of all texts."""
    return zlib.crc32(text.encode()) % 10_000 < share * 10_000


def labels_of(sources: Sequence[Source]) -> tuple[str, ...]:
    """The classes that the questions of files name.

    Raises:
        InputError: There are fewer than two, or so many that they are no classes.
    """
    return labels_in(q for source in sources for q in read_questions(source.path))


def name_of(source: str, question: Question) -> str:
    """A question for an error or a log: its file and its id, which is its line if it has none."""
    return f"{source}: question {question.id}"


def find_answers(text: str, answers: Sequence[str]) -> list[tuple[int, int]]:
    """Character spans of whole-word, case-insensitive occurrences of any answer in ``text``."""
    spans: set[tuple[int, int]] = set()
    # Most answers stand nowhere, and a plain search says so in a third of the time. In ASCII alone:
    # there lower case is all that ignoring case means.
    lowered = text.lower() if text.isascii() else None
    for answer in answers:
        words = answer.split()
        if not words:
            continue
        if lowered is not None and answer.isascii() and max(words, key=len).lower() not in lowered:
            continue
        pattern = r"\s+".join(re.escape(w) for w in words)
        pattern = (r"(?<!\w)" if words[0][0].isalnum() else "") + pattern
        pattern += r"(?!\w)" if words[-1][-1].isalnum() else ""
        spans |= {m.span() for m in re.finditer(pattern, text, re.IGNORECASE)}
    return sorted(spans)


def answering(question: Question) -> Iterator[Passage]:
    """The passages of a question that hold an answer, in their order."""
    return (p for p in question.contexts if find_answers(p.text, question.answers))


@dataclass(frozen=True)
class DataSettings:
    """What every family reads.

    Attributes:
        sources: The files to train on.
        dev: Files to look at between epochs; without any, ``dev_share`` of the sources' questions
            is held out for that.
        dev_share: Of the passages that are held out.
        score_on: Names of the dev files whose F1 decides which checkpoint is best; all if none.
        seed: Of every choice.
    """

    sources: tuple[Source, ...]
    dev: tuple[Path, ...] = ()
    dev_share: float = 0.04
    score_on: tuple[str, ...] = ()
    seed: int = 1

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [*(source.path for source in self.sources), *self.dev]

    def score(self, f1: Mapping[str, Sequence[float]]) -> float:
        """Mean F1, in percent, of all questions of the dev files that count.

        Every question weighs the same: a mean of files' means would follow the noise of the
        smallest (85 questions of one outweighed 800 of another, and the wrong epoch was kept).

        Args:
            f1: Of every question, 0 .. 1, by file.

        Raises:
            UsageError: One of them is not there.
        """
        for name in self.score_on:
            if name not in f1:
                raise UsageError("no dev questions to score on", where=name,
                                 found=", ".join(f1))  # fmt: skip
        chosen = [value for name in self.score_on or f1 for value in f1[name]]
        return round(100 * sum(chosen) / len(chosen), 3)


@dataclass
class Rejects:
    """Questions that nothing can be learned from, counted."""

    without_answer: int = 0
    without_passage: int = 0
    without_answer_in_passage: int = 0

    def __str__(self) -> str:
        """One line for people."""
        return (f"left out: {self.without_answer} questions without an answer, "
                f"{self.without_passage} without a passage, {self.without_answer_in_passage} whose "
                "passages hold no answer")  # fmt: skip


def read_sources(
    settings: DataSettings,
    rejects: Rejects,
    *,
    chooses: Callable[[Question], bool] = lambda _: False,
) -> Iterator[tuple[str, Question, bool]]:
    """Questions of all files, with the file's name and whether it is for dev, in the files' order.

    Args:
        settings: The files; a share below 1 is a random sample of the questions to train on.
        rejects: Counts what is left out.
        chooses: Whether a question has classes or options to choose from. One without passages is
            then read with :data:`btr.evaluate.run.NO_PASSAGE`, as ``btr eval`` reads it; others
            without passages are left out.

    Raises:
        InputError: A line is bad (names file and line), or nothing is left to train on or to look
            at.
    """
    chooser = random.Random(settings.seed)  # noqa: S311 -- a sample, not a secret
    trained = looked_at = 0
    share = 0.0 if settings.dev else settings.dev_share
    files = [*settings.sources, *(Source(path) for path in settings.dev)]
    for number, source in enumerate(files):
        whole = number >= len(settings.sources)
        for question in read_questions(source.path):
            if not any(answer.strip() for answer in question.answers):
                rejects.without_answer += 1
                continue
            if not question.contexts and not chooses(question):
                rejects.without_passage += 1
                continue
            dev = whole or held_out(_key(question), share)
            contexts = question.contexts or (NO_PASSAGE,)
            if not dev:
                if source.share < 1 and chooser.random() >= source.share:
                    continue
                if question.contexts:
                    contexts = tuple(p for p in contexts if not held_out(p.text, share))
            question = replace(question, contexts=contexts)
            trained, looked_at = trained + (not dev), looked_at + dev
            yield source.name, question, dev
    for count, what, todo in (
        (trained, "no question to train on", "give files with answers and passages"),
        (looked_at, "no question was held out", "raise --dev-share, or give --dev a file"),
    ):
        if not count:
            raise InputError(what, where=", ".join(str(s.path) for s in files),
                             found=str(rejects), todo=todo)  # fmt: skip


def _key(question: Question) -> str:
    """The text that decides whether a question is held out."""
    passage = next(chain(answering(question), question.contexts), None)
    return question.question if passage is None else passage.text
