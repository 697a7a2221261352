"""Every crash point, before, during and after a sync: what starts again ends where nothing had crashed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from node import crashpoints
from node.crashpoints import CRASH_VARIABLE, CrashPoint

P = CrashPoint
ROOT = Path(__file__).parents[2]

_PRODUCING = {
    P.HEAD_BLOCK_STORING, P.HEAD_BLOCK_STORED, P.BATCH_SYNCED, P.CHAIN_STORED, P.CHAIN_HEAD_TAKEN,
    P.CHAIN_ANNOUNCED,
}  # fmt: skip
_RECORDS = {
    P.SIGN_STATE_PUTTING, P.SIGN_STATE_PUT, P.OPENING_PUTTING, P.OPENING_PUT, P.VERDICT_PUTTING,
    P.VERDICT_PUT, P.CLAIM_PUTTING, P.CLAIM_PUT, P.RECORD_PUTTING, P.RECORD_PUT,
}  # fmt: skip
_FOUNDING = {P.MARK_CREATED, P.LEDGER_FOUNDING, P.LEDGER_FOUNDED}
_BLOBS = {P.MANIFEST_WRITTEN, P.MANIFEST_NAMED, P.BLOB_NAMED, P.BLOB_COMPLETE}
_FETCHING = {P.CHUNK_WRITING, P.CHUNK_WRITTEN, *_BLOBS}
REACHED: dict[str, set[CrashPoint]] = {
    "produce": {*_FOUNDING, *_PRODUCING, *_RECORDS, *_BLOBS},
    "sync": {P.BLOCK_STORING, P.BLOCK_STORED, *_PRODUCING, *_RECORDS, *_FETCHING},
    "resume": _PRODUCING,
    "maintain": {
        P.LEDGER_MIGRATING, P.LEDGER_MIGRATED, P.HEAD_MOVING, P.HEAD_MOVED, P.RECORD_PUTTING, P.RECORD_PUT,
        P.BODIES_DELETING, P.BODIES_DELETED, P.BLOB_REOPENED, P.BLOB_REMOVING, P.BATCH_SYNCED, *_FETCHING,
        P.BLOCKS_ABOVE_DELETING, P.BLOCKS_ABOVE_DELETED, P.NODES_SWEEPING, P.NODES_SWEPT,
        P.HEAD_BLOCK_STORING, P.HEAD_BLOCK_STORED,
    },
    "rebuild": {
        P.REBUILD_READ, P.REBUILD_BUILT, P.REBUILD_ASIDE, P.REBUILD_DONE, P.RECORD_PUTTING, P.RECORD_PUT,
        *_FOUNDING, *_PRODUCING,
    },
}  # fmt: skip
"""What each phase comes by. Blocks reach the chain by `produce` before the sync, `resume` after it."""
ORDER = ("produce", "sync", "resume", "maintain", "rebuild")


@dataclass(slots=True)
class Driver:
    process: "subprocess.Popen[str]"
    directory: Path

    def run(self, directory: Path, phase: str, crash: str | None = None) -> int:
        """The signal that ended the phase; 0 if it came to its end. Fails if it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {"directory": str(directory), "phase": phase, "crash": crash}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        status = int(self.process.stdout.readline())
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"{phase} failed"
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0

    def report(self, directory: Path) -> dict[str, object]:
        assert self.run(directory, "report") == 0
        found: dict[str, object] = json.loads((directory / "report.json").read_text(encoding="utf-8"))
        return found

    def get_start(self, phase: str) -> Path:
        """The folder as it is before a phase."""
        return self.directory / phase

    def get_end(self, phase: str) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.directory / f"{phase}.json").read_text(encoding="utf-8"))
        return found


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """With the folder and the report of a life without a crash, phase by phase."""
    directory = tmp_path_factory.mktemp("matrix")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.crash_driver"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    made = Driver(process, directory)
    living = directory / "living"
    living.mkdir()
    assert made.run(living, "prepare") == 0
    for phase in ORDER:
        shutil.copytree(living, made.get_start(phase))
        assert made.run(living, phase) == 0
        (directory / f"{phase}.json").write_text(json.dumps(made.report(living)), encoding="utf-8")
        if phase == "resume":
            assert made.run(living, "export") == 0
    yield made
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def _crash(driver: Driver, directory: Path, phase: str, crash: str, times: int = 1) -> bool:
    """Crash, look, go on; whether it crashed."""
    shutil.copytree(driver.get_start(phase), directory)
    for _ in range(times):
        if not driver.run(directory, phase, crash):
            break
        looked = driver.report(directory)
        assert looked["head"] is None or looked["damages"] == []
    else:
        assert driver.run(directory, phase) == 0
        assert driver.report(directory) == driver.get_end(phase)
        return True
    assert driver.report(directory) == driver.get_end(phase)
    return False


def test_a_life_without_a_crash_is_whole(driver: Driver) -> None:
    ends = [driver.get_end(phase) for phase in ORDER]
    assert [end["height"] for end in ends] == [3, 8, 11, 11, 11]
    assert [end["base"] for end in ends] == [0, 0, 0, 5, 0]
    assert len({str(end["head"]) for end in ends}) == 3
    assert all(end["damages"] == [] for end in ends)
    assert all(not any(chunks for chunks in dict(end["blobs"]).values()) for end in ends)  # type: ignore[call-overload]


def test_the_table_has_every_point() -> None:
    assert set[CrashPoint]().union(*REACHED.values()) == set(CrashPoint)
    assert len({point.number for point in CrashPoint}) == len(CrashPoint)
    assert all(point.description for point in CrashPoint)


CASES = tuple(
    (phase, point) for phase in ORDER for point in sorted(REACHED[phase], key=lambda point: point.number)
)
QUICK = tuple(
    (phase, point)
    for phase, point in CASES
    # Each point once, and the head's batch before, during and after the sync.
    if (point in (P.HEAD_BLOCK_STORING, P.HEAD_BLOCK_STORED) and phase != "rebuild")
    or phase == next(other for other in ORDER[::-1] if point in REACHED[other])
)


def get_name(value: object) -> str:
    return value.name if isinstance(value, CrashPoint) else str(value)


@pytest.mark.parametrize(("phase", "point"), QUICK, ids=get_name)
def test_a_crash_at(driver: Driver, tmp_path: Path, phase: str, point: CrashPoint) -> None:
    assert _crash(driver, tmp_path / "node", phase, str(point.number)), "the point was not reached"


@pytest.mark.slow
@pytest.mark.parametrize("phase", ORDER)
def test_every_point_every_time_it_is_reached(driver: Driver, tmp_path: Path, phase: str) -> None:
    """The second, third… time; and again and again at the same place."""
    for point in sorted(REACHED[phase], key=lambda point: point.number):
        for count in range(2, 100):
            name = f"{point.name}-{count}"
            if not _crash(driver, tmp_path / name, phase, f"{point.number}:{count}"):
                break
            shutil.rmtree(tmp_path / name)
        _crash(driver, tmp_path / point.name, phase, f"{point.number}", times=3)


def test_the_variable_arms_a_real_process(tmp_path: Path) -> None:
    script = """
from node.crashpoints import CrashPoint, reach
for _ in range(3):
    print(1, flush=True)
    reach(CrashPoint.HEAD_MOVED)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, CRASH_VARIABLE: "10:2"},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == b"1\n1\n"


@pytest.mark.parametrize("spec", ["x", "10:", "10:0", "10:x", "999", "-1", "10:1:1"])
def test_a_wrong_variable_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=CRASH_VARIABLE):
        crashpoints.arm(spec)
