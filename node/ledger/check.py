"""`ledger check`: a full walk over everything stored, for operators and for the tests."""

from collections.abc import Iterator

from consensus.block import Block
from consensus.codec import CodecError, decode
from consensus.identifiers import compute_block_hash
from consensus.transaction import compute_transaction_id
from consensus.types import ZERO_HASH
from node.ledger.chainstore import Ledger
from node.ledger.schema import LedgerError
from node.ledger.store import StoreError


def check_ledger(ledger: Ledger) -> Iterator[str]:
    """Yield every inconsistency found, as a sentence; nothing when the ledger is whole.

    Checks that each header's hash, block bytes and parent agree, that the height index is exactly
    the head's ancestry, and that the head chain's transactions are indexed where they stand.
    """
    try:
        yield from _check_blocks(ledger)
        yield from _check_head_chain(ledger)
    except (LedgerError, StoreError, CodecError) as error:
        yield str(error)


def _check_blocks(ledger: Ledger) -> Iterator[str]:
    for block_hash, header in ledger.iterate_headers():
        encoded = ledger.get_block(block_hash)
        if compute_block_hash(header) != block_hash:
            yield f"the header stored as {block_hash.hex()} has another hash"
        if encoded is None:
            yield f"block {block_hash.hex()} at height {header.height} is missing"
            continue
        block = decode(Block, encoded)
        if block.header != header:
            yield f"block {block_hash.hex()} differs from its header"
        if not ledger.has_block(header.parent):
            yield f"the parent of block {block_hash.hex()} is missing"
        if header.state_root != ZERO_HASH and ledger.get_node(header.state_root) is None:
            yield f"the state root of block {block_hash.hex()} is missing"
        identifiers = tuple(map(compute_transaction_id, block.body.transactions))
        if ledger.get_transaction_ids(block_hash) != identifiers:
            yield f"the transactions of block {block_hash.hex()} are not those of its index"


def _check_head_chain(ledger: Ledger) -> Iterator[str]:
    expected = ledger.head
    for height in range(ledger.height, -1, -1):
        if ledger.get_hash_by_height(height) != expected:
            yield f"the height index at {height} is not the head's ancestor"
            return
        if height == 0:
            break
        for at, transaction in enumerate(ledger.get_transaction_ids(expected) or ()):
            location = ledger.find_transaction(transaction)
            # A later block of the chain can't repeat it, so it stands exactly here.
            if location is None or (location.block, location.position) != (expected, at):
                yield f"transaction {transaction.hex()} of block {expected.hex()} is not indexed there"
        header = ledger.get_header(expected)
        if header is None:
            yield f"the header of block {expected.hex()} is missing"
            return
        expected = header.parent
    if expected != ledger.chain_id:
        yield "the head chain does not begin at genesis"
    if ledger.get_hash_by_height(ledger.height + 1) is not None:
        yield "the height index goes on above the head"
