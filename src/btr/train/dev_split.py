"""Write the questions that training holds out as one file, to tune or calibrate on.

    python -m btr.train.dev_split DEV.jsonl.gz FILE... [--dev-share SHARE]

They are those of :func:`btr.train.sources.read_sources`: what no checkpoint trained on the same
files with the same share has seen.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from btr.data.questions import question_record, write_records
from btr.errors import one_line_errors
from btr.train.sources import DataSettings, Rejects, Source, read_sources


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="file to write, jsonl.gz")
    parser.add_argument("data", type=Path, nargs="+", help="training files")
    parser.add_argument("--dev-share", type=float, default=DataSettings.dev_share,
                        help="of the training [%(default)s]")  # fmt: skip
    given = parser.parse_args(arguments)
    if not 0 < given.dev_share <= 0.5:
        parser.error(f"--dev-share is above 0 and at most 0.5, not {given.dev_share}")
    files = tuple(Source(path) for path in given.data)
    sources = DataSettings(files, dev_share=given.dev_share)
    held_out = (
        question_record(replace(question, id=f"{name}-{question.id}"))
        for name, question, dev in read_sources(sources, Rejects())
        if dev
    )
    count = write_records(given.output, held_out)
    print(f"{count} questions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
