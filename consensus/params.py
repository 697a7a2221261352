"""Chain parameters and genesis: what every node must agree on before the first block."""

from dataclasses import dataclass

from consensus.types import Address, Amount, Millis


@dataclass(frozen=True, slots=True)
class ChainParams:
    """Timing and size rules of one chain; all spans in milliseconds, sizes in bytes."""

    min_block_ms: int = 500
    """Least time between a block and its parent (B3)."""
    idle_ms: int = 1_500
    """A carrier block is valid only this long after its parent (B7)."""
    slot_ms: int = 2_000
    """How long a carrier's turn lasts before the next validator may propose (B7)."""
    rank_ms: int = 4_000
    """Delay between ranked proposers of a work block (B7); enough to recompute a loss in."""
    lease_ms: int = 30_000
    """How long a miner holds the lease of a batch before it passes on."""
    confirm_depth: int = 2
    """Blocks above a task's publication before work on it counts, until finality exists (W1)."""
    evidence_ms: int = 3_600_000
    """How long blobs are kept and evidence is admissible after a task closes."""
    max_body_bytes: int = 4 * 1024 * 1024
    max_transactions: int = 2_000


@dataclass(frozen=True, slots=True)
class GenesisAccount:
    address: Address
    balance: Amount
    organisation: str


@dataclass(frozen=True, slots=True)
class Validator:
    address: Address
    stake: int


@dataclass(frozen=True, slots=True)
class Genesis:
    """The document that founds a chain; its hash is the chain id."""

    name: str
    time: Millis
    params: ChainParams
    accounts: tuple[GenesisAccount, ...]
    validators: tuple[Validator, ...]
    mining_organisations: tuple[str, ...]
    """Organisations whose accounts may claim batches."""
