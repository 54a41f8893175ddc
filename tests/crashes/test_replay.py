"""What each kind of crash makes of one file: four bytes synced, ``abcd``, and four more, ``EFGH``, that are not."""

from __future__ import annotations

import pytest

from tests.crashes.recorder import Create, FileEvent, MakeDirectory, Rename, Sync, Truncate, Unlink, Write
from tests.crashes.replay import Disk, Kind

SYNCED: tuple[FileEvent, ...] = (Create("f"), Sync("."), Write("f", 0, b"abcd"), Sync("f"))
LONGER = (*SYNCED, Write("f", 4, b"EFGH"))


def left(kind: Kind, *events: FileEvent, unfinished: FileEvent | None = None) -> dict[str, bytes | None]:
    disk = Disk.after(events).after_crash(kind, unfinished)
    assert disk is not None
    return disk.contents()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (Kind.KILL, b"abcdEFGH"),
        (Kind.DROP, b"abcd"),
        (Kind.HOLLOW, b"abcd"),
        (Kind.ZERO, b"abcd\0\0\0\0"),
        (Kind.TORN, b"abcdEF"),
        (Kind.ONLY_LEDGER, b"abcd"),
        (Kind.ALL_BUT_LEDGER, b"abcdEFGH"),
    ],
)
def test_bytes_that_were_not_synced(kind: Kind, content: bytes) -> None:
    assert left(kind, *LONGER) == {"f": content}


def test_a_database_is_torn_between_sectors() -> None:
    page = Write("ledger.db", 100, b"x" * 1024)  # 412 bytes of the first sector, all of the second, 100 of the third
    content = left(Kind.TORN, Create("ledger.db"), page)["ledger.db"]
    assert content is not None
    assert content.strip(b"\0") == b"x" * 412


def test_a_file_cut_short_and_not_synced_is_as_long_as_before() -> None:
    assert left(Kind.DROP, *SYNCED, Truncate("f", 1)) == {"f": b"abcd"}
    assert left(Kind.ZERO, *SYNCED, Truncate("f", 1)) == {"f": b"a"}


def test_a_name_lasts_only_once_its_directory_is_synced() -> None:
    assert left(Kind.DROP, Create("f"), Write("f", 0, b"a"), Sync("f")) == {}
    assert left(Kind.HOLLOW, Create("f"), Write("f", 0, b"a"), Sync("f")) == {"f": b"a"}


def test_what_is_in_a_directory_goes_with_it() -> None:
    inside = (MakeDirectory("d"), Create("d/f"), Sync("d"))
    assert left(Kind.DROP, *inside) == {}
    assert left(Kind.DROP, *inside, Sync(".")) == {"d": None, "d/f": b""}


def test_a_deleted_name_comes_back_until_its_directory_is_synced() -> None:
    assert left(Kind.DROP, *SYNCED, Unlink("f")) == {"f": b"abcd"}
    assert left(Kind.DROP, *SYNCED, Unlink("f"), Sync(".")) == {}


def test_a_renamed_file_has_its_old_name_until_its_directory_is_synced() -> None:
    assert left(Kind.DROP, *SYNCED, Rename("f", "g")) == {"f": b"abcd"}
    assert left(Kind.DROP, *SYNCED, Rename("f", "g"), Sync(".")) == {"g": b"abcd"}


def test_what_a_kill_left_is_lost_in_a_power_cut_unless_the_next_run_syncs_it() -> None:
    found = Disk.after(LONGER).after_crash(Kind.KILL)
    assert found is not None
    for events, content in (((), b"abcd"), ((Sync("f"),), b"abcdEFGH")):
        after = Disk.after(events, found).after_crash(Kind.DROP)
        assert after is not None
        assert after.contents() == {"f": content}


def test_what_a_failed_sync_left_must_be_written_anew() -> None:
    found = Disk.after(LONGER).after_crash(Kind.FAILED_SYNC, Sync("f"))
    assert found is not None
    assert found.contents() == {"f": b"abcdEFGH"}
    again: tuple[FileEvent, ...] = (Write("f", 4, b"EFGH"), Sync("f"))
    for events, content in (((Sync("f"),), b"abcd"), (again, b"abcdEFGH")):
        after = Disk.after(events, found).after_crash(Kind.DROP)
        assert after is not None
        assert after.contents() == {"f": content}


def test_no_sync_fails_where_none_comes() -> None:
    assert Disk.after(LONGER).after_crash(Kind.FAILED_SYNC, Write("f", 8, b"i")) is None
