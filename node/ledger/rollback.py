"""Taking the head of a stopped node's ledger back to an earlier block, and forgetting all blocks above it.

What was signed is no part of that: sign-state, openings and all other records stay, so that the node that
follows the same way again repeats its words and gives no others.
"""

from dataclasses import dataclass

from consensus.state import State
from consensus.tree import Tree
from consensus.types import Height
from consensus.vote import Checkpoint
from node.ledger.chainstore import HeadChange, Ledger
from node.ledger.schema import LedgerError

UNDONE_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What was undone."""

    old_height: int
    head: Checkpoint
    forgotten: int
    """Blocks that are gone, those beside the head chain included."""
    final: Checkpoint
    """The highest block that the ledger knew to be final before; it may lie above the new head."""


def find_final(ledger: Ledger) -> Checkpoint:
    """The highest block that any stored block's state calls final."""
    final = Checkpoint(Height(0), ledger.chain_id)
    header = ledger.get_header(ledger.head)
    if header is not None:
        final = State(Tree(header.state_root, ledger)).get_finality().finalized
    for _, other in ledger.iterate_headers(max(ledger.base, final.height + 1)):
        found = State(Tree(other.state_root, ledger)).get_finality().finalized
        final = max(final, found, key=lambda checkpoint: checkpoint.height)
    return final


def roll_back(ledger: Ledger, height: int, final: Checkpoint, *, below_final: bool = False) -> RolledBack:
    """Make the head chain's block at `height` the head and delete all blocks above it; `final`: `find_final`.

    Killed in between, the ledger is whole: called again it goes on, and a node would start from what is left.

    Raises: LedgerError, with nothing changed, if `height` is above the head's, below the base, or, but for
    `below_final`, below the final block.
    """
    if not 0 <= height <= ledger.height:
        raise LedgerError(f"the head is at height {ledger.height}: nothing to undo down to {height}")
    if height < ledger.base:
        raise LedgerError(f"bodies and states begin at height {ledger.base}: no head can stand below it")
    old = int(ledger.height)
    if height < final.height and not below_final:
        raise LedgerError(
            f"height {height} is below the final block at {final.height}: a node that forgets what is final "
            "may be led onto another branch by a third of stake that lies"
        )
    while ledger.height > height:
        lowest = max(height, ledger.height - UNDONE_AT_ONCE)
        blocks = ledger.get_hashes(lowest + 1, ledger.height - lowest)
        ledger.set_head(HeadChange((), tuple(reversed(blocks))))
    forgotten = ledger.delete_blocks_above(height)
    return RolledBack(old, Checkpoint(ledger.height, ledger.head), forgotten, final)
