"""What tests of the command line share."""

from __future__ import annotations


def one_line(err: str) -> str:
    """The error, which must be one line and the last."""
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("error[")] == lines[-1:], err
    assert "Traceback" not in err
    return lines[-1]
