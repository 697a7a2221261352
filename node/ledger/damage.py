"""Damage: how it is named, what the operator is told to do, and how it is found among other errors."""

from dataclasses import dataclass

from consensus.tree import TreeError
from consensus.types import Hash32
from node.disk import REMEDY, is_full
from node.ledger.schema import LedgerDamaged, LedgerError
from node.ledger.store import StoreDamaged, StoreError, StoreFull

EXIT_DAMAGED = 3
"""Exit status of a command that found the ledger damaged; `bmif run` ends with it too."""

EXIT_DISK_FULL = 5
"""Exit status of a command that found no room on the disk; `bmif run` ends with it too."""

REBUILD = (
    "stop the node, look with `bmif ledger check`, then `bmif ledger rebuild`: it moves the damaged ledger "
    "aside, keeps the node's own records where they can be read, and the node syncs again from its peers"
)


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not as it must be."""

    table: str
    """Name of the table (`schema`), `file` or `database`."""
    what: str
    """A sentence without its full stop."""
    key: bytes = b""
    height: int | None = None
    block: Hash32 | None = None
    remedy: str = REBUILD

    def __str__(self) -> str:
        return f"{self.table}: {self.what}"


def find_ledger_error(error: BaseException) -> Exception | None:
    """The error of the ledger, or of a full disk, among `error`, those of its group, and what caused them."""
    if isinstance(error, StoreError | LedgerError | TreeError):
        return error
    if isinstance(error, OSError) and is_full(error):
        return error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            if (found := find_ledger_error(inner)) is not None:
                return found
    return None if error.__cause__ is None else find_ledger_error(error.__cause__)


def get_exit_status(error: Exception) -> int:
    """By which a command ends that met it."""
    if isinstance(error, StoreFull | OSError):
        return EXIT_DISK_FULL
    return EXIT_DAMAGED if is_damage(error) else 1


def is_damage(error: Exception) -> bool:
    """Whether it says that something is not as it was stored, and not just that something can't be done."""
    return isinstance(error, StoreDamaged | LedgerDamaged | TreeError)


def describe(error: Exception) -> str:
    """What is wrong and, for damage, what to do: one message."""
    if isinstance(error, OSError):
        return f"{error}: {REMEDY}"
    if not is_damage(error):
        return str(error)
    return f"the ledger is damaged: {error}. Remedy: {REBUILD}."
