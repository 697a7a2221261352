"""Names of things: every hash by which blocks, transactions, tasks and openings refer to each other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from consensus.block import Header, Work
from consensus.codec import encode, encode_integers
from consensus.crypto import compute_merkle_root, hash_domain
from consensus.params import Genesis
from consensus.task import Draft, OpenGradient, OpenLoss, PublishTask
from consensus.transaction import SignedTransaction
from consensus.types import Hash32
from consensus.vote import Vote

Opening = TypeVar("Opening", bound=OpenGradient | OpenLoss)


def compute_chain_id(genesis: Genesis) -> Hash32:
    return hash_domain("genesis", encode(genesis))


def compute_block_hash(header: Header) -> Hash32:
    """What the proposer signs and the next header names; the block of height 0 is named by the chain id."""
    if header.height == 0:
        return header.chain_id
    return hash_domain("block", encode(header))


def compute_draft_hash(chain_id: Hash32, draft: Draft) -> Hash32:
    return hash_domain("draft", chain_id + encode(draft))


def compute_task_id(publication: PublishTask) -> Hash32:
    """Bound to one chain and custody through the draft's hash."""
    return hash_domain("task", encode(publication))


def get_content(opening: Opening) -> Opening:
    """The opening without whatever signs it: what names it, and what members sign."""
    return replace(opening, cosignatures=()) if opening.cosignatures else opening


def compute_opening_hash(opening: OpenGradient | OpenLoss) -> Hash32:
    """Of the content alone: the same for every set of signers."""
    return hash_domain("opening", encode(get_content(opening)))


def compute_weights_digest(weights: tuple[int, ...]) -> Hash32:
    return hash_domain("weights", encode_integers(weights))


def compute_transactions_root(transactions: Sequence[SignedTransaction]) -> Hash32:
    return compute_merkle_root("transactions", [encode(transaction) for transaction in transactions])


def compute_work_root(work: Work | None) -> Hash32:
    return compute_merkle_root("work", [] if work is None else [encode(work)])


def compute_votes_root(votes: Sequence[Vote]) -> Hash32:
    return compute_merkle_root("votes", [encode(vote) for vote in votes])
