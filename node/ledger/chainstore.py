"""The ledger: blocks, state tree nodes, indices of the head chain and small records, each change
one atomic synced batch. `reader` has the reads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from consensus.block import Block
from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.types import Hash32
from node.crashpoints import CrashPoint, reach
from node.ledger import schema
from node.ledger.indexing import compute_index
from node.ledger.quick import check_quickly
from node.ledger.reader import LedgerReader
from node.ledger.schema import BlockIndex, LedgerDamaged, LedgerError, Location, Meta, SchemaError
from node.ledger.store import KeyValueStore, StoreError

__all__ = ["HeadChange", "Ledger", "LedgerDamaged", "LedgerError", "Location", "SchemaError"]

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


class Ledger(LedgerReader):
    """Single writer, many readers; every change is one synced batch: after a crash the ledger is as before it
    or as after it."""

    def __init__(self, store: KeyValueStore, meta: Meta) -> None:
        """Use `Ledger.open`."""
        super().__init__(store, meta)
        self._spared: set[Hash32] | None = None

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
        if found != schema.SCHEMA_VERSION:
            raise SchemaError(schema.describe_version(found))
        encoded = store.get(schema.META_KEY)
        if encoded is None:
            raise LedgerDamaged("the head record is missing")
        meta = schema.decode_meta(encoded)
        if meta.chain_id != chain_id:
            raise LedgerError(
                f"Expected chain {chain_id.hex()}. Got a ledger of chain {meta.chain_id.hex()}."
            )
        return cls(store, meta)

    # --- blocks -------------------------------------------------------------------------------

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
        if self._spared is not None:
            self._spared.update(new_nodes)
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
        try:
            self._store.write_batch(puts, deletes)
        except StoreError as error:
            self._tell(error)
            raise
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
        """Delete the bodies of all blocks below `height`, and the places of their transactions and subjects,
        and raise the base to it; how many bodies they were.

        Headers, the height index and state nodes stay (`node.ledger.prune` sweeps the nodes); what is left is
        what a snapshot of the block at `height` has. Each batch is atomic and raises the base past what it
        deletes, so a crash leaves fewer deleted and nothing else. Raises `LedgerError` with nothing changed
        if `height` is above the head's.
        """
        if height > self.height:
            raise LedgerError(f"bodies below {height} can't go while the head is at height {self.height}")
        deleted, puts, deletes = 0, list[tuple[bytes, bytes]](), list[bytes]()
        for at in range(self.base, height):
            for key, _ in self._iterate(schema.header_prefix(at)):
                block = schema.decode_header_key(key)[1]
                index = self._get_index(block)
                deletes.append(schema.block_key(block))
                puts.append(
                    (
                        schema.index_key(block),
                        schema.encode_index(replace(index, transactions=(), subjects=())),
                    )
                )
                deleted += 1
                if self.get_hash_by_height(at) == block:
                    deletes += [
                        key
                        for key in map(schema.transaction_key, index.transactions)
                        if self._is_at(key, block)
                    ]
                    deletes += [
                        schema.subject_key(subject, at, position) for position, subject in index.subjects
                    ]
            if len(deletes) >= DELETED_AT_ONCE or at == height - 1:
                meta = replace(self._meta, base=at + 1)
                puts.append((schema.META_KEY, schema.encode_meta(meta)))
                self._write(CrashPoint.BODIES_DELETING, CrashPoint.BODIES_DELETED, puts, deletes)
                self._meta = meta
                puts, deletes = [], []
        return deleted

    def _is_at(self, transaction_key: bytes, block: Hash32) -> bool:
        """Whether a transaction is indexed in this block, and not in another that holds it too."""
        found = self._get(transaction_key)
        return found is not None and schema.decode_location(found)[0] == block

    def delete_blocks_above(self, height: int) -> int:
        """Delete every stored block above `height`, where the head must be by now; how many they were.

        Children go before their parents, batch by batch. State nodes stay until they are swept.
        """
        if height != self.height:
            raise LedgerError(f"the head is at height {self.height}, not {height}")
        blocks = [
            (at, block) for block, header in self.iterate_headers(height + 1) for at in (header.height,)
        ]
        for end in range(len(blocks), 0, -DELETED_AT_ONCE):
            deletes = list[bytes]()
            for at, block in blocks[max(0, end - DELETED_AT_ONCE) : end]:
                deletes += [schema.block_key(block), schema.header_key(at, block), schema.index_key(block)]
            self._write(CrashPoint.BLOCKS_ABOVE_DELETING, CrashPoint.BLOCKS_ABOVE_DELETED, (), deletes)
        return len(blocks)

    # --- state nodes and records --------------------------------------------------------------

    @contextmanager
    def sparing_new_nodes(self) -> Iterator[None]:
        """Inside, `delete_nodes` spares every node that a block brought since it was entered."""
        self._spared = set()
        try:
            yield
        finally:
            self._spared = None

    def delete_nodes(self, nodes: Sequence[Hash32]) -> int:
        """Delete state nodes that no block from the base on reaches; how many were left to go."""
        spared = self._spared or ()
        deletes = [schema.node_key(node) for node in nodes if node not in spared]
        if deletes:
            self._write(CrashPoint.NODES_SWEEPING, CrashPoint.NODES_SWEPT, (), deletes)
        return len(deletes)

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

    def delete_record(self, key: bytes) -> None:
        self.put_records({}, [key])


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
