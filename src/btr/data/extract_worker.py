"""The process behind :class:`btr.data.isolate.Extractor`: limits itself, then parses on request.

Run as ``python -m btr.data.extract_worker LIMITS``. Requests are JSON lines on stdin, replies
framed JSON on stdout.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

from btr.data.documents import (
    Document,
    extract_html,
    extract_markdown,
    extract_pdf,
    read_document,
)
from btr.data.isolate import HEADER_BYTES, ExtractLimits
from btr.data.lines import RecordError


def extract(request: dict[str, str], limits: ExtractLimits) -> Document:
    """The document that a request names."""
    data = read_document(Path(request["path"]), limits.max_input_bytes)
    kind, stem = request["kind"], request["stem"]
    if kind == "md":
        return extract_markdown(data, stem)
    if kind == "html":
        return extract_html(data, stem)
    return extract_pdf(data, stem, max_chars=limits.max_output_bytes // 4)


def answer(request: dict[str, str], limits: ExtractLimits) -> dict[str, Any]:
    """The reply to a request; whatever a parser does with a bad file is that file's fault."""
    try:
        document = extract(request, limits)
        return {
            "text": document.text,
            "title": document.title,
            "blocks": [astuple(block) for block in document.blocks],
        }
    except RecordError as error:
        return {"reject": error.reason}
    except MemoryError:
        return {"out_of_memory": True}
    except RecursionError:
        return {"reject": "nested too deeply"}
    # Parsers of hostile files raise anything: KeyError, AttributeError, struct.error ...
    except Exception as error:
        return {"reject": f"cannot be parsed: {type(error).__name__}: {error}"[:300]}


def limit_process(limits: ExtractLimits) -> None:
    """Bound the memory of this process for good, and leave no core file."""
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_next(limits: ExtractLimits) -> None:
    """Bound the processor time of the next document: what was used and its share."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


def main() -> None:
    """Serve until stdin ends."""
    limits = ExtractLimits(**json.loads(sys.argv[1]))
    # Anything a library prints must not get between the frames.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    limit_process(limits)
    for line in sys.stdin.buffer:
        limit_next(limits)
        try:
            reply = json.dumps(answer(json.loads(line), limits)).encode()
        except MemoryError:
            reply = b'{"out_of_memory": true}'
        output.write(len(reply).to_bytes(HEADER_BYTES, "big") + reply)
        output.flush()


if __name__ == "__main__":
    main()
