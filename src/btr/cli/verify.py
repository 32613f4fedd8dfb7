"""``btr verify``: every checksum of a store."""

from __future__ import annotations

import sys

import typer

from btr.cli.output import JsonOption, StoreArgument, bytes_text, console, progress, write_json
from btr.errors import CorruptError


def verify(
    store: StoreArgument,
    json: JsonOption = "",
) -> None:
    """Check every byte of a store and list all damage; exit status 4 if there is any."""
    from btr.store.check import verify as check

    with progress("") as bar:
        task = bar.add_task("checking bytes", total=None)
        report = check(store, lambda done, total: bar.update(task, completed=done, total=total))
    for error in report.damage:
        print(error, file=sys.stderr)
    write_json(
        json,
        {
            "ok": report.ok,
            "files": report.files,
            "bytes": report.bytes,
            "passages": report.passages,
            "damage": [error.as_dict() for error in report.damage],
        },
    )
    if not report.ok:
        found = len(report.damage)
        print(f"{store}: {found} fault{'s' * (found > 1)}; btr repair, or build the store again",
              file=sys.stderr)  # fmt: skip
        raise typer.Exit(CorruptError.exit_status)
    console(json).print(
        f"{store}: sound; {report.passages:,} passages, {report.files} files, "
        f"{bytes_text(report.bytes)}"
    )
