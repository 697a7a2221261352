"""Numbered points around everything the node commits to disk, where a test can make the process die.

A test facility. `BMIF_CRASH_AT=NUMBER[:COUNT]` in the environment kills the process with SIGKILL when it
reaches that point for the COUNT-th time (the first by default): nothing is flushed, closed or said. Without
the variable a point costs one comparison with `None`. A number is never given to another point.
"""

import os
import re
import signal
from dataclasses import dataclass
from enum import Enum

CRASH_VARIABLE = "BMIF_CRASH_AT"


class CrashPoint(Enum):
    """(number, what has just been done or is about to be)"""

    LEDGER_FOUNDING = 1, "before the batch that founds a ledger"
    LEDGER_FOUNDED = 2, "after it"
    LEDGER_MIGRATING = 3, "before the batch that brings an older ledger to this version"
    LEDGER_MIGRATED = 4, "after it"
    BLOCK_STORING = 5, "before a block beside the head chain is stored"
    BLOCK_STORED = 6, "after it"
    HEAD_BLOCK_STORING = 7, "before a block is stored and made the head"
    HEAD_BLOCK_STORED = 8, "after it, while memory has the old head"
    HEAD_MOVING = 9, "before the head moves over stored blocks"
    HEAD_MOVED = 10, "after it, while memory has the old head"
    SIGN_STATE_PUTTING = 11, "before a record of the voter's sign-state is put"
    SIGN_STATE_PUT = 12, "after it, before the vote can leave"
    OPENING_PUTTING = 13, "before the custody's record of an opening is put"
    OPENING_PUT = 14, "after it, before the opening can leave"
    VERDICT_PUTTING = 15, "before the record of a finished recomputation or verdict is put"
    VERDICT_PUT = 16, "after it"
    CLAIM_PUTTING = 17, "before a miner's record of its claim is put"
    CLAIM_PUT = 18, "after it, before the claim can leave"
    RECORD_PUTTING = 19, "before any other record is put or deleted"
    RECORD_PUT = 20, "after it"
    BODIES_DELETING = 21, "before a batch that deletes old bodies and raises the base"
    BODIES_DELETED = 22, "after it"
    BATCH_SYNCED = 23, "after any synced batch, before the commit mark says so"
    MARK_CREATED = 24, "after the commit mark of a new database, before the database"
    NODES_SWEEPING = 25, "before a batch that deletes state nodes which no kept block reaches"
    NODES_SWEPT = 26, "after it"
    BLOCKS_ABOVE_DELETING = 27, "before a batch that deletes blocks above a head that was taken back"
    BLOCKS_ABOVE_DELETED = 28, "after it"
    CHUNK_WRITING = 30, "before a fetched chunk is written into an unfinished blob"
    CHUNK_WRITTEN = 31, "after it"
    MANIFEST_WRITTEN = 32, "after a blob's manifest is written, before it has its name"
    MANIFEST_NAMED = 33, "after it has its name, before the blob has"
    BLOB_NAMED = 34, "after the blob has its name, before the folder is synced"
    BLOB_COMPLETE = 35, "after a blob is complete and durable"
    BLOB_REMOVING = 36, "after a blob's file is gone, before its manifest is"
    BLOB_REOPENED = 37, "after a damaged blob became an unfinished one"
    REBUILD_READ = 40, "after a damaged ledger's records are read"
    REBUILD_BUILT = 41, "after the new ledger is written, before the damaged one is moved aside"
    REBUILD_ASIDE = 42, "after the damaged ledger is moved aside, before the new one has its name"
    REBUILD_DONE = 43, "after the new ledger has its name"
    CHAIN_STORED = 50, "after the chain stored a block, before it takes the new head"
    CHAIN_HEAD_TAKEN = 51, "after the listeners heard of the head, before peers hear of the block"
    CHAIN_ANNOUNCED = 52, "after peers heard of it"

    @property
    def number(self) -> int:
        return self.value[0]

    @property
    def description(self) -> str:
        return self.value[1]


@dataclass(slots=True)
class _Charge:
    point: CrashPoint
    left: int


_charge: _Charge | None = None


def arm(spec: str | None) -> None:
    """Die at the point that `NUMBER[:COUNT]` names; None or nothing disarms.

    Raises: ValueError saying what is wrong with it.
    """
    global _charge
    if not spec:
        _charge = None
        return
    match = re.fullmatch(r"([0-9]{1,4})(?::([1-9][0-9]{0,8}))?", spec)
    if match is None:
        raise ValueError(f"{CRASH_VARIABLE}: expected NUMBER or NUMBER:COUNT, got {spec!r}")
    points = {point.number: point for point in CrashPoint}
    if int(match[1]) not in points:
        raise ValueError(f"{CRASH_VARIABLE}: there is no crash point {match[1]}")
    _charge = _Charge(points[int(match[1])], int(match[2] or 1))


def reach(point: CrashPoint) -> None:
    """Say that the process is at `point`; does not return if it is to die there."""
    if _charge is not None and _charge.point is point:
        _charge.left -= 1
        if not _charge.left:
            os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get(CRASH_VARIABLE))
