"""Taking over a snapshot: state nodes as they come, then the ancestry and the block itself.

Nothing of it counts before the last batch, which makes the block the head and the base. Until then the ledger
is an empty one with rows that nobody reads: state nodes by their hashes, and headers from the top downwards,
so that none of them ever has a parent that is stored.
"""

from collections.abc import Iterable, Mapping, Sequence

from consensus.block import Block, Header
from consensus.codec import decode_stored, encode
from consensus.identifiers import compute_block_hash
from consensus.types import Hash32
from node.ledger import schema
from node.ledger.chainstore import Ledger
from node.ledger.indexing import compute_index
from node.ledger.portable import join_items
from node.ledger.schema import BlockIndex, LedgerError

HEADERS_AT_ONCE = 1_024
_STAGED = b"snapshot/headers/"

Pairs = list[tuple[bytes, bytes]]


def put_nodes(ledger: Ledger, nodes: Mapping[Hash32, bytes]) -> None:
    """Store state nodes whose hashes were checked: one synced batch."""
    ledger.store.write_batch([(schema.node_key(key), value) for key, value in nodes.items()])


def stage_headers(ledger: Ledger, headers: Sequence[Header]) -> None:
    """Keep a range of headers, ascending in itself, until the snapshot is taken over."""
    key = _STAGED + headers[0].height.to_bytes(8, "big")
    ledger.put_record(key, join_items([encode(header) for header in headers]))


def _decode_range(record: bytes) -> list[Header]:
    headers, at = [], 0
    while at < len(record):
        end = at + 4 + int.from_bytes(record[at : at + 4], "big")
        headers.append(decode_stored(Header, record[at + 4 : end]))
        at = end
    return headers


def _get_keys(ledger: Ledger) -> list[bytes]:
    """Of the ranges kept so far, ascending."""
    return [key for key, _ in ledger.iterate_records(_STAGED)]


def get_lowest_staged(ledger: Ledger) -> Header | None:
    """Where the way down has come to."""
    first = next(ledger.iterate_records(_STAGED), None)
    return None if first is None else _decode_range(first[1])[0]


def drop_staged(ledger: Ledger) -> None:
    """Forget the kept headers, of a snapshot that is given up."""
    keys = _get_keys(ledger)
    if keys:
        ledger.put_records({}, keys)


def take_over(ledger: Ledger, block: Block, data: bytes, records: Iterable[bytes] = ()) -> None:
    """Make a block whose state is stored, and whose whole ancestry is staged, the head and the base.

    `records` are deleted with the last batch. May be repeated after a crash. Raises `LedgerError` if the
    staged headers do not lead from genesis to the block.
    """
    header = block.header
    block_hash = compute_block_hash(header)
    keys = _get_keys(ledger)
    expected = header.parent
    rows: Pairs = []
    for key in reversed(keys):
        for below in reversed(_decode_range(ledger.get_record(key) or b"")):
            found = compute_block_hash(below)
            if found != expected:
                raise LedgerError(f"the header at height {below.height} does not lead to the snapshot")
            rows += _build_rows(found, below, BlockIndex(below.height, below.parent, (), ()))
            expected = below.parent
        if len(rows) >= 3 * HEADERS_AT_ONCE and keys[0] != key:
            ledger.store.write_batch(rows)
            rows = []
    if expected != ledger.chain_id:
        raise LedgerError("the headers below the snapshot do not reach genesis")
    index = compute_index(block)
    rows += _build_rows(block_hash, header, index)
    rows.append((schema.block_key(block_hash), data))
    rows += [
        (schema.transaction_key(transaction), schema.encode_location(block_hash, at))
        for at, transaction in enumerate(index.transactions)
    ]
    rows += [
        (schema.subject_key(subject, header.height, at), bytes(block_hash)) for at, subject in index.subjects
    ]
    deletes = [schema.record_key(key) for key in (*keys, *records)]
    ledger.adopt(block_hash, header.height, rows, deletes)


def _build_rows(block_hash: Hash32, header: Header, index: BlockIndex) -> Pairs:
    return [
        (schema.header_key(header.height, block_hash), encode(header)),
        (schema.index_key(block_hash), schema.encode_index(index)),
        (schema.height_key(header.height), bytes(block_hash)),
    ]
