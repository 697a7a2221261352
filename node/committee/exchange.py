"""The way in and out for what is said of committees' openings: seals, told roots, members' messages."""

from collections.abc import Callable

from consensus.codec import CodecError, decode, encode
from consensus.gossip_rules import Outcome, judge_sealed_claim
from consensus.records import TaskStatus
from consensus.state import State
from consensus.task import SealedClaim
from consensus.types import Hash32
from node.chain import Chain
from node.committee.messages import Message, encode_message, hash_message
from node.committee.pool import CommitteePool
from node.committee.view import PoolView, TipView
from node.gossip.messages import Kind
from node.pulse import Pulse
from node.seals import SealPool, compute_seal_id


class CommitteeExchange:
    """Every node relays; members and miners read what is here."""

    def __init__(
        self,
        chain: Chain,
        pulse: Pulse,
        announce: Callable[[Kind, Hash32, bytes], None],
        look: Callable[[Hash32], TipView],
    ) -> None:
        self.seals = SealPool()
        self.messages = CommitteePool()
        self._chain = chain
        self._pulse = pulse
        self._announce = announce
        self._look = look

    # --- sealed claims ------------------------------------------------------------------------

    def take_seal(self, data: bytes) -> Outcome:
        """Judge a sealed claim against the task's tip: miners run ahead of the chain."""
        judgement = judge_sealed_claim(data, self._get_state(data), self._chain.chain_id)
        if judgement.outcome is not Outcome.ACCEPT or judgement.sealed is None:
            return judgement.outcome
        return Outcome.ACCEPT if self.add_seal(judgement.sealed) else Outcome.IGNORE

    def _get_state(self, data: bytes) -> State:
        try:
            tip = self._look(decode(SealedClaim, data).task).tip
        except CodecError:
            tip = None
        return self._chain.head_state if tip is None else tip.chain_state

    def add_seal(self, seal: SealedClaim) -> bool:
        """Keep and announce a checked one; True if it is new."""
        if not self.seals.add(compute_seal_id(seal), seal):
            return False
        self.announce_seal(seal)
        self._pulse.beat()
        return True

    def announce_seal(self, seal: SealedClaim) -> None:
        self._announce(Kind.SEAL, compute_seal_id(seal), encode(seal))

    # --- messages -----------------------------------------------------------------------------

    def take_message(self, data: bytes) -> Outcome:
        """Keep and announce what a member or miner says of an opening that is due, or of the next."""
        judged = self.messages.take(data, self._chain.chain_id, PoolView(self._look))
        if judged.outcome is Outcome.ACCEPT:
            self._announce(Kind.COMMITTEE, hash_message(data), data)
            self._pulse.beat()
        return judged.outcome

    def say(self, message: Message) -> None:
        """This node's own; said again, it reaches peers that have restarted since."""
        known = len(self.messages)
        self._announce(Kind.COMMITTEE, self.messages.add_own(message), encode_message(message))
        if len(self.messages) > known:
            self._pulse.beat()

    # --- the head -----------------------------------------------------------------------------

    def forget_opened(self) -> None:
        """What was said of steps that the head has opened, and of tasks that have ended."""
        for task in self.seals.get_tasks() | self.messages.get_tasks():
            found = self._chain.head_state.get_task(task)
            if found is None or found.status not in (TaskStatus.PENDING, TaskStatus.OPEN):
                self.seals.drop_task(task)
                self.messages.forget_task(task)
            else:
                self.seals.drop_before(task, found.step)
                self.messages.forget_before(task, found.step)
