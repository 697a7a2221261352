"""Worker processes: what they start with."""

from pathlib import Path

import pytest

from node.work import WorkerPool


def read_environment() -> dict[str, str]:
    """What this process was started with, before any import."""
    entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(entry.decode().split("=", 1) for entry in entries if b"=" in entry)


async def test_workers_start_with_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    # The main module is imported, and with it libraries that read this, before a worker's first line.
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    for name in names:
        monkeypatch.setenv(name, "8")
    pool = WorkerPool(1)
    try:
        found = await pool.run(read_environment)
    finally:
        pool.close()
    assert [found[name] for name in names] == ["1", "1", "1"]
