"""The ``btr`` program: its commands, and the one place where errors become a line and a status.

Nothing heavy is imported here or at the top of a command's file, so that ``btr --help`` is instant.
"""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer
from typer.main import get_command

from btr.cli.ask import ask
from btr.cli.bench import bench
from btr.cli.change import add, compact, compress, copy, remove, repair
from btr.cli.demo import demo
from btr.cli.evaluate import evaluate
from btr.cli.index import index
from btr.cli.info import info
from btr.cli.interrupts import Interrupted, listen
from btr.cli.models import models
from btr.cli.output import write_json
from btr.cli.pretrain import pretrain
from btr.cli.sweep import sweep
from btr.cli.train import train
from btr.cli.verify import verify
from btr.errors import BtrError, ResourceError, UsageError
from btr.files import explain

app = typer.Typer(
    name="btr",
    help="Answer questions over your own documents from precomputed 1-bit passage states.",
    epilog="Exit status: 0 done, 2 usage, 3 bad input, 4 damaged store or checkpoint, 5 store and "
    "reader do not fit, 6 locked, 7 out of disk or memory, 8 too many rejected lines, 130 or 143 "
    "interrupted.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    debug: bool = typer.Option(
        False, "--debug", help="Show a traceback with an error; may stand anywhere on the line."
    ),
) -> None:
    """Take the options of ``btr`` itself; :func:`main` has dealt with ``--debug`` before."""


app.command()(demo)
app.command()(index)
app.command()(ask)
app.command()(info)
app.command()(verify)
app.command()(repair)
app.command()(add)
app.command()(remove)
app.command()(compact)
app.command()(compress)
app.command()(copy)
app.command()(pretrain)
app.command()(train)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(sweep)
app.command()(models)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What stands after ``btr`` on the line; None for the process's own.

    Returns:
        The exit status, as ``btr.errors`` lists them.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options
    words = [w for w in options if w != "--debug"] + words[len(options) :]
    for stream in (sys.stdout, sys.stderr):
        # Documents hold any character; a terminal that lacks one shows its escape.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with listen():
            status = get_command(app).main(
                words or ["--help"], prog_name="btr", standalone_mode=False
            )
            sys.stdout.flush()
        return int(status or 0)
    except Interrupted as error:
        print(_interrupted(words), file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output has gone; what it did not read it did not want.
        sys.stderr.close()
        return 141
    except Exception as error:
        known = as_known(error)
        if debug:
            traceback.print_exc()
        if known is None:
            print(f"error[unexpected] {type(error).__name__}: rerun with --debug for the traceback",
                  file=sys.stderr)  # fmt: skip
            return 1
        print(known, file=sys.stderr)
        _report(known, _json_target(words))
        return known.exit_status


def as_known(error: Exception) -> BtrError | None:
    """The error as one that has a line and a status of its own, or None."""
    if isinstance(error, BtrError):
        return error
    # Parsing errors are typer's own or click's, depending on typer's version; both have this.
    if hasattr(error, "format_message"):
        return _usage(error, error.format_message())
    # torch's allocator has no exception class of its own.
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return ResourceError("out of memory", todo="what was committed is intact; use a machine "
                             "with more memory")  # fmt: skip
    if isinstance(error, OSError):
        found = explain(error, error.filename or "")
        return found if isinstance(found, ResourceError | UsageError) else None
    return None


def _interrupted(words: Sequence[str]) -> str:
    """What to say when a command was stopped."""
    if words[:1] not in (["index"], ["add"]):
        return "interrupted"
    again = [*words, *(["--resume"] if "--resume" not in words else [])]
    return f"interrupted; what was committed is kept; go on with: {shlex.join(['btr', *again])}"


def _usage(error: Exception, message: str) -> UsageError:
    """A fault in the command line, in our own words."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "btr"
    near = next(iter(getattr(error, "possibilities", None) or ()), "")
    message = " ".join(message.replace("Value error, ", "").split())
    for mark in (" (Possible options", ". Did you mean "):
        message, _, rest = message.partition(mark)
        near = near or rest.rstrip("?)").partition(", ")[0]
    hint = f"did you mean {near}? " if near else ""
    return UsageError(message.rstrip("."), todo=f"{hint}see {command} --help")


def _json_target(words: Sequence[str]) -> str:
    """Where the line asks for JSON; needed even if the line itself could not be parsed."""
    for i, word in enumerate(words):
        if word.startswith("--json="):
            return word.partition("=")[2]
        if word == "--json" and i + 1 < len(words):
            return words[i + 1]
    return ""


def _report(error: BtrError, target: str) -> None:
    """Write an error as JSON where the command line asks for JSON."""
    if target == "-" or (target and Path(target).parent.is_dir()):
        try:
            write_json(target, {"error": error.as_dict()})
        except BtrError:
            return  # the place for reports is itself what failed
