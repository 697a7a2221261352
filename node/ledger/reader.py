"""Reading a ledger: what is stored is decoded and checked on its way out, and damage is told."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from consensus.block import Block, Header
from consensus.codec import CodecError, decode_stored
from consensus.crypto import hash_domain
from consensus.types import Hash32, Height
from node.ledger import schema
from node.ledger.schema import BlockIndex, LedgerDamaged, LedgerError, Location, Meta
from node.ledger.store import KeyValueStore, StoreDamaged

T = TypeVar("T")


class LedgerReader:
    """All that is read of a ledger; `Ledger` adds the writes. Genesis is height 0 with the chain id as its
    hash; it has no block.

    It is also the state tree's `NodeSource`. Reads raise `LedgerDamaged` or `StoreDamaged` where what is
    stored is not what it must be.
    """

    def __init__(self, store: KeyValueStore, meta: Meta) -> None:
        """Use `Ledger.open`."""
        self._store = store
        self._meta = meta
        self._damage_listeners: list[Callable[[Exception], None]] = []

    @property
    def store(self) -> KeyValueStore:
        """What is below, for checks."""
        return self._store

    def on_damage(self, listener: Callable[[Exception], None]) -> None:
        """Call `listener` whenever a read finds that the ledger is damaged, or a write fails: the node must
        not go on then."""
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

    def iterate_headers(self, from_height: int = 0) -> Iterator[tuple[Hash32, Header]]:
        """All stored headers (genesis has none), parents before children, for the fork choice."""
        for key, value in self._iterate(schema.HEADER_PREFIX):
            height, block = schema.decode_header_key(key)
            if height >= from_height:
                yield block, self._decode(Header, value, f"the header {key.hex()}")

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

    def iterate_nodes(self) -> Iterator[Hash32]:
        """The hashes of all stored state nodes, as of the call."""
        for key, _ in self._iterate(schema.NODE_PREFIX):
            yield Hash32(key[1:])

    def get_record(self, key: bytes) -> bytes | None:
        return self._get(schema.record_key(key))

    def iterate_records(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Records whose key starts with `prefix`, ascending; keys without the table's prefix."""
        for key, value in self._iterate(schema.record_key(prefix)):
            yield key[1:], value
