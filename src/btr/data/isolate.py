"""Documents are parsed in a process of their own, under limits on memory, time and output.

A PDF or a page can make its parser loop, exhaust memory or crash. Here that costs the document, one
reject, and never the run. The process serves many documents and is replaced after each failure.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from btr.data.cut import Block
from btr.data.documents import Document
from btr.data.lines import RecordError

HEADER_BYTES = 8
"""A reply is its length, big-endian, and then that many bytes of JSON."""


@dataclass(frozen=True, slots=True)
class ExtractLimits:
    """What one document may cost.

    Attributes:
        max_input_bytes: Size of the file, expanded if it is compressed.
        max_output_bytes: Size of its text with structure, as JSON.
        memory_bytes: Address space of the process.
        cpu_seconds: Processor time.
        wall_seconds: Time by the clock; longer, as the machine may be busy.
    """

    max_input_bytes: int = 64 << 20
    max_output_bytes: int = 128 << 20
    memory_bytes: int = 2 << 30
    cpu_seconds: int = 60
    wall_seconds: float = 300.0


class _DiedError(Exception):
    """The process ended without a reply, or said that it is out of memory."""


class Extractor:
    """Extracts documents in another process, started when first needed; a context manager.

    Args:
        limits: For every document.
    """

    def __init__(self, limits: ExtractLimits) -> None:
        self.limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._served = 0

    def __enter__(self) -> Extractor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def extract(self, path: Path, kind: str, stem: str) -> Document:
        """The text of a ``md``, ``html`` or ``pdf`` file (or a ``.gz`` of one).

        Args:
            path: The file.
            kind: Its format.
            stem: The title of a document that has none.

        Raises:
            RecordError: The document is damaged, empty, or went over a limit.
        """
        request = json.dumps({"path": os.fspath(path), "kind": kind, "stem": stem}).encode()
        while True:
            fresh = self._process is None or self._served == 0
            try:
                reply = self._ask(request)
                break
            except _DiedError as error:
                self.close()
                # What earlier documents left behind must not decide about this one.
                if fresh:
                    raise RecordError(str(error)) from None
            except BaseException:
                self.close()
                raise
        if "reject" in reply:
            raise RecordError(reply["reject"])
        blocks = tuple(Block(*fields) for fields in reply["blocks"])
        return Document(reply["text"], reply["title"], blocks)

    def _start(self) -> subprocess.Popen[bytes]:
        package_root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
        self._served = 0
        return subprocess.Popen(  # noqa: S603 - our own module, under our own interpreter
            # -P: a folder of documents may be the current one, and is no place to import from.
            [
                sys.executable,
                "-P",
                "-m",
                "btr.data.extract_worker",
                json.dumps(asdict(self.limits)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # parsers log every oddity of a file
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the run, which then ends this process
        )

    def _ask(self, request: bytes) -> dict[str, Any]:
        if self._process is None:
            self._process = self._start()
        process = self._process
        deadline = time.monotonic() + self.limits.wall_seconds
        try:
            stdin = cast(IO[bytes], process.stdin)
            stdin.write(request + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise _DiedError(self._cause(process)) from None
        size = int.from_bytes(self._read(process, HEADER_BYTES, deadline), "big")
        if size > self.limits.max_output_bytes:
            self.close()
            raise RecordError(f"over {self.limits.max_output_bytes} bytes of text")
        reply: dict[str, Any] = json.loads(self._read(process, size, deadline))
        if reply.get("out_of_memory"):
            raise _DiedError(f"needs more than {self.limits.memory_bytes >> 20} MiB of memory")
        self._served += 1
        return reply

    def _read(self, process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
        descriptor, data = cast(IO[bytes], process.stdout).fileno(), bytearray()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | select.POLLHUP)
        while len(data) < size:
            if not poll.poll(max(0.0, 1e3 * (deadline - time.monotonic()))):
                self.close()
                raise RecordError(f"took longer than {self.limits.wall_seconds:g} s")
            piece = os.read(descriptor, min(size - len(data), 1 << 20))
            if not piece:
                raise _DiedError(self._cause(process))
            data += piece
        return bytes(data)

    def _cause(self, process: subprocess.Popen[bytes]) -> str:
        status = process.wait()
        if status == -signal.SIGXCPU:
            return f"took more than {self.limits.cpu_seconds} s of processor time"
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"the parser was killed or crashed ({how})"
