"""The ledger: blocks, state tree nodes, indices of the head chain and small records, each change
one atomic synced batch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from consensus.block import Block, Header
from consensus.codec import decode, decode_stored, encode
from consensus.crypto import hash_domain
from consensus.task import Contribute, DraftTask, PublishTask, Transfer
from consensus.transaction import SignedTransaction
from consensus.types import Hash32, Height, Signature
from node.ledger import schema
from node.ledger.schema import BlockIndex, LedgerError, Location, Meta, SchemaError
from node.ledger.store import KeyValueStore

__all__ = ["HeadMove", "Ledger", "LedgerError", "Location", "SchemaError"]


@dataclass(frozen=True, slots=True)
class HeadMove:
    """From the present head down to the fork, then up to the new head."""

    disconnected: Sequence[Hash32] = ()
    """Blocks that leave the head chain, descending from the present head."""
    connected: Sequence[Hash32] = ()
    """Blocks that join it, ascending; the last is the new head."""


def compute_block_hash(header: Header) -> Hash32:
    return hash_domain("block", encode(header))


def compute_transaction_id(transaction: SignedTransaction) -> Hash32:
    return hash_domain("transaction", encode(replace(transaction, signature=Signature(b""))))


class Ledger:
    """Single writer, many readers. Genesis is the block at height 0.

    Every change is one synced batch: after a crash the ledger is as before it or as after it.
    It is also the state tree's `NodeSource`.
    """

    def __init__(self, store: KeyValueStore) -> None:
        """Raises `SchemaError` for another version, `LedgerError` for a head that is not whole."""
        self._store = store
        self._meta: Meta | None = None
        version = store.get(schema.VERSION_KEY)
        if version is None:
            if next(store.iterate(b""), None) is not None:
                raise SchemaError("the database holds data but no schema version: it is not a ledger")
            return
        found = schema.decode_version(version)
        if found != schema.SCHEMA_VERSION:
            raise SchemaError(
                f"Expected a ledger of schema version {schema.SCHEMA_VERSION}. Got {found}: "
                "move the folder away and sync again, or run the version that wrote it."
            )
        encoded = store.get(schema.META_KEY)
        if encoded is None:
            raise LedgerError("the ledger has no head record")
        self._meta = schema.decode_meta(encoded)
        self._check_head(self._meta)

    def _check_head(self, meta: Meta) -> None:
        if self._store.get(schema.height_key(meta.height)) != meta.head:
            raise LedgerError(f"the head at height {meta.height} is not in the height index")
        for name, block in (("genesis", meta.genesis), ("head", meta.head)):
            if self._store.get(schema.block_key(block)) is None:
                raise LedgerError(f"the {name} block {block.hex()} is missing")

    def initialise(self, data: bytes, genesis: Hash32, nodes: Iterable[tuple[Hash32, bytes]]) -> None:
        """Found an empty ledger with the genesis block's bytes and the nodes of the genesis state.

        Raises `LedgerError` if it was founded before.
        """
        if self._meta is not None:
            raise LedgerError(f"the ledger was founded before, with genesis {self._meta.genesis.hex()}")
        block = decode(Block, data)
        if compute_block_hash(block.header) != genesis:
            raise LedgerError(f"the genesis block does not have the hash {genesis.hex()}")
        meta = Meta(block.header.chain_id, genesis, genesis, block.header.height)
        puts = self._build_block_puts(genesis, data, block, self._compute_index(block), nodes)
        puts += [
            (schema.VERSION_KEY, schema.encode_version(schema.SCHEMA_VERSION)),
            (schema.META_KEY, schema.encode_meta(meta)),
            (schema.height_key(meta.height), bytes(genesis)),
        ]
        self._store.write_batch(puts)
        self._meta = meta

    def check_genesis(self, genesis: Hash32) -> None:
        """Raises `LedgerError` unless this ledger was founded with that genesis block."""
        found = self._require_meta().genesis
        if found != genesis:
            raise LedgerError(f"Expected a ledger of genesis {genesis.hex()}. Got one of {found.hex()}.")

    def _require_meta(self) -> Meta:
        if self._meta is None:
            raise LedgerError("the ledger has no genesis yet")
        return self._meta

    def close(self) -> None:
        self._store.close()

    # --- head chain ---------------------------------------------------------------------------

    @property
    def chain_id(self) -> Hash32:
        return self._require_meta().chain_id

    @property
    def genesis(self) -> Hash32:
        return self._require_meta().genesis

    def get_head(self) -> Hash32 | None:
        """Hash of the head block; None before `initialise`."""
        return None if self._meta is None else self._meta.head

    @property
    def height(self) -> Height:
        """Of the head."""
        return Height(self._require_meta().height)

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
        """Whether the block is stored, in the head chain or beside it."""
        return self._store.get(schema.index_key(block)) is not None

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
        """All stored headers, parents before children: what the fork choice is rebuilt from."""
        for key, value in self._store.iterate(schema.HEADER_PREFIX):
            yield schema.decode_header_key(key)[1], decode_stored(Header, value)

    def put_block(
        self,
        block_hash: Hash32,
        data: bytes,
        new_nodes: Iterable[tuple[Hash32, bytes]],
        *,
        block: Block | None = None,
        head: HeadMove | None = None,
    ) -> None:
        """Store a valid block with the state nodes it made and, with `head`, move the head: one batch.

        `block`, the decoded `data`, spares decoding it again. Raises `LedgerError` with nothing
        changed if the parent is not stored, the hash is not the block's, or `head` does not fit.
        """
        self._require_meta()
        block = decode(Block, data) if block is None else block
        if not self.has_block(block.header.parent):
            raise LedgerError(f"the parent of block {block_hash.hex()} is not stored")
        index = self._compute_index(block)
        puts = self._build_block_puts(block_hash, data, block, index, new_nodes)
        if head is None:
            self._store.write_batch(puts)
        else:
            self._move_head(head, puts, {block_hash: index})

    def _build_block_puts(
        self,
        block_hash: Hash32,
        data: bytes,
        block: Block,
        index: BlockIndex,
        nodes: Iterable[tuple[Hash32, bytes]],
    ) -> list[tuple[bytes, bytes]]:
        header = encode(block.header)
        if hash_domain("block", header) != block_hash:
            raise LedgerError(f"the block does not have the hash {block_hash.hex()}")
        puts = [
            (schema.block_key(block_hash), data),
            (schema.header_key(block.header.height, block_hash), header),
            (schema.index_key(block_hash), schema.encode_index(index)),
        ]
        return puts + [(schema.node_key(key), value) for key, value in nodes]

    def set_head(self, new: Hash32, disconnected: Sequence[Hash32], connected: Sequence[Hash32]) -> None:
        """Move the head over stored blocks: height index, transactions, subjects and head as one batch.

        `disconnected` descends from the present head, `connected` ascends to `new`. Raises
        `LedgerError` with nothing changed if they don't lead there.
        """
        self._move_head(HeadMove(disconnected, connected), [], {}, new)

    def _move_head(
        self,
        move: HeadMove,
        puts: list[tuple[bytes, bytes]],
        added: Mapping[Hash32, BlockIndex],
        new: Hash32 | None = None,
    ) -> None:
        before = self._require_meta()
        deletes: list[bytes] = []
        head, height = before.head, before.height
        for block in move.disconnected:
            if block != head or block == before.genesis:
                raise LedgerError(f"block {block.hex()} is not the head to disconnect, {head.hex()} is")
            index = self._get_index(block)
            deletes.append(schema.height_key(height))
            deletes += [schema.transaction_key(transaction) for transaction in index.transactions]
            deletes += [schema.subject_key(subject, height, at) for at, subject in index.subjects]
            head, height = index.parent, height - 1
        for block in move.connected:
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
        if new is not None and new != head:
            raise LedgerError(f"the blocks lead to the head {head.hex()}, not to {new.hex()}")
        meta = replace(before, head=head, height=height)
        puts.append((schema.META_KEY, schema.encode_meta(meta)))
        # Deletes come first, so what stands on both branches stays indexed.
        self._store.write_batch(puts, deletes)
        self._meta = meta

    def _get_index(self, block: Hash32) -> BlockIndex:
        encoded = self._store.get(schema.index_key(block))
        if encoded is None:
            raise LedgerError(f"block {block.hex()} is not stored")
        return schema.decode_index(encoded)

    @staticmethod
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
        return (hash_domain("draft", transaction.chain_id + encode(payload.draft)),)
    if isinstance(payload, Contribute):
        return (payload.draft,)
    if isinstance(payload, PublishTask):
        return (hash_domain("task", encode(payload)), payload.draft)
    return (payload.task,)
