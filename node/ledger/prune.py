"""Pruning: what lies below a final block is dropped, in small steps that a running node takes between others.

What is left is what a node has that began with a snapshot of that block: all headers with their places, and
from the base on bodies, states and the places of transactions. First the base rises, batch by batch, each
with all that it drops; then the state nodes go that no block from the base on reaches. A crash in between
leaves nodes that nobody reads, and the record of what was swept, by which the next run knows of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from consensus.tree import TreeError, get_children
from consensus.types import ZERO_HASH, Hash32
from node.ledger.chainstore import Ledger
from node.ledger.schema import LedgerDamaged, LedgerError

SWEPT_RECORD = b"pruned/states"
"""Holds the base, 8 bytes, down to which unreachable state nodes were swept last."""
BLOCKS_AT_ONCE = 64
NODES_AT_ONCE = 512


@dataclass(slots=True)
class Pruned:
    """What a prune has dropped so far."""

    base: int = 0
    """Lowest height whose bodies, states and places of transactions are left."""
    bodies: int = 0
    nodes: int = 0
    kept_nodes: int = 0


def is_swept(ledger: Ledger) -> bool:
    """Whether no state nodes are left of what was dropped before."""
    record = ledger.get_record(SWEPT_RECORD)
    return ledger.base == (0 if record is None else int.from_bytes(record, "big"))


def prune_steps(ledger: Ledger, height: int, roots: Iterable[Hash32] = ()) -> Iterator[Pruned]:
    """Drop what is below `height`, which has to be final; every step takes some milliseconds.

    The ledger may be written between the steps. `roots`: states that stay though no block has them.
    Memory: about 150 bytes for every state node that is kept.

    Raises:
        LedgerError: the head is below `height`; nothing was changed.
        LedgerDamaged: a state that stays is not complete; none of its nodes was dropped.
    """
    if height > ledger.height:
        raise LedgerError(f"what is below {height} can't go while the head is at height {ledger.height}")
    done = Pruned(ledger.base)
    while ledger.base < height:
        top = min(height, ledger.base + BLOCKS_AT_ONCE)
        done.bodies += ledger.delete_bodies_below(top)
        done.base = ledger.base
        yield done
    with ledger.sparing_new_nodes():
        kept: set[Hash32] = set()
        for _ in _mark(ledger, roots, kept):
            done.kept_nodes = len(kept)
            yield done
        done.kept_nodes = len(kept)
        dead: list[Hash32] = []
        for number, node in enumerate(ledger.iterate_nodes(), 1):
            if node not in kept:
                dead.append(node)
            if len(dead) >= NODES_AT_ONCE or not number % (8 * NODES_AT_ONCE):
                done.nodes += ledger.delete_nodes(dead)
                dead = []
                yield done
        done.nodes += ledger.delete_nodes(dead)
    ledger.put_record(SWEPT_RECORD, done.base.to_bytes(8, "big"))
    yield done


def _mark(ledger: Ledger, roots: Iterable[Hash32], kept: set[Hash32]) -> Iterator[None]:
    """Every node of `roots` and of the states from the base on, in the head chain and beside it."""
    waiting = [root for root in roots if root != ZERO_HASH]
    for _, header in ledger.iterate_headers(ledger.base):
        if header.state_root != ZERO_HASH:
            waiting.append(header.state_root)
        # Older states share most of their nodes with the next: visiting one by one keeps the list short.
        yield from _walk(ledger, waiting, kept)
    yield from _walk(ledger, waiting, kept)


def _walk(ledger: Ledger, waiting: list[Hash32], kept: set[Hash32]) -> Iterator[None]:
    while waiting:
        node = waiting.pop()
        if node in kept:
            continue
        data = ledger.get_node(node)
        if data is None:
            raise LedgerDamaged(f"state node {node.hex()} is missing: nothing was swept")
        kept.add(node)
        try:
            waiting += get_children(data)
        except TreeError as error:
            raise LedgerDamaged(f"state node {node.hex()}: {error}") from error
        if not len(kept) % NODES_AT_ONCE:
            yield
