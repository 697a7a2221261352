"""Blocks: a signed header and a body of transactions, work and finality votes."""

from dataclasses import dataclass

from consensus.task import Credit
from consensus.transaction import SignedTransaction
from consensus.types import Address, Hash32, Height, Millis, Signature
from consensus.vote import Vote


@dataclass(frozen=True, slots=True)
class Header:
    version: int
    chain_id: Hash32
    height: Height
    parent: Hash32
    time: Millis
    proposer: Address
    transactions_root: Hash32
    work_root: Hash32
    votes_root: Hash32
    state_root: Hash32
    """Root after this block."""


@dataclass(frozen=True, slots=True)
class Work:
    """A milestone claimed: rungs [first_rung, last_rung] met by one loss opening."""

    task: Hash32
    first_rung: int
    last_rung: int
    step: int
    loss_opening: Hash32
    """Hash of the `OpenLoss` that meets the rungs."""
    loss: int
    openings: Hash32
    """Hash of the last opening of the task before that loss opening (W3); ZERO_HASH if none."""
    weights: tuple[int, ...]
    credits: tuple[Credit, ...]
    """Ranked: most batches first, ties by H(task, milestone, miner)."""


@dataclass(frozen=True, slots=True)
class Body:
    transactions: tuple[SignedTransaction, ...]
    work: Work | None
    votes: tuple[Vote, ...]
    """On blocks below this one, none of which the state has counted before (B8)."""


@dataclass(frozen=True, slots=True)
class Block:
    header: Header
    signature: Signature
    body: Body
