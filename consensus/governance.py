"""Changes that a quorum signs: who validates, who mines, who belongs where, what forfeited money is for."""

from dataclasses import replace
from itertools import pairwise

from consensus.codec import encode
from consensus.context import BlockContext
from consensus.crypto import SigningKey, verify
from consensus.errors import InvalidTransaction, Reason
from consensus.finality import is_quorum
from consensus.params import Validator
from consensus.payload import (
    Approval,
    CancelUpgrade,
    Govern,
    Governance,
    Grant,
    Reinstate,
    ScheduleUpgrade,
    SetMiningOrganisations,
    SetOrganisation,
    SetValidators,
)
from consensus.records import PendingSet
from consensus.state import State
from consensus.types import Address, Amount, Hash32
from consensus.upgrade import apply_cancel, apply_schedule

MAX_STAKE = 2**53
MAX_VALIDATORS = 1_024
MAX_NAME = 200

_CONTROL_RANGES = (
    (0x00, 0x1F),
    (0x7F, 0xA0),
    (0xAD, 0xAD),
    (0x2000, 0x200F),
    (0x2028, 0x202F),
    (0x205F, 0x206F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
)
"""Control and formatting characters, and spaces other than U+0020."""


def _require(condition: bool, reason: Reason, detail: str) -> None:
    if not condition:
        raise InvalidTransaction(reason, detail)


def sign_governance(key: SigningKey, chain_id: Hash32, governance: Governance) -> Approval:
    """A validator's approval, valid on this chain and at this place in the sequence of changes only."""
    return Approval(key.address, key.sign("governance", chain_id + encode(governance)))


def _check_approvals(state: State, payload: Govern, chain_id: Hash32) -> None:
    signers = [approval.validator for approval in payload.approvals]
    is_ordered = all(a < b for a, b in pairwise(signers))
    _require(is_ordered, Reason.GOVERN_APPROVALS, "approvals must be by ascending address, each once")
    stake = sum(state.get_stake(signer) for signer in signers)
    total = state.get_total_stake()
    _require(is_quorum(stake, total), Reason.GOVERN_QUORUM, f"{stake} of {total}")
    signed = chain_id + encode(payload.governance)
    for approval in payload.approvals:
        is_signed = verify(approval.validator, "governance", signed, approval.signature)
        _require(is_signed, Reason.GOVERN_SIGNATURE, approval.validator.hex())


def apply_govern(state: State, payload: Govern, ctx: BlockContext) -> State:
    """The state after the change; a validator set waits until the change is final."""
    charter = state.get_charter()
    sequence = payload.governance.sequence
    _require(sequence >= charter.sequence, Reason.GOVERN_REPEATED, f"{sequence}, not {charter.sequence}")
    _require(sequence == charter.sequence, Reason.GOVERN_FUTURE, f"{sequence}, not {charter.sequence}")
    _check_approvals(state, payload, ctx.chain_id)
    state = state.with_charter(replace(charter, sequence=sequence + 1))
    action = payload.governance.action
    match action:
        case SetValidators():
            signers = {approval.validator for approval in payload.approvals}
            return _set_validators(state, action, signers, ctx)
        case SetMiningOrganisations():
            names = action.organisations
            is_set = all(0 < len(name) <= MAX_NAME for name in names) and len(set(names)) == len(names)
            _require(is_set, Reason.GOVERN_FIELD, "organisations must be named, each once")
            _check_names(names, ctx)
            return state.with_mining_organisations(names)
        case SetOrganisation():
            _check_names((action.organisation,), ctx)
            return _set_organisation(state, action)
        case Reinstate():
            suspended = state.get_suspended()
            _require(action.organisation in suspended, Reason.GOVERN_FIELD, "organisation is not suspended")
            return state.with_suspended(tuple(name for name in suspended if name != action.organisation))
        case Grant():
            return _grant(state, action)
        case ScheduleUpgrade():
            return apply_schedule(state, action, ctx)
        case CancelUpgrade():
            return apply_cancel(state, action, ctx)


def _is_control(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _CONTROL_RANGES)


def _check_names(names: tuple[str, ...], ctx: BlockContext) -> None:
    """From version 2 on: by code points, which no edition of Unicode changes."""
    if ctx.rules.plain_names:
        is_plain = all(name == name.strip(" ") and not any(map(_is_control, name)) for name in names)
        _require(is_plain, Reason.GOVERN_FIELD, "names have no control characters and no spaces at the ends")


def _set_validators(state: State, action: SetValidators, signers: set[Address], ctx: BlockContext) -> State:
    _require(state.get_pending_set() is None, Reason.GOVERN_PENDING, "a change of set is not final yet")
    addresses = [member.address for member in action.validators]
    is_set = 0 < len(addresses) <= MAX_VALIDATORS and len(set(addresses)) == len(addresses)
    _require(is_set, Reason.GOVERN_FIELD, "validators must be listed, each once")
    is_staked = all(0 < member.stake <= MAX_STAKE for member in action.validators)
    _require(is_staked, Reason.GOVERN_FIELD, f"a stake must be from 1 to {MAX_STAKE}")
    jailed = set(addresses).intersection(state.get_jailed())
    _require(not jailed, Reason.GOVERN_JAILED, ", ".join(sorted(address.hex() for address in jailed)))
    held = {member.address: member.stake for member in state.get_validators()}
    deposits = []
    for member in action.validators:
        more = member.stake - held.get(member.address, 0)
        if more <= 0:
            continue
        # Nobody's money is locked without its own signature.
        _require(member.address in signers, Reason.GOVERN_CONSENT, member.address.hex())
        balance = state.get_account(member.address).balance
        _require(balance >= more, Reason.TX_BALANCE, f"{balance} of {more} more stake")
        state = state.with_credit(member.address, -more)
        deposits.append(Validator(member.address, more))
    return state.with_pending_set(PendingSet(action.validators, ctx.height, tuple(deposits)))


def _set_organisation(state: State, action: SetOrganisation) -> State:
    _require(len(action.organisation) <= MAX_NAME, Reason.GOVERN_FIELD, "organisation is too long")
    account = state.get_account(action.address)
    members = set(state.get_members()) - {action.address}
    if action.organisation:
        members.add(action.address)
    state = state.with_account(action.address, replace(account, organisation=action.organisation))
    return state.with_members(tuple(sorted(members)))


def _grant(state: State, action: Grant) -> State:
    charter = state.get_charter()
    _require(
        0 < action.amount <= charter.treasury, Reason.GOVERN_FIELD, f"amount: {charter.treasury} are there"
    )
    state = state.with_charter(replace(charter, treasury=Amount(charter.treasury - action.amount)))
    return state.with_credit(action.to, action.amount)
