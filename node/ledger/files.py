"""The files of a database: what must be there to open it, copies to try things on, which are damaged."""

import contextlib
import fcntl
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import plyvel

from node.ledger.mark import load_mark, sync_directory
from node.ledger.store import StoreDamaged, StoreError

REBUILDING_SUFFIX = ".rebuilding"
TRIAL_SUFFIX = ".trial"
_CURRENT = re.compile(rb"MANIFEST-\d{6,}\n")
_IMMUTABLE = (".ldb", ".sst")
_COMPLAINT = re.compile(r"(Table|Log) #(\d+): (.*)")
_MISSING = re.compile(r"missing files; e\.g\.: (\S+?)'?$")


def check_files(path: Path) -> bool:
    """Whether there is a database to open in the folder; False if one is to be made there.

    LevelDB founds a new database where `CURRENT` is missing and then deletes the tables of the old one, so
    this comes first.

    Raises: StoreDamaged naming the file.
    """
    rebuilding = path.with_name(path.name + REBUILDING_SUFFIX)
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    tables = sorted(name for name in names if name.endswith((*_IMMUTABLE, ".log")))
    if "CURRENT" not in names:
        if tables:
            raise StoreDamaged(f"{path / 'CURRENT'} is missing, while there are {len(tables)} other files")
        if load_mark(path):
            raise StoreDamaged(f"the database at {path} is gone: only its commit mark is left")
        if rebuilding.is_dir():
            raise StoreDamaged(f"a rebuild was interrupted: {rebuilding} is not in place yet")
        return False
    current = (path / "CURRENT").read_bytes()
    if not _CURRENT.fullmatch(current):
        raise StoreDamaged(f"{path / 'CURRENT'} is damaged")
    manifest = current.decode().strip()
    if manifest not in names:
        raise StoreDamaged(f"{path / manifest}, which CURRENT names, is missing")
    if not (path / manifest).stat().st_size:
        raise StoreDamaged(f"{path / manifest} is empty")
    return True


def holds_files(path: Path) -> bool:
    """Whether there is anything in the folder but LevelDB's lock."""
    return path.is_dir() and any(entry.name != "LOCK" for entry in path.iterdir())


def put_in_place(built: Path, path: Path) -> None:
    """Make a synced folder the database at `path`, durably, where nothing is but LevelDB's lock."""
    if path.is_dir():
        (path / "LOCK").unlink(missing_ok=True)
        path.rmdir()
    built.rename(path)
    sync_directory(path.parent)


@contextlib.contextmanager
def lock_files(path: Path) -> Iterator[None]:
    """Keep LevelDB of other processes out of a database. Raises `StoreError` if one holds it."""
    with (path / "LOCK").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"the database at {path} is in use by another process") from error
        yield


def clone_files(path: Path, to: Path) -> None:
    """A copy that may be opened and repaired; the original stays as it is. Tables are linked, not copied."""
    to.mkdir()
    for source in path.iterdir():
        if not source.is_file() or source.name == "LOCK":
            continue
        if source.suffix in _IMMUTABLE:
            try:
                (to / source.name).hardlink_to(source)
                continue
            except OSError:
                pass  # a file system without links
        shutil.copyfile(source, to / source.name)


def repair_clone(clone: Path) -> None:
    """Make what can be read of a damaged copy readable. Raises `StoreDamaged` where nothing can."""
    try:
        plyvel.repair_db(str(clone), paranoid_checks=True)
    except (plyvel.Error, OSError) as error:
        raise StoreDamaged(f"nothing of the database can be read: {error}") from error


def find_damaged_files(path: Path) -> list[str]:
    """One sentence for each damaged file of a database that nobody holds open; the database stays as it is.

    A copy is repaired beside it, and LevelDB's report of that is read: its reader is the only one that knows
    every block's checksum.
    """
    found: list[str] = []
    trial = path.with_name(path.name + TRIAL_SUFFIX)
    shutil.rmtree(trial, ignore_errors=True)
    clone_files(path, trial)
    try:
        try:
            plyvel.DB(str(trial), paranoid_checks=True, create_if_missing=False).close()
            does_open = True
        except (plyvel.Error, OSError) as error:
            does_open = False
            missing = _MISSING.search(str(error))
            if missing is not None:
                found.append(f"{path / Path(missing[1]).name} is missing")
        shutil.rmtree(trial)
        clone_files(path, trial)
        try:
            repair_clone(trial)
        except StoreDamaged as error:
            return [*found, str(error)]
        for kind, number, rest in _COMPLAINT.findall((trial / "LOG").read_text(errors="replace")):
            if rest.endswith("OK") or "repaired" in rest:
                continue
            suffix = ".log" if kind == "Log" else ".ldb"
            found.append(f"{path / f'{int(number):06}{suffix}'} is damaged: {rest}")
        if not does_open and not found:
            found.append(f"{path}/MANIFEST-* is damaged")
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    return list(dict.fromkeys(found))
