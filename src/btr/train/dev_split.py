"""Write the questions that training holds out as one file, to tune or calibrate on.

    python -m btr.train.dev_split DEV.jsonl.gz FILE...

They are those of :func:`btr.train.sources.read_sources` at its usual share: what no checkpoint
trained on the same files has seen.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from btr.errors import BtrError
from btr.train.sources import DataSettings, Rejects, Source, read_sources


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="file to write, jsonl.gz")
    parser.add_argument("data", type=Path, nargs="+", help="training files")
    given = parser.parse_args(arguments)
    sources = DataSettings(tuple(Source(path) for path in given.data))
    count = 0
    try:
        with gzip.open(given.output, "wt", encoding="utf-8") as out:
            for name, question, dev in read_sources(sources, Rejects()):
                if not dev:
                    continue
                record = {
                    "id": f"{name}-{question.id}",
                    "question": question.question,
                    "answers": question.answers,
                    "ctxs": [
                        {"id": p.id, "title": p.title, "text": p.text} for p in question.contexts
                    ],
                }
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
