"""Blocks that can't be judged yet: kept aside, bounded in number and bytes, the oldest out first."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from consensus.block import Block
from consensus.types import Hash32

MAX_BLOCKS = 256
MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class WaitingBlock:
    hash: Hash32
    block: Block
    data: bytes


class WaitingRoom:
    """One bounded queue; what lacks a parent and what passed the rules wait in rooms of their own, so that
    a peer's invented blocks never push out one that only has to be recomputed."""

    def __init__(self, max_blocks: int = MAX_BLOCKS, max_bytes: int = MAX_BYTES) -> None:
        self._blocks: OrderedDict[Hash32, WaitingBlock] = OrderedDict()
        self._bytes = 0
        self._max_blocks = max_blocks
        self._max_bytes = max_bytes

    def __contains__(self, block_hash: Hash32) -> bool:
        return block_hash in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, waiting: WaitingBlock) -> None:
        self.remove(waiting.hash)
        self._blocks[waiting.hash] = waiting
        self._bytes += len(waiting.data)
        while len(self._blocks) > self._max_blocks or self._bytes > self._max_bytes:
            self.remove(next(iter(self._blocks)))

    def remove(self, block_hash: Hash32) -> None:
        waiting = self._blocks.pop(block_hash, None)
        if waiting is not None:
            self._bytes -= len(waiting.data)

    def find(self, wanted: Callable[[Block], bool]) -> list[WaitingBlock]:
        """Those that are wanted, oldest first."""
        return [waiting for waiting in self._blocks.values() if wanted(waiting.block)]
