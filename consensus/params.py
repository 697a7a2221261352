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
    verdict_ms: int = 60_000
    """How long validators may reject a milestone before it settles without their accepts."""
    evidence_ms: int = 3_600_000
    """How long blobs are kept, stakes and bonds stay locked and evidence is admissible, after a task ends
    or a validator leaves."""
    max_body_bytes: int = 4 * 1024 * 1024
    max_transactions: int = 2_000


@dataclass(frozen=True, slots=True)
class GenesisAccount:
    address: Address
    balance: Amount
    organisation: str


@dataclass(frozen=True, slots=True)
class Validator:
    """A member of the validator set; its stake is locked money, beside its account's balance."""

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
