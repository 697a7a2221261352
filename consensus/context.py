"""What a transaction may know of the block that carries it."""

from dataclasses import dataclass

from consensus.params import ChainParams
from consensus.types import Hash32, Height, Millis


@dataclass(frozen=True, slots=True)
class BlockContext:
    height: Height
    time: Millis
    params: ChainParams
    chain_id: Hash32
