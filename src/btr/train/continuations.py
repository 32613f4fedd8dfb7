"""Questions answered with the answer and what follows it, to teach a decoder to copy.

An answer has three tokens, of which the first says where to look and the last that it is the end:
one in three shows a decoder how to go on copying from what it looks at. Here every answer is
followed by the next words of its passage, and nearly all of its tokens do.

Run as ``python -m btr.train.continuations OUTPUT FILE...``, once, before training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from btr.data.questions import Question, question_record, read_questions, write_records
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
        passages = question.contexts[:1]
        places = [place for p in passages for place in find_answers(p.text, question.answers)]
        if not places:
            continue
        (start, end), text = places[0], passages[0].text
        end = max(end, min(start + length, len(text)))
        while end < len(text) and text[end].isalnum():
            end += 1
        yield question_record(
            replace(
                question,
                question=question.question + mark,
                answers=(text[start:end],),
                contexts=passages,
            )
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="training file to write, jsonl.gz")
    parser.add_argument("data", type=Path, nargs="+", help="training files")
    parser.add_argument("--mark", default="", help="put at the end of every question")
    given = parser.parse_args(arguments)
    questions = (question for path in given.data for question in read_questions(path))
    try:
        count = write_records(given.output, continued(questions, mark=given.mark))
    except BtrError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print(f"{count} questions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
