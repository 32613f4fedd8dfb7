"""Questions from plain text, to pretrain a span reader before it sees real ones.

A sentence of one passage, with a name or number in it replaced by "what", asks for that name in
another passage of the same article (span selection, Glass et al. 2020, arXiv 1909.04120). The other
passage must hold the name and share words with the sentence, so that reading it helps.

Run as ``python -m btr.train.cloze CORPUS OUTPUT``, once, before training.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from btr.data.lines import read_numbered_records
from btr.data.questions import write_records
from btr.data.sentences import sentence_ends
from btr.errors import one_line_errors

_NAME = re.compile(
    r"\b(?:[A-Z][\w'\u2019-]+(?:\s+(?:(?:of|the|de|la|von|van)\s+)?[A-Z][\w'\u2019-]+){0,4}"
    r"|\d{1,3}(?:,\d{3})+|\d{2,4})\b"
)
_WORD = re.compile(r"\w{4,}")
AROUND = 160
"""Characters of the sentence kept on each side of the gap: some 30 tokens."""
SHARED = 3
"""Words of four or more letters that sentence and passage must share beside the answer."""
LARGEST_ARTICLE = 60
"""Passages of an article that are looked at; very long ones would be most of the result."""


def names(sentence: str, title: str) -> Iterator[tuple[int, int]]:
    """Spans of names and numbers; not the title, nor a lone word that begins the sentence."""
    for match in _NAME.finditer(sentence):
        text = match.group()
        if text.casefold() in title.casefold() or (match.start() == 0 and " " not in text):
            continue
        yield match.span()


def sentences(text: str) -> Iterator[str]:
    """The sentences of a passage."""
    first = 0
    for end in [*sentence_ends(text, 0, len(text)), len(text)]:
        if text[first:end].strip():
            yield text[first:end].strip()
        first = end


def article_questions(
    title: str, texts: list[str], random: np.random.Generator, per_passage: int
) -> Iterator[dict[str, object]]:
    """Cloze questions between the passages of one article, at most ``per_passage`` on each."""
    words = [set(_WORD.findall(text.casefold())) for text in texts]
    asked = [0] * len(texts)
    for source, text in enumerate(texts):
        for sentence in sentences(text):
            found = list(names(sentence, title))
            if not found:
                continue
            start, end = found[random.integers(len(found))]
            answer = sentence[start:end]
            mine = set(_WORD.findall(sentence.casefold())) - set(_WORD.findall(answer.casefold()))
            whole = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
            overlap = [
                len(mine & words[i])
                if i != source and asked[i] < per_passage and whole.search(other)
                else 0
                for i, other in enumerate(texts)
            ]
            best = max(range(len(texts)), key=lambda i: overlap[i])
            if overlap[best] < SHARED:
                continue
            asked[best] += 1
            before, after = sentence[max(0, start - AROUND) : start], sentence[end : end + AROUND]
            yield {
                "question": f"{before}what{after}",
                "answers": [answer],
                "ctxs": [{"title": title, "text": texts[best]}],
            }


def cloze_questions(
    articles: Mapping[str, list[str]], *, seed: int = 1, per_passage: int = 3
) -> Iterator[dict[str, object]]:
    """Cloze questions over articles (title to passages), the same for the same arguments."""
    random = np.random.default_rng(seed)
    for title, texts in articles.items():
        yield from article_questions(title, texts[:LARGEST_ARTICLE], random, per_passage)


def group_articles(
    passages: Iterable[Mapping[str, object]], excluded: set[str]
) -> dict[str, list[str]]:
    """Texts by title, of articles with at least two passages; without the excluded ids."""
    articles: dict[str, list[str]] = {}
    for passage in passages:
        if passage["title"] and passage["id"] not in excluded:
            articles.setdefault(str(passage["title"]), []).append(str(passage["text"]))
    return {title: texts for title, texts in articles.items() if len(texts) > 1}


@one_line_errors
def main() -> int:
    """Write cloze questions as a training file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path, help="passages, jsonl.gz")
    parser.add_argument("output", type=Path, help="training file to write, jsonl.gz")
    parser.add_argument("--exclude", type=Path, nargs="*", default=[],
                        help="question files whose passages are left out")  # fmt: skip
    given = parser.parse_args()
    excluded: set[str] = set()
    for path in given.exclude:
        for _, record in read_numbered_records(path):
            excluded |= {c["id"] for c in record["ctxs"]}
    articles = group_articles(
        (record for _, record in read_numbered_records(given.corpus)), excluded
    )
    count = write_records(given.output, cloze_questions(articles))
    print(f"{count} questions from {len(articles)} articles")
    return 0


if __name__ == "__main__":
    sys.exit(main())
