"""Reads rows of a ledger that may be damaged: every problem becomes a `Damage`, and reading goes on."""

from collections.abc import Iterator
from typing import TypeVar

from consensus.block import Block, Header
from consensus.codec import CodecError, decode_stored
from consensus.crypto import hash_domain
from consensus.identifiers import (
    compute_block_hash,
    compute_transactions_root,
    compute_votes_root,
    compute_work_root,
)
from consensus.types import ZERO_HASH, Hash32
from node.ledger import schema
from node.ledger.damage import Damage
from node.ledger.schema import BlockIndex, LedgerDamaged
from node.ledger.store import KeyValueStore, StoreDamaged

T = TypeVar("T")

MAX_DAMAGES = 1000
"""Named one by one; of more only the number is told."""

_LEAF, _BRANCH, _BRANCH_LENGTH = 0, 1, 66


class Rows:
    """Rows by what they mean, and what was wrong with them so far."""

    def __init__(self, store: KeyValueStore) -> None:
        self.store = store
        self.damages: list[Damage] = []
        self.unnamed = 0

    def add(
        self,
        table: str,
        what: str,
        key: bytes = b"",
        height: int | None = None,
        block: Hash32 | None = None,
    ) -> None:
        if len(self.damages) < MAX_DAMAGES:
            self.damages.append(Damage(table, what, key, height, block))
        else:
            self.unnamed += 1

    def get(self, key: bytes, table: str, what: str, height: int, block: Hash32 | None) -> bytes | None:
        """The row; None, and a damage, if it is missing or can't be read."""
        try:
            value = self.store.get(key)
        except StoreDamaged as error:
            self.add(table, f"{what} can't be read: {error}", key, height, block)
            return None
        if value is None:
            self.add(table, f"{what} is missing", key, height, block)
        return value

    def peek(self, key: bytes) -> bytes | None:
        """The row, or None; for what another step of the check names."""
        try:
            return self.store.get(key)
        except StoreDamaged:
            return None

    def iterate(self, prefix: bytes, table: str) -> Iterator[tuple[bytes, bytes]]:
        """The rows that can be read; a damage at the end if there are others."""
        try:
            yield from self.store.iterate(prefix)
        except StoreDamaged as error:
            self.add(table, f"some rows can't be read: {error}", prefix)

    def get_index(self, block: Hash32, height: int) -> BlockIndex | None:
        key = schema.index_key(block)
        what = f"the index of block {block.hex()} at height {height}"
        data = self.get(key, "index", what, height, block)
        if data is None:
            return None
        try:
            return schema.decode_index(data)
        except LedgerDamaged as error:
            self.add("index", f"{what}: {error}", key, height, block)
            return None

    def get_header(self, block: Hash32, height: int) -> Header | None:
        key = schema.header_key(height, block)
        what = f"the header of block {block.hex()} at height {height}"
        data = self.get(key, "headers", what, height, block)
        return None if data is None else self.decode_header(data, block, height)

    def decode_header(self, data: bytes, block: Hash32, height: int) -> Header | None:
        key = schema.header_key(height, block)
        what = f"the header of block {block.hex()} at height {height}"
        try:
            header = decode_stored(Header, data)
        except CodecError as error:
            self.add("headers", f"{what} is damaged: {error}", key, height, block)
            return None
        if compute_block_hash(header) != block or header.height != height:
            self.add("headers", f"{what} is of another block", key, height, block)
            return None
        return header

    def peek_header(self, block: Hash32, height: int) -> Header | None:
        """The header if it can be read."""
        data = self.peek(schema.header_key(height, block))
        try:
            return None if data is None else decode_stored(Header, data)
        except CodecError:
            return None

    def peek_index(self, block: Hash32) -> BlockIndex | None:
        """The index if it can be read."""
        data = self.peek(schema.index_key(block))
        try:
            return None if data is None else schema.decode_index(data)
        except LedgerDamaged:
            return None

    def get_block(self, block: Hash32, header: Header) -> Block | None:
        """The body with its header, each checked against the other."""
        key = schema.block_key(block)
        what = f"block {block.hex()} at height {header.height}"
        data = self.get(key, "blocks", what, header.height, block)
        return None if data is None else self.decode_block(data, block, header)

    def decode_block(self, data: bytes, block: Hash32, header: Header) -> Block | None:
        key = schema.block_key(block)
        what = f"block {block.hex()} at height {header.height}"
        try:
            found = decode_stored(Block, data)
        except CodecError as error:
            self.add("blocks", f"{what} is damaged: {error}", key, header.height, block)
            return None
        roots = (
            compute_transactions_root(found.body.transactions),
            compute_work_root(found.body.work),
            compute_votes_root(found.body.votes),
        )
        if found.header != header or roots != (header.transactions_root, header.work_root, header.votes_root):
            self.add("blocks", f"{what} is not what its header says", key, header.height, block)
            return None
        return found

    def walk_state(
        self, root: Hash32, height: int, block: Hash32, visited: set[Hash32], at_most: int | None = None
    ) -> None:
        """Name every node of a block's state that is missing or damaged; with `at_most` of its top only."""
        if root == ZERO_HASH or root in visited:
            return
        visited.add(root)
        waiting, at = [root], 0
        while at < len(waiting) and (at_most is None or at < at_most):
            node = waiting[at]
            at += 1
            if at > 65_536:
                del waiting[:at]
                at = 0
            for child in self._get_children(node, height, block):
                if child not in visited:
                    visited.add(child)
                    waiting.append(child)

    def _get_children(self, node: Hash32, height: int, block: Hash32) -> tuple[Hash32, ...]:
        key = schema.node_key(node)
        what = f"node {node.hex()} of the state after block {block.hex()} at height {height}"
        data = self.get(key, "state", what, height, block)
        if data is None:
            return ()
        if hash_domain("tree", data) != node:
            self.add("state", f"{what} has another hash", key, height, block)
            return ()
        if data[0] == _LEAF:
            return ()
        if data[0] != _BRANCH or len(data) != _BRANCH_LENGTH:
            self.add("state", f"{what} is neither leaf nor branch", key, height, block)
            return ()
        return Hash32(data[2:34]), Hash32(data[34:66])
