"""The first block and state of a chain, from its genesis document alone."""

from consensus.block import Header
from consensus.finality import build_genesis_finality
from consensus.governance import MAX_STAKE, MAX_VALIDATORS
from consensus.identifiers import (
    compute_chain_id,
    compute_transactions_root,
    compute_votes_root,
    compute_work_root,
)
from consensus.params import ChainParams, Genesis
from consensus.records import Account, ValidatorSet
from consensus.state import State
from consensus.tree import NodeSource, Tree
from consensus.types import MAX_AMOUNT, MAX_TIME_MS, ZERO_HASH, Address, Height
from consensus.versions import GENESIS_VERSION

MAX_BODY_BYTES = 4 * 1024 * 1024
"""What one message between peers can carry."""


class GenesisError(ValueError):
    """The genesis document founds no usable chain."""


def _check_params(params: ChainParams) -> None:
    spans = (params.min_block_ms, params.idle_ms, params.slot_ms, params.rank_ms, params.lease_ms)
    if not all(0 < span <= MAX_TIME_MS for span in spans):
        raise GenesisError("every span of the parameters must be positive")
    if params.idle_ms < params.min_block_ms:
        raise GenesisError("idle_ms must not be below min_block_ms")
    if not (0 <= params.verdict_ms <= MAX_TIME_MS and 0 <= params.evidence_ms <= MAX_TIME_MS):
        raise GenesisError("verdict_ms and evidence_ms must not be negative")
    if not 1024 <= params.max_body_bytes <= MAX_BODY_BYTES or params.max_transactions < 1:
        raise GenesisError(f"a body must hold 1024 to {MAX_BODY_BYTES} bytes and at least one transaction")


def check_genesis(genesis: Genesis) -> None:
    """Raises: GenesisError unless the document founds a chain that can grow."""
    _check_params(genesis.params)
    if not 0 <= genesis.time <= MAX_TIME_MS:
        raise GenesisError("time out of range")
    addresses = [account.address for account in genesis.accounts]
    if len(set(addresses)) != len(addresses):
        raise GenesisError("an account is listed twice")
    if any(account.balance < 0 for account in genesis.accounts):
        raise GenesisError("a balance is negative")
    validators = [validator.address for validator in genesis.validators]
    if not validators or len(set(validators)) != len(validators):
        raise GenesisError("there must be validators, each listed once")
    if any(not 0 < validator.stake <= MAX_STAKE for validator in genesis.validators):
        raise GenesisError(f"a validator's stake must be from 1 to {MAX_STAKE}")
    if len(validators) > MAX_VALIDATORS:
        raise GenesisError(f"there must be at most {MAX_VALIDATORS} validators")
    money = sum(account.balance for account in genesis.accounts)
    if money + sum(validator.stake for validator in genesis.validators) > MAX_AMOUNT:
        raise GenesisError(f"all balances and stakes together exceed {MAX_AMOUNT}")
    organisations = genesis.mining_organisations
    if "" in organisations or len(set(organisations)) != len(organisations):
        raise GenesisError("mining organisations must be named, each once")


def build_genesis_state(genesis: Genesis, source: NodeSource | None = None) -> State:
    """The state before the first block.

    Raises: GenesisError if the document is unusable.
    """
    check_genesis(genesis)
    state = State(Tree(ZERO_HASH, source))
    for account in genesis.accounts:
        state = state.with_account(account.address, Account(account.balance, 0, account.organisation))
    members = sorted(account.address for account in genesis.accounts if account.organisation)
    state = state.with_members(tuple(members))
    state = state.with_validator_set(ValidatorSet(0, genesis.validators))
    state = state.with_mining_organisations(genesis.mining_organisations)
    return build_genesis_finality(state, compute_chain_id(genesis))


def build_genesis_header(genesis: Genesis, state: State) -> Header:
    """The header of height 0; nobody signs it, its hash follows from the document."""
    return Header(
        version=GENESIS_VERSION,
        chain_id=compute_chain_id(genesis),
        height=Height(0),
        parent=ZERO_HASH,
        time=genesis.time,
        proposer=Address(bytes(32)),
        transactions_root=compute_transactions_root(()),
        work_root=compute_work_root(None),
        votes_root=compute_votes_root(()),
        state_root=state.root,
    )
