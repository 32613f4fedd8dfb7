from __future__ import annotations

from pathlib import Path

import pytest

from btr.data.ids import IdRegistry
from btr.data.ledger import NAMED, Ledger
from btr.errors import BtrError, ResourceError


def test_an_account_that_does_not_add_up_is_an_error() -> None:
    ledger = Ledger()
    ledger.record()
    with pytest.raises(BtrError, match=r"records were lost.*'read': 1, 'stored': 0"):
        ledger.check()
    ledger.store(3)
    ledger.check()
    assert ledger.counts["passages"] == 3


def test_a_full_disk_under_the_rejects_is_a_resource_error(tmp_path: Path) -> None:
    ledger = Ledger(Path("/dev/full"))
    with pytest.raises(ResourceError, match=r"rejects: /dev/full; .*No space left"):
        ledger.reject("a", "reason" * 10_000)
    ledger.close()
    ledger = Ledger(Path("/dev/full"))
    ledger.reject("a", "reason")
    with pytest.raises(ResourceError, match="No space left"):
        ledger.flush()
    with pytest.raises(ResourceError, match="No space left"):
        ledger.close()
    with pytest.raises(ResourceError, match="No such file"):
        Ledger(tmp_path / "missing" / "rejects")


def test_names_are_bounded_and_counts_are_not() -> None:
    ledger = Ledger()
    for n in range(2 * NAMED):
        ledger.skip(f"{n}", "hidden")
        ledger.warn(f"{n}")
        ledger.ignore_field(f"{n}")
        ledger.ignore_field("0")
    assert len(ledger.skipped) == len(ledger.warnings) == len(ledger.ignored_fields) == NAMED
    assert ledger.counts["skipped_files"] == ledger.counts["warnings"] == 2 * NAMED
    assert ledger.ignored_fields["0"] == 2 * NAMED + 1


def test_a_full_disk_under_the_list_of_ids_is_a_resource_error() -> None:
    with IdRegistry() as ids:
        ids._db.execute("PRAGMA max_page_count=10")
        names = [f"{n}" for n in range(10_000)]
        with pytest.raises(ResourceError, match=r"list of ids.*disk is full"):
            ids.claim(names, "", "text", "line 1")
