"""Bringing a ledger of an older schema to this one, version by version, resumable at every batch.

A migration converts rows of the tables that it names, some hundred at a time, by a pure function; a batch's
changes and the note of how far it came are one atomic write. The last batch sets the version. Nothing else
reads a ledger that is under way: it still says the old version, and a node refuses that.
"""

import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from consensus.types import Hash32
from node.crashpoints import CrashPoint, reach
from node.ledger import schema
from node.ledger.files import TRIAL_SUFFIX, clone_files, lock_files
from node.ledger.level import LevelStore
from node.ledger.mark import sync_directory
from node.ledger.schema import LedgerDamaged, LedgerError, SchemaError
from node.ledger.store import KeyValueStore

ROWS_AT_ONCE = 512
PROGRESS_RECORD = schema.record_key(b"migration")
_PROGRESS = struct.Struct(">II")
"""Version that the migration starts from, number of the table; then the last key converted."""

Row = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Changes:
    """What becomes of a batch of rows."""

    puts: tuple[Row, ...] = ()
    deletes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Migration:
    """From one version to the next."""

    what: str
    tables: tuple[bytes, ...]
    """Prefixes of the rows to convert, in this order."""
    convert: Callable[[Sequence[Row]], Changes]
    """Pure. It may change the rows that it is given, and rows of tables that are not converted; the same rows
    give the same changes."""


def _add_base(rows: Sequence[Row]) -> Changes:
    """The head record says from where on bodies are held; in version 1 everything was."""
    return Changes(tuple((key, schema.encode_meta(schema.decode_meta(value))) for key, value in rows))


MIGRATIONS: dict[int, Migration] = {
    1: Migration(
        "the head record names the lowest height whose bodies are held", (schema.META_KEY,), _add_base
    ),
}
"""By the version that each starts from."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """What was done to a ledger."""

    found: int
    """Version that it had."""
    version: int
    backup: Path | None
    """The ledger as it was; None if nothing had to be done."""
    rows: int


def load_version(store: KeyValueStore, chain_id: Hash32) -> int:
    """The schema version of a ledger of this chain, of any age.

    Raises: SchemaError where it is no ledger or a newer one; LedgerError where it is of another chain.
    """
    data = store.get(schema.VERSION_KEY)
    if data is None:
        raise SchemaError("the database holds no schema version: it is not a ledger")
    version = schema.decode_version(data)
    if not 1 <= version <= schema.SCHEMA_VERSION:
        raise SchemaError(schema.describe_version(version))
    meta = store.get(schema.META_KEY)
    if meta is None:
        raise LedgerDamaged("the head record is missing")
    if (found := schema.decode_meta(meta).chain_id) != chain_id:
        raise LedgerError(f"Expected chain {chain_id.hex()}. Got a ledger of chain {found.hex()}.")
    return version


def migrate_store(
    store: KeyValueStore, chain_id: Hash32, progress: Callable[[str], None] = lambda _: None
) -> int:
    """Bring an open ledger to this version, from wherever it is; how many rows were converted.

    Raises: as `load_version`.
    """
    converted = 0
    while (version := load_version(store, chain_id)) < schema.SCHEMA_VERSION:
        progress(f"from version {version} to {version + 1}")
        converted += _migrate_once(store, version, MIGRATIONS[version], progress)
    return converted


def _migrate_once(
    store: KeyValueStore, version: int, migration: Migration, progress: Callable[[str], None]
) -> int:
    table, last = _load_progress(store, version)
    converted = 0
    for number in range(table, len(migration.tables)):
        for rows in _take(store, migration.tables[number], last if number == table else b""):
            changes = migration.convert(rows)
            noted = (PROGRESS_RECORD, _PROGRESS.pack(version, number) + rows[-1][0])
            _write(store, [*changes.puts, noted], changes.deletes)
            converted += len(rows)
            progress(f"from version {version} to {version + 1}: {converted} rows")
    _write(store, [(schema.VERSION_KEY, schema.encode_version(version + 1))], [PROGRESS_RECORD])
    return converted


def _write(store: KeyValueStore, puts: Sequence[Row], deletes: Sequence[bytes]) -> None:
    reach(CrashPoint.LEDGER_MIGRATING)
    store.write_batch(puts, deletes)
    reach(CrashPoint.LEDGER_MIGRATED)


def _take(store: KeyValueStore, prefix: bytes, after: bytes) -> Iterator[list[Row]]:
    rows: list[Row] = []
    for row in store.iterate(prefix):
        if row[0] <= after:
            continue
        rows.append(row)
        if len(rows) == ROWS_AT_ONCE:
            yield rows
            rows = []
    if rows:
        yield rows


def _load_progress(store: KeyValueStore, version: int) -> tuple[int, bytes]:
    """(number of the table, last key converted)"""
    data = store.get(PROGRESS_RECORD)
    if data is None:
        return 0, b""
    if len(data) < _PROGRESS.size:
        raise LedgerDamaged(f"the note of how far the migration came is damaged: it has {len(data)} bytes")
    at, table = _PROGRESS.unpack_from(data)
    last = data[_PROGRESS.size :]
    # Of another version it came here with the records of another ledger.
    return (table, last) if at == version else (0, b"")


def migrate_ledger(
    path: Path, chain_id: Hash32, progress: Callable[[str], None] = lambda _: None
) -> Migrated:
    """Bring a stopped node's ledger to this version, after a copy beside it, whose tables are links.

    Interrupted at any point, it goes on when it is called again; the copy is then the one from before.

    Raises:
        StoreError: another process holds it, or the disk can't be written.
        LedgerError: it is of another chain or newer, or there is none; nothing was changed.
    """
    if not (path / "CURRENT").exists():
        raise LedgerError(f"there is no ledger at {path}")
    found, is_begun = _look(path, chain_id)
    if found == schema.SCHEMA_VERSION:
        return Migrated(found, found, None, 0)
    backup = _choose_backup(path, found, is_begun)
    if not backup.exists():
        progress(f"copying to {backup}")
        _back_up(path, backup)
    store = LevelStore(path)
    try:
        rows = migrate_store(store, chain_id, progress)
    finally:
        store.close()
    return Migrated(found, schema.SCHEMA_VERSION, backup, rows)


def _look(path: Path, chain_id: Hash32) -> tuple[int, bool]:
    """The version, and whether a migration was begun."""
    store = LevelStore(path)
    try:
        version = load_version(store, chain_id)
        return version, store.get(PROGRESS_RECORD) is not None
    finally:
        store.close()


def _choose_backup(path: Path, version: int, is_begun: bool) -> Path:
    """A free name; the last one taken, if that holds the ledger as it was before the migration under way."""
    taken, number = None, 1
    name = path.with_name(f"{path.name}.schema-{version}")
    while name.exists():
        taken, number = name, number + 1
        name = path.with_name(f"{path.name}.schema-{version}-{number}")
    return taken if is_begun and taken is not None else name


def _back_up(path: Path, backup: Path) -> None:
    trial = path.with_name(path.name + TRIAL_SUFFIX)
    with lock_files(path):
        shutil.rmtree(trial, ignore_errors=True)
        clone_files(path, trial)
        trial.rename(backup)
        sync_directory(path.parent)
