"""Questions answered with the answer and what follows it, to teach a decoder to copy.

An answer has three tokens, of which the first says where to look and the last that it is the end:
one in three shows a decoder how to go on copying from what it looks at. Here every answer is
followed by the next words of its passage, and nearly all of its tokens do.

Run as ``python -m btr.train.continuations OUTPUT FILE...``, once, before training.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from btr.data.questions import Question, read_questions
from btr.errors import BtrError
from btr.train.sources import find_answers

LENGTH = 80
"""Characters of a continued answer, some 17 tokens; its last word is whole."""


def continued(
    questions: Iterable[Question], *, length: int = LENGTH, mark: str = ""
) -> Iterator[dict[str, object]]:
    """Records of the questions whose first passage holds the answer, which goes on in it.

    Args:
        questions: With passages.
        length: Characters of an answer.
        mark: Ends every question, which tells it from one whose answer does not go on.
    """
    for question in questions:
        for passage in question.contexts[:1]:
            for start, end in find_answers(passage.text, question.answers)[:1]:
                end = max(end, min(start + length, len(passage.text)))
                while end < len(passage.text) and passage.text[end].isalnum():
                    end += 1
                yield {
                    "id": question.id,
                    "question": question.question + mark,
                    "answers": [passage.text[start:end]],
                    "ctxs": [{"id": passage.id, "title": passage.title, "text": passage.text}],
                }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="training file to write, jsonl.gz")
    parser.add_argument("data", type=Path, nargs="+", help="training files")
    parser.add_argument("--mark", default="", help="put at the end of every question")
    given = parser.parse_args(arguments)
    count = 0
    try:
        with gzip.open(given.output, "wt", encoding="utf-8") as out:
            for path in given.data:
                for record in continued(read_questions(path), mark=given.mark):
                    out.write(json.dumps(record, ensure_ascii=False) + "\n")
                    count += 1
    except BtrError as error:
        given.output.unlink(missing_ok=True)
        print(error, file=sys.stderr)
        return error.exit_status
    print(f"{count} questions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
