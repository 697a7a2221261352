"""What a transaction may know of the block that carries it."""

from dataclasses import dataclass

from consensus.params import ChainParams
from consensus.types import Hash32, Height, Millis
from consensus.versions import ProtocolVersion


@dataclass(frozen=True, slots=True)
class BlockContext:
    height: Height
    time: Millis
    params: ChainParams
    chain_id: Hash32
    rules: ProtocolVersion
    """Of the version in force at this height."""
