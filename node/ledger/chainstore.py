"""The ledger: blocks, state tree nodes, indices of the head chain and small records, each change
one atomic synced batch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from consensus.block import Block, Header
from consensus.codec import CodecError, decode_stored, encode
from consensus.crypto import hash_domain
from consensus.types import Hash32, Height
from node.crashpoints import CrashPoint, reach
from node.ledger import schema
from node.ledger.indexing import compute_index
from node.ledger.quick import check_quickly
from node.ledger.schema import BlockIndex, LedgerDamaged, LedgerError, Location, Meta, SchemaError
from node.ledger.store import KeyValueStore, StoreDamaged

__all__ = ["HeadChange", "Ledger", "LedgerDamaged", "LedgerError", "Location", "SchemaError"]

T = TypeVar("T")

DELETED_AT_ONCE = 256
"""Bodies that one batch deletes, about."""
SIGN_STATE_PREFIX = b"signstate/"
SIGN_STATE_UNKNOWN = b"signstate/unknown"
"""There while the voter can't know what it signed: it starts in its safe mode."""

_RECORD_POINTS = {
    SIGN_STATE_PREFIX: (CrashPoint.SIGN_STATE_PUTTING, CrashPoint.SIGN_STATE_PUT),
    b"opening/": (CrashPoint.OPENING_PUTTING, CrashPoint.OPENING_PUT),
    b"verdict/": (CrashPoint.VERDICT_PUTTING, CrashPoint.VERDICT_PUT),
    b"claim/": (CrashPoint.CLAIM_PUTTING, CrashPoint.CLAIM_PUT),
}


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
        self._damage_listeners: list[Callable[[Exception], None]] = []

    @classmethod
    def open(
        cls, store: KeyValueStore, chain_id: Hash32, genesis_nodes: Mapping[Hash32, bytes] | None = None
    ) -> "Ledger":
        """Open a ledger, or found it with the nodes of the genesis state.

        Raises:
            SchemaError: another version.
            LedgerDamaged: the quick check found something (`node.ledger.quick`).
            LedgerError: another chain.
            StoreDamaged: the store can't read what it holds.
        """
        ledger = cls.open_unchecked(store, chain_id, genesis_nodes)
        damages = check_quickly(store, ledger._meta, genesis_nodes or {})
        if damages:
            raise LedgerDamaged("; ".join(map(str, damages)))
        return ledger

    @classmethod
    def open_unchecked(
        cls, store: KeyValueStore, chain_id: Hash32, genesis_nodes: Mapping[Hash32, bytes] | None = None
    ) -> "Ledger":
        """`open` without the quick check, to look into a ledger that may be damaged."""
        version = store.get(schema.VERSION_KEY)
        if version is None:
            return cls(store, _found(store, chain_id, genesis_nodes or {}))
        found = schema.decode_version(version)
        if not 1 <= found <= schema.SCHEMA_VERSION:
            raise SchemaError(
                f"Expected a ledger of schema version {schema.SCHEMA_VERSION}. Got {found}: run the version "
                "of bmif that wrote it, or `bmif ledger rebuild` to sync again from peers."
            )
        encoded = store.get(schema.META_KEY)
        if encoded is None:
            raise LedgerDamaged("the head record is missing")
        meta = schema.decode_meta(encoded)
        if meta.chain_id != chain_id:
            raise LedgerError(
                f"Expected chain {chain_id.hex()}. Got a ledger of chain {meta.chain_id.hex()}."
            )
        if found != schema.SCHEMA_VERSION:
            _migrate(store, meta)
        return cls(store, meta)

    @property
    def store(self) -> KeyValueStore:
        """What is below, for checks."""
        return self._store

    def on_damage(self, listener: Callable[[Exception], None]) -> None:
        """Call `listener` whenever a read finds that the ledger is damaged: the node must not go on then."""
        self._damage_listeners.append(listener)

    def _tell(self, error: Exception) -> None:
        for listener in self._damage_listeners:
            listener(error)

    def _get(self, key: bytes) -> bytes | None:
        try:
            return self._store.get(key)
        except StoreDamaged as error:
            self._tell(error)
            raise

    def _iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        # Not a generator itself: the store's snapshot is of this call.
        return self._guard(self._store.iterate(prefix))

    def _guard(self, items: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from items
        except StoreDamaged as error:
            self._tell(error)
            raise

    def _build_damage(self, what: str) -> LedgerDamaged:
        error = LedgerDamaged(what)
        self._tell(error)
        return error

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

    @property
    def base(self) -> Height:
        """Lowest height whose bodies are kept; 0 when nothing was ever left out."""
        return Height(self._meta.base)

    def get_hash_by_height(self, height: int) -> Hash32 | None:
        """The head chain's block at `height`."""
        found = self._get(schema.height_key(height)) if height >= 0 else None
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
        found = self._get(schema.transaction_key(transaction))
        if found is None:
            return None
        block, position = schema.decode_location(found)
        return Location(block, self._get_index(block).height, position)

    def iterate_subject(self, subject: Hash32) -> Iterator[Location]:
        """Everything in the head chain about one task (by task id) or one draft (by draft hash),
        oldest first. Publications stand under both; work has `WORK_POSITION`."""
        for key, block in self._iterate(schema.subject_prefix(subject)):
            height, position = schema.decode_subject_key(key)
            yield Location(Hash32(block), height, position)

    # --- blocks -------------------------------------------------------------------------------

    def has_block(self, block: Hash32) -> bool:
        """Whether the block is stored, in the head chain or beside it; genesis counts as stored."""
        return block == self._meta.chain_id or self._get(schema.index_key(block)) is not None

    def get_block(self, block: Hash32) -> bytes | None:
        """The block's canonical bytes; None if it is not stored, or below the base."""
        encoded = self._get(schema.block_key(block))
        if encoded is None:
            index = self._get(schema.index_key(block))
            if index is not None and schema.decode_index(index).height >= self.base:
                raise self._build_damage(f"the body of block {block.hex()} is missing")
        return encoded

    def load_block(self, block: Hash32) -> Block | None:
        """`get_block`, decoded."""
        encoded = self.get_block(block)
        return None if encoded is None else self._decode(Block, encoded, f"block {block.hex()}")

    def _decode(self, cls: type[T], encoded: bytes, what: str) -> T:
        try:
            return decode_stored(cls, encoded)
        except CodecError as error:
            raise self._build_damage(f"{what} is damaged: {error}") from error

    def get_header(self, block: Hash32) -> Header | None:
        encoded = self._get(schema.index_key(block))
        if encoded is None:
            return None
        header = self._get(schema.header_key(schema.decode_index(encoded).height, block))
        if header is None:
            raise self._build_damage(f"the header of block {block.hex()} is missing")
        return self._decode(Header, header, f"the header of block {block.hex()}")

    def get_transaction_ids(self, block: Hash32) -> tuple[Hash32, ...] | None:
        encoded = self._get(schema.index_key(block))
        return None if encoded is None else schema.decode_index(encoded).transactions

    def iterate_headers(self) -> Iterator[tuple[Hash32, Header]]:
        """All stored headers (genesis has none), parents before children, for the fork choice."""
        for key, value in self._iterate(schema.HEADER_PREFIX):
            yield schema.decode_header_key(key)[1], self._decode(Header, value, f"the header {key.hex()}")

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
        index = compute_index(block)
        puts = [
            (schema.block_key(block_hash), encode(block) if encoded is None else encoded),
            (schema.header_key(header.height, block_hash), encoded_header),
            (schema.index_key(block_hash), schema.encode_index(index)),
        ]
        puts += [(schema.node_key(key), value) for key, value in new_nodes.items()]
        if head is None:
            self._write(CrashPoint.BLOCK_STORING, CrashPoint.BLOCK_STORED, puts)
        else:
            points = (CrashPoint.HEAD_BLOCK_STORING, CrashPoint.HEAD_BLOCK_STORED)
            self._move_head(head, points, puts, {block_hash: index})
        return block_hash

    def set_head(self, change: HeadChange) -> None:
        """Move the head over stored blocks: height index, transactions, subjects and head as one batch.

        Raises `LedgerError` with nothing changed if the blocks don't follow each other.
        """
        self._move_head(change, (CrashPoint.HEAD_MOVING, CrashPoint.HEAD_MOVED), [], {})

    def _write(
        self,
        before: CrashPoint,
        after: CrashPoint,
        puts: Iterable[tuple[bytes, bytes]],
        deletes: Iterable[bytes] = (),
    ) -> None:
        reach(before)
        self._store.write_batch(puts, deletes)
        reach(after)

    def _move_head(
        self,
        change: HeadChange,
        points: tuple[CrashPoint, CrashPoint],
        puts: list[tuple[bytes, bytes]],
        added: Mapping[Hash32, BlockIndex],
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
        if height < self._meta.base:
            raise LedgerError(
                f"the head can't move below the base, {self._meta.base}: bodies are missing there"
            )
        meta = replace(self._meta, head=head, height=height)
        puts.append((schema.META_KEY, schema.encode_meta(meta)))
        # Deletes come first, so what stands on both branches stays indexed.
        self._write(*points, puts, deletes)
        self._meta = meta

    def adopt(
        self,
        head: Hash32,
        height: int,
        puts: Iterable[tuple[bytes, bytes]],
        deletes: Iterable[bytes] = (),
    ) -> None:
        """Move an empty ledger onto a block that, with its state and ancestry, is stored or among `puts`
        (`node.ledger.snapshot`); the base is its height. One batch. Raises `LedgerError` if it is not empty.
        """
        if self.height:
            raise LedgerError(f"a ledger with a head at height {self.height} takes over no snapshot")
        meta = replace(self._meta, head=head, height=height, base=height)
        meta_put = (schema.META_KEY, schema.encode_meta(meta))
        self._write(CrashPoint.HEAD_MOVING, CrashPoint.HEAD_MOVED, [*puts, meta_put], deletes)
        self._meta = meta

    def delete_bodies_below(self, height: int) -> int:
        """Delete the bodies of all blocks below `height` and raise the base to it; how many they were.

        Headers, indices, state and the transactions' places stay. Each batch is atomic and raises the base
        past what it deletes, so a crash leaves fewer deleted and nothing else. Raises `LedgerError` with
        nothing changed if `height` is above the head's.
        """
        if height > self.height:
            raise LedgerError(f"bodies below {height} can't go while the head is at height {self.height}")
        deleted, deletes = 0, list[bytes]()
        for at in range(self.base, height):
            prefix = schema.header_prefix(at)
            deletes += [
                schema.block_key(schema.decode_header_key(key)[1]) for key, _ in self._iterate(prefix)
            ]
            if len(deletes) >= DELETED_AT_ONCE or at == height - 1:
                meta = replace(self._meta, base=at + 1)
                puts = [(schema.META_KEY, schema.encode_meta(meta))]
                self._write(CrashPoint.BODIES_DELETING, CrashPoint.BODIES_DELETED, puts, deletes)
                self._meta = meta
                deleted += len(deletes)
                deletes = []
        return deleted

    def _get_index(self, block: Hash32) -> BlockIndex:
        encoded = self._get(schema.index_key(block))
        if encoded is None:
            raise LedgerError(f"block {block.hex()} is not stored")
        return schema.decode_index(encoded)

    # --- state nodes and records --------------------------------------------------------------

    def get_node(self, node: Hash32) -> bytes | None:
        """A state tree node by its hash (`NodeSource`), which is checked."""
        encoded = self._get(schema.node_key(node))
        if encoded is not None and hash_domain("tree", encoded) != node:
            raise self._build_damage(f"state node {node.hex()} has another hash")
        return encoded

    def put_record(self, key: bytes, value: bytes) -> None:
        """Store a small record of the node, synced: it survives a power failure once this returns."""
        self.put_records({key: value})

    def put_records(self, records: Mapping[bytes, bytes], deletes: Sequence[bytes] = ()) -> None:
        """Several records as one atomic synced batch."""
        first = next(iter((*records, *deletes)), b"")
        self._write(
            *_get_record_points(first),
            [(schema.record_key(key), value) for key, value in records.items()],
            [schema.record_key(key) for key in deletes],
        )

    def get_record(self, key: bytes) -> bytes | None:
        return self._get(schema.record_key(key))

    def delete_record(self, key: bytes) -> None:
        self.put_records({}, [key])

    def iterate_records(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Records whose key starts with `prefix`, ascending; keys without the table's prefix."""
        for key, value in self._iterate(schema.record_key(prefix)):
            yield key[1:], value


def _get_record_points(key: bytes) -> tuple[CrashPoint, CrashPoint]:
    for prefix, points in _RECORD_POINTS.items():
        if key.startswith(prefix):
            return points
    return CrashPoint.RECORD_PUTTING, CrashPoint.RECORD_PUT


def _found(store: KeyValueStore, chain_id: Hash32, nodes: Mapping[Hash32, bytes]) -> Meta:
    if next(store.iterate(b""), None) is not None:
        raise SchemaError(
            "the database holds data but no schema version: it is not a ledger, or one that is damaged "
            "(`bmif ledger rebuild` moves it aside)"
        )
    meta = Meta(chain_id, chain_id, 0)
    puts = [
        (schema.VERSION_KEY, schema.encode_version(schema.SCHEMA_VERSION)),
        (schema.META_KEY, schema.encode_meta(meta)),
        (schema.height_key(0), bytes(chain_id)),
    ]
    reach(CrashPoint.LEDGER_FOUNDING)
    store.write_batch(puts + [(schema.node_key(key), value) for key, value in nodes.items()])
    reach(CrashPoint.LEDGER_FOUNDED)
    return meta


def _migrate(store: KeyValueStore, meta: Meta) -> None:
    """From version 1, whose head record has no base."""
    reach(CrashPoint.LEDGER_MIGRATING)
    store.write_batch(
        [
            (schema.VERSION_KEY, schema.encode_version(schema.SCHEMA_VERSION)),
            (schema.META_KEY, schema.encode_meta(meta)),
        ]
    )
    reach(CrashPoint.LEDGER_MIGRATED)
