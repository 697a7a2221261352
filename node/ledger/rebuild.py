"""`bmif ledger rebuild`: a damaged ledger moves aside, a new one with the node's own records replaces it.

Nothing is deleted, and the damaged files are not even opened: a copy is. The order survives a crash at any
point. The new ledger is whole before the damaged one moves; between the two renames a node refuses to start.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from consensus.types import Hash32, Millis
from node.crashpoints import CrashPoint, reach
from node.ledger import schema
from node.ledger.chainstore import SIGN_STATE_PREFIX, SIGN_STATE_UNKNOWN, Ledger, LedgerError
from node.ledger.files import (
    REBUILDING_SUFFIX,
    TRIAL_SUFFIX,
    clone_files,
    holds_files,
    lock_files,
    put_in_place,
    repair_clone,
)
from node.ledger.level import LevelStore
from node.ledger.mark import sync_directory, sync_files
from node.ledger.records import is_sign_state_readable
from node.ledger.store import KeyValueStore, StoreDamaged, StoreError

logger = logging.getLogger(__name__)

BUILDING_SUFFIX = ".building"
BATCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What became of a ledger."""

    aside: Path | None
    """Where the damaged one is; None if an interrupted rebuild was only brought to its end."""
    records: int
    """Records of the node that the new ledger has."""
    is_sign_state_known: bool
    """False: the voter starts in its safe mode, since votes may have been signed that no record tells of."""


def rebuild_ledger(
    path: Path, chain_id: Hash32, genesis_nodes: Mapping[Hash32, bytes], now: Millis
) -> Rebuilt:
    """Replace the ledger of a stopped node with one at genesis that keeps the node's records.

    Raises:
        StoreError: another process holds it, or the disk can't be written.
        LedgerError: there is nothing to rebuild.
    """
    rebuilding = path.with_name(path.name + REBUILDING_SUFFIX)
    if not holds_files(path):
        if not rebuilding.is_dir():
            raise LedgerError(f"there is no ledger at {path}: a node that starts makes one")
        return _finish(path, rebuilding, None, chain_id)
    with lock_files(path):
        building = path.with_name(path.name + BUILDING_SUFFIX)
        for left_over in (building, rebuilding):
            shutil.rmtree(left_over, ignore_errors=True)
        _build(path, building, chain_id, genesis_nodes)
        building.rename(rebuilding)
        sync_directory(path.parent)
        reach(CrashPoint.REBUILD_BUILT)
        aside = _choose_aside(path, now)
        path.rename(aside)
        sync_directory(path.parent)
    reach(CrashPoint.REBUILD_ASIDE)
    return _finish(path, rebuilding, aside, chain_id)


def _choose_aside(path: Path, now: Millis) -> Path:
    stamp = datetime.fromtimestamp(now / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    name, number = f"{path.name}.damaged-{stamp}", 1
    while (aside := path.with_name(name)).exists():
        number += 1
        name = f"{path.name}.damaged-{stamp}-{number}"
    return aside


def _finish(path: Path, rebuilding: Path, aside: Path | None, chain_id: Hash32) -> Rebuilt:
    put_in_place(rebuilding, path)
    reach(CrashPoint.REBUILD_DONE)
    store = LevelStore(path)
    try:
        ledger = Ledger.open(store, chain_id)
        records = sum(1 for _ in ledger.iterate_records(b""))
        return Rebuilt(aside, records, ledger.get_record(SIGN_STATE_UNKNOWN) is None)
    finally:
        store.close()


def _build(path: Path, building: Path, chain_id: Hash32, genesis_nodes: Mapping[Hash32, bytes]) -> None:
    trial = path.with_name(path.name + TRIAL_SUFFIX)
    shutil.rmtree(trial, ignore_errors=True)
    store = LevelStore(building)
    try:
        ledger = Ledger.open(store, chain_id, genesis_nodes)
        doubt = _rescue_whole(path, trial, ledger)
        if doubt is not None:
            _rescue_what_is_left(path, trial, ledger)
            # After all others: no later step takes the voter's caution back.
            ledger.put_record(SIGN_STATE_UNKNOWN, doubt.encode()[:1000])
        reach(CrashPoint.REBUILD_READ)
    finally:
        store.close()
        shutil.rmtree(trial, ignore_errors=True)
    sync_files(building)


def _rescue_whole(path: Path, trial: Path, ledger: Ledger) -> str | None:
    """Copy the records of a database that opens, knows its last commit and whose records all read.

    Returns why the records may not be the newest, or None.
    """
    clone_files(path, trial)
    try:
        store = LevelStore(trial)
    except StoreError as error:
        return f"the ledger could not be opened: {error}"
    try:
        if _is_foreign(store, ledger.chain_id):
            return None  # what was signed for another chain binds nobody here
        if store.get(schema.META_KEY) is None:
            return "the head record is missing, so others may be"
        if not _copy_records(store, ledger):
            return "a record of the sign-state could not be read"
    except StoreDamaged as error:
        return f"its records could not be read whole: {error}"
    finally:
        store.close()
    return None


def _rescue_what_is_left(path: Path, trial: Path, ledger: Ledger) -> None:
    shutil.rmtree(trial, ignore_errors=True)
    clone_files(path, trial)
    try:
        repair_clone(trial)
        store = LevelStore(trial, is_salvage=True)
    except StoreError as error:
        logger.warning("no record could be rescued: %s", error)
        return
    try:
        if not _is_foreign(store, ledger.chain_id):
            _copy_records(store, ledger)
    except StoreDamaged as error:
        logger.warning("some records could not be rescued: %s", error)
    finally:
        store.close()


def _is_foreign(store: KeyValueStore, chain_id: Hash32) -> bool:
    """Whether the database is known to be of another chain."""
    try:
        encoded = store.get(schema.META_KEY)
        return encoded is not None and schema.decode_meta(encoded).chain_id != chain_id
    except (StoreDamaged, LedgerError):
        return False


def _copy_records(store: KeyValueStore, ledger: Ledger) -> bool:
    """Copy what can be read; False if the sign-state is not among it."""
    is_complete = True
    records: dict[bytes, bytes] = {}
    size = 0
    try:
        for key, value in store.iterate(schema.RECORD_PREFIX):
            if key[1:].startswith(SIGN_STATE_PREFIX) and not is_sign_state_readable(key[1:], value):
                is_complete = False
                continue
            records[key[1:]] = value
            size += len(key) + len(value)
            if size >= BATCH_BYTES:
                ledger.put_records(records)
                records, size = {}, 0
    finally:
        if records:
            ledger.put_records(records)
    return is_complete
