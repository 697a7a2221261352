"""Whoever uses the chain from outside: payers, and the operators who change the validator set together."""

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from consensus.governance import sign_governance
from consensus.params import Validator
from consensus.payload import Action, Govern, Governance, Grant, SetValidators
from consensus.state import State
from consensus.task import Transfer
from consensus.transaction import sign_transaction
from consensus.types import Amount
from tests.simulation.archive import TransactionItem
from tests.simulation.truth import get_key

if TYPE_CHECKING:
    from tests.simulation.node import Node, Run

RESEND_MS = 5_000


def pick_host(run: "Run", random: Random) -> "Node":
    """An honest node that is up."""
    hosts = [node for node in run.nodes if node.is_honest and node.is_up]
    return random.choice(hosts or [node for node in run.nodes if node.is_honest])


class Payer:
    """Sends small payments until it is told to stop, and again what was lost."""

    def __init__(self, run: "Run", name: str, pace_ms: int, until: int) -> None:
        self._run = run
        self._key = get_key(name)
        self._to = get_key("payee").address
        self._pace_ms = pace_ms
        self._until = until
        self._nonce = 0
        self._sent: list[TransactionItem] = []
        self._random = Random(run.random.random())
        run.engine.after(self._random.randrange(pace_ms), self._pay)
        run.engine.after(RESEND_MS, self._resend)

    def _pay(self) -> None:
        if self._run.engine.now >= self._until:
            return
        amount = Amount(self._random.randrange(1, 50))
        transaction = sign_transaction(
            self._key, self._run.archive.chain_id, self._nonce, Transfer(self._to, amount)
        )
        self._nonce += 1
        item = self._run.archive.add_transaction(transaction)
        self._sent.append(item)
        pick_host(self._run, self._random).submit(item)
        self._run.engine.after(self._random.randrange(self._pace_ms // 2, 2 * self._pace_ms), self._pay)

    def _resend(self) -> None:
        host = pick_host(self._run, self._random)
        first = host.state.get_account(self._key.address).nonce
        for item in self._sent[first:]:
            host.submit(item)
        if self._run.engine.now < self._until:
            self._run.engine.after(RESEND_MS, self._resend)


@dataclass(frozen=True, slots=True)
class Change:
    """Of the validator set, some time into the run."""

    after_ms: int
    kind: str
    """join, leave, more, less, grant."""
    name: str
    stake: int = 0


class Operators:
    """Agree outside the chain on a change, sign it, and send it until it is in force."""

    def __init__(
        self, run: "Run", changes: tuple[Change, ...], byzantine: frozenset[str], until: int
    ) -> None:
        self._run = run
        self._byzantine = {get_key(name).address for name in byzantine}
        self._until = until
        self._random = Random(run.random.random())
        self.applied: list[str] = []
        for change in changes:
            run.engine.after(change.after_ms, self._try, change)

    def _try(self, change: Change) -> None:
        run = self._run
        if run.engine.now > self._until:
            return
        host = pick_host(run, self._random)
        state = host.state
        if state.get_pending_set() is not None:
            run.engine.after(3_000, self._try, change)
            return
        action = self._build(change, state)
        if action is None:
            return
        sequence = state.get_charter().sequence
        governance = Governance(sequence, action)
        chain_id = run.archive.chain_id
        signers = {member.address for member in state.get_acting_validators()} - self._byzantine
        signers.add(get_key(change.name).address)
        names = {node.address: node.key for node in run.nodes}
        approvals = tuple(
            sign_governance(names[address], chain_id, governance)
            for address in sorted(signers)
            if address in names
        )
        transaction = sign_transaction(host.key, chain_id, 0, Govern(governance, approvals))
        run.trace("operator", f"{change.kind} {change.name} as change {sequence}")
        self.applied.append(change.kind)
        host.submit(run.archive.add_transaction(transaction))
        run.engine.after(6_000, self._check, change, sequence)

    def _check(self, change: Change, sequence: int) -> None:
        """Again, if the chain has not taken it."""
        if pick_host(self._run, self._random).state.get_charter().sequence == sequence:
            self._try(change)

    def _build(self, change: Change, state: State) -> Action | None:
        """None if the change would not fit any more, or give liars a third."""
        address = get_key(change.name).address
        if change.kind == "grant":
            treasury = state.get_charter().treasury
            return Grant(address, Amount(1 + treasury // 2)) if treasury else None
        members = {member.address: member.stake for member in state.get_acting_validators()}
        stake = members.get(address, 0)
        match change.kind:
            case "join" | "more":
                members[address] = stake + change.stake
            case "leave":
                members.pop(address, None)
            case "less" if stake > 1:
                members[address] = max(1, stake - change.stake)
        bad = sum(held for member, held in members.items() if member in self._byzantine)
        if len(members) < 3 or 3 * bad >= sum(members.values()):
            return None
        return SetValidators(tuple(Validator(member, held) for member, held in members.items()))
