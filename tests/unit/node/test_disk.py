"""Room on the disk: what counts as full, and who is told."""

import errno
import logging
import os
from collections import namedtuple
from pathlib import Path

import pytest

from node.blobs import BlobStore, QuotaExceeded
from node.clock import ManualClock
from node.disk import DiskWatch, get_free_bytes, is_full
from node.ledger.damage import EXIT_DISK_FULL, describe, find_ledger_error, get_exit_status

Room = namedtuple("Room", "f_bavail f_frsize")


def test_what_says_that_a_disk_is_full() -> None:
    assert is_full(OSError(errno.ENOSPC, "x"))
    assert is_full(OSError(errno.EDQUOT, "x"))
    assert is_full(RuntimeError("IO error: /x/000003.log: No space left on device"))
    assert not is_full(OSError(errno.EIO, "x"))


def test_a_full_disk_ends_a_command_with_a_status_of_its_own() -> None:
    error = ExceptionGroup("services", [ValueError(), OSError(errno.ENOSPC, "No space left on device")])
    found = find_ledger_error(error)
    assert found is not None
    assert get_exit_status(found) == EXIT_DISK_FULL
    assert "make room" in describe(found)
    assert find_ledger_error(OSError(errno.EIO, "x")) is None


def test_the_watch_speaks_once_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch = DiskWatch(tmp_path, 1_000, ManualClock())
    with caplog.at_level(logging.INFO):
        for free in (2_000, 900, 800, 1_000, 5_000):
            monkeypatch.setattr(os, "statvfs", lambda path, free=free: Room(free, 1))
            watch.look()
    said = [record.levelname for record in caplog.records]
    assert said == ["WARNING", "INFO"]
    assert "limits.min_free_bytes: 1000" in caplog.text


def test_no_blobs_below_the_mark(tmp_path: Path) -> None:
    free = get_free_bytes(tmp_path)
    with pytest.raises(QuotaExceeded, match=r"limits\.min_free_bytes.*make room"):
        BlobStore(tmp_path / "a", min_free_bytes=2 * free).put_bytes(b"some")
    assert list((tmp_path / "a").iterdir()) == []
    store = BlobStore(tmp_path / "b", min_free_bytes=1)
    ref = store.put_bytes(b"some")
    assert store.get_refs() == (ref,)
    assert store.measure_room().is_enough
