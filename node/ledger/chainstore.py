"""The ledger: blocks, state tree nodes, indices of the head chain and small records, each change
one atomic synced batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from consensus.block import Block, Header
from consensus.codec import decode_stored, encode
from consensus.crypto import hash_domain
from consensus.identifiers import compute_draft_hash, compute_task_id
from consensus.task import Contribute, DraftTask, PublishTask, Transfer
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import Hash32, Height
from node.ledger import schema
from node.ledger.schema import BlockIndex, LedgerError, Location, Meta, SchemaError
from node.ledger.store import KeyValueStore

__all__ = ["HeadChange", "Ledger", "LedgerError", "Location", "SchemaError"]


@dataclass(frozen=True, slots=True)
class HeadChange:
    """From the present head down to the fork, then up to the new head."""

    connected: Sequence[Hash32]
    """Blocks that join the head chain, ascending; the last is the new head."""
    disconnected: Sequence[Hash32] = ()
    """Blocks that leave it, descending from the present head."""


class Ledger:
    """Single writer, many readers. Genesis is height 0 with the chain id as its hash; it has no block.

    Every change is one synced batch: after a crash the ledger is as before it or as after it.
    It is also the state tree's `NodeSource`.
    """

    def __init__(self, store: KeyValueStore, meta: Meta) -> None:
        """Use `Ledger.open`."""
        self._store = store
        self._meta = meta

    @classmethod
    def open(
        cls, store: KeyValueStore, chain_id: Hash32, genesis_nodes: Mapping[Hash32, bytes] | None = None
    ) -> "Ledger":
        """Open a ledger, or found it with the nodes of the genesis state.

        Raises:
            SchemaError: another version.
            LedgerError: another chain, or a head that is not whole.
        """
        version = store.get(schema.VERSION_KEY)
        if version is None:
            return cls(store, _found(store, chain_id, genesis_nodes or {}))
        found = schema.decode_version(version)
        if found != schema.SCHEMA_VERSION:
            raise SchemaError(
                f"Expected a ledger of schema version {schema.SCHEMA_VERSION}. Got {found}: "
                "move the folder away and sync again, or run the version that wrote it."
            )
        encoded = store.get(schema.META_KEY)
        if encoded is None:
            raise LedgerError("the ledger has no head record")
        meta = schema.decode_meta(encoded)
        if meta.chain_id != chain_id:
            raise LedgerError(
                f"Expected chain {chain_id.hex()}. Got a ledger of chain {meta.chain_id.hex()}."
            )
        if store.get(schema.height_key(meta.height)) != meta.head:
            raise LedgerError(f"the head at height {meta.height} is not in the height index")
        if meta.height and store.get(schema.block_key(meta.head)) is None:
            raise LedgerError(f"the head block {meta.head.hex()} is missing")
        return cls(store, meta)

    def close(self) -> None:
        self._store.close()

    # --- head chain ---------------------------------------------------------------------------

    @property
    def chain_id(self) -> Hash32:
        return self._meta.chain_id

    @property
    def head(self) -> Hash32:
        """Hash of the head block; the chain id when there is none."""
        return self._meta.head

    @property
    def height(self) -> Height:
        """Of the head."""
        return Height(self._meta.height)

    def get_hash_by_height(self, height: int) -> Hash32 | None:
        """The head chain's block at `height`."""
        found = self._store.get(schema.height_key(height)) if height >= 0 else None
        return None if found is None else Hash32(found)

    def get_hashes(self, from_height: int, count: int) -> list[Hash32]:
        """At most `count` hashes of the head chain, ascending from `from_height`."""
        hashes: list[Hash32] = []
        for height in range(max(0, from_height), min(from_height + count, self.height + 1)):
            found = self.get_hash_by_height(height)
            if found is None:
                break
            hashes.append(found)
        return hashes

    def find_transaction(self, transaction: Hash32) -> Location | None:
        """Where the head chain holds a transaction."""
        found = self._store.get(schema.transaction_key(transaction))
        if found is None:
            return None
        block, position = schema.decode_location(found)
        return Location(block, self._get_index(block).height, position)

    def iterate_subject(self, subject: Hash32) -> Iterator[Location]:
        """Everything in the head chain about one task (by task id) or one draft (by draft hash),
        oldest first. Publications stand under both; work has `WORK_POSITION`."""
        for key, block in self._store.iterate(schema.subject_prefix(subject)):
            height, position = schema.decode_subject_key(key)
            yield Location(Hash32(block), height, position)

    # --- blocks -------------------------------------------------------------------------------

    def has_block(self, block: Hash32) -> bool:
        """Whether the block is stored, in the head chain or beside it; genesis counts as stored."""
        return block == self._meta.chain_id or self._store.get(schema.index_key(block)) is not None

    def get_block(self, block: Hash32) -> bytes | None:
        """The block's canonical bytes."""
        return self._store.get(schema.block_key(block))

    def get_header(self, block: Hash32) -> Header | None:
        encoded = self._store.get(schema.index_key(block))
        if encoded is None:
            return None
        header = self._store.get(schema.header_key(schema.decode_index(encoded).height, block))
        if header is None:
            raise SchemaError(f"the header of block {block.hex()} is missing")
        return decode_stored(Header, header)

    def get_transaction_ids(self, block: Hash32) -> tuple[Hash32, ...] | None:
        encoded = self._store.get(schema.index_key(block))
        return None if encoded is None else schema.decode_index(encoded).transactions

    def iterate_headers(self) -> Iterator[tuple[Hash32, Header]]:
        """All stored headers (genesis has none), parents before children, for the fork choice."""
        for key, value in self._store.iterate(schema.HEADER_PREFIX):
            yield schema.decode_header_key(key)[1], decode_stored(Header, value)

    def put_block(
        self,
        block: Block,
        new_nodes: Mapping[Hash32, bytes],
        *,
        encoded: bytes | None = None,
        head: HeadChange | None = None,
    ) -> Hash32:
        """Store a valid block with the state nodes it made and, with `head`, move the head: one batch.

        `encoded` spares encoding the block again. Returns the block's hash. Raises `LedgerError` with
        nothing changed if the parent is not stored or `head` does not fit.
        """
        header = block.header
        encoded_header = encode(header)
        block_hash = hash_domain("block", encoded_header)
        if not self.has_block(header.parent):
            raise LedgerError(f"the parent {header.parent.hex()} of block {block_hash.hex()} is not stored")
        index = _compute_index(block)
        puts = [
            (schema.block_key(block_hash), encode(block) if encoded is None else encoded),
            (schema.header_key(header.height, block_hash), encoded_header),
            (schema.index_key(block_hash), schema.encode_index(index)),
        ]
        puts += [(schema.node_key(key), value) for key, value in new_nodes.items()]
        if head is None:
            self._store.write_batch(puts)
        else:
            self._move_head(head, puts, {block_hash: index})
        return block_hash

    def set_head(self, change: HeadChange) -> None:
        """Move the head over stored blocks: height index, transactions, subjects and head as one batch.

        Raises `LedgerError` with nothing changed if the blocks don't follow each other.
        """
        self._move_head(change, [], {})

    def _move_head(
        self, change: HeadChange, puts: list[tuple[bytes, bytes]], added: Mapping[Hash32, BlockIndex]
    ) -> None:
        deletes: list[bytes] = []
        head, height = self._meta.head, self._meta.height
        for block in change.disconnected:
            if block != head:
                raise LedgerError(f"block {block.hex()} is not the head to disconnect, {head.hex()} is")
            index = self._get_index(block)
            deletes.append(schema.height_key(height))
            deletes += [schema.transaction_key(transaction) for transaction in index.transactions]
            deletes += [schema.subject_key(subject, height, at) for at, subject in index.subjects]
            head, height = index.parent, height - 1
        for block in change.connected:
            index = added[block] if block in added else self._get_index(block)
            if index.parent != head or index.height != height + 1:
                raise LedgerError(f"block {block.hex()} does not follow {head.hex()} at height {height}")
            head, height = block, index.height
            puts.append((schema.height_key(height), bytes(block)))
            puts += [
                (schema.transaction_key(transaction), schema.encode_location(block, at))
                for at, transaction in enumerate(index.transactions)
            ]
            puts += [
                (schema.subject_key(subject, height, at), bytes(block)) for at, subject in index.subjects
            ]
        meta = Meta(self._meta.chain_id, head, height)
        puts.append((schema.META_KEY, schema.encode_meta(meta)))
        # Deletes come first, so what stands on both branches stays indexed.
        self._store.write_batch(puts, deletes)
        self._meta = meta

    def _get_index(self, block: Hash32) -> BlockIndex:
        encoded = self._store.get(schema.index_key(block))
        if encoded is None:
            raise LedgerError(f"block {block.hex()} is not stored")
        return schema.decode_index(encoded)

    # --- state nodes and records --------------------------------------------------------------

    def get_node(self, node: Hash32) -> bytes | None:
        """A state tree node by its hash (`NodeSource`)."""
        return self._store.get(schema.node_key(node))

    def put_record(self, key: bytes, value: bytes) -> None:
        """Store a small record of the node, synced: it survives a power failure once this returns."""
        self._store.write_batch([(schema.record_key(key), value)])

    def put_records(self, records: Mapping[bytes, bytes], deletes: Sequence[bytes] = ()) -> None:
        """Several records as one atomic synced batch."""
        self._store.write_batch(
            [(schema.record_key(key), value) for key, value in records.items()],
            [schema.record_key(key) for key in deletes],
        )

    def get_record(self, key: bytes) -> bytes | None:
        return self._store.get(schema.record_key(key))

    def delete_record(self, key: bytes) -> None:
        self._store.write_batch([], [schema.record_key(key)])

    def iterate_records(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Records whose key starts with `prefix`, ascending; keys without the table's prefix."""
        for key, value in self._store.iterate(schema.record_key(prefix)):
            yield key[1:], value


def _compute_subjects(transaction: SignedTransaction) -> tuple[Hash32, ...]:
    payload = transaction.payload
    if isinstance(payload, Transfer):
        return ()
    if isinstance(payload, DraftTask):
        return (compute_draft_hash(transaction.chain_id, payload.draft),)
    if isinstance(payload, Contribute):
        return (payload.draft,)
    if isinstance(payload, PublishTask):
        return (compute_task_id(payload), payload.draft)
    return (payload.task,)


def _compute_index(block: Block) -> BlockIndex:
    subjects: list[tuple[int, Hash32]] = []
    for at, transaction in enumerate(block.body.transactions):
        subjects += [(at, subject) for subject in _compute_subjects(transaction)]
    if block.body.work is not None:
        subjects.append((schema.WORK_POSITION, block.body.work.task))
    return BlockIndex(
        height=block.header.height,
        parent=block.header.parent,
        transactions=tuple(map(compute_transaction_id, block.body.transactions)),
        subjects=tuple(subjects),
    )


def _found(store: KeyValueStore, chain_id: Hash32, nodes: Mapping[Hash32, bytes]) -> Meta:
    if next(store.iterate(b""), None) is not None:
        raise SchemaError("the database holds data but no schema version: it is not a ledger")
    meta = Meta(chain_id, chain_id, 0)
    puts = [
        (schema.VERSION_KEY, schema.encode_version(schema.SCHEMA_VERSION)),
        (schema.META_KEY, schema.encode_meta(meta)),
        (schema.height_key(0), bytes(chain_id)),
    ]
    store.write_batch(puts + [(schema.node_key(key), value) for key, value in nodes.items()])
    return meta
