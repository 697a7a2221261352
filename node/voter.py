"""A validator's finality votes: for every new head that something waits on to be final."""

import asyncio
import logging
from collections import deque

from consensus.finality import choose_vote, is_quorum
from consensus.gossip_rules import get_voters
from consensus.types import Signature
from consensus.vote import Checkpoint, Vote, sign_vote
from node.caution import Caution, Doubt
from node.core import Core
from node.gossip.messages import WitnessReply, WitnessRequest
from node.gossip.transport import TransportError
from node.signstate import SignStateStore
from node.voting import VotingState, VotingStatus
from node.witness import Inquiry, WitnessNetwork, sign_witness

logger = logging.getLogger(__name__)

POLL_S = 1.0
ASK_S = 0.25
"""Between questions to peers while too few have answered..."""
ASK_AGAIN_S = 5.0
"""...and afterwards."""
ALONE_S = 3.0
"""A validator that needs nobody's answer, and has no sign-state, gives peers so long to say what they saw."""
RUSH = 10
RUSH_S = 1.0
"""While the head moves more than so often in such a time, old blocks are being caught up with: nobody waits
for votes on them."""


class WitnessDesk:
    """Answers what others ask about their votes, under this node's name."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def answer(self, request: WitnessRequest) -> WitnessReply:
        core = self._core
        chain = core.chain
        reply = WitnessReply(
            core.address,
            Checkpoint(chain.head.height, chain.head_hash),
            chain.justified,
            core.voting.state is VotingState.WAITING,
            core.vote_memory.get(request.validator),
            Signature(b""),
        )
        return sign_witness(core.key, chain.chain_id, request, reply)


class Voter:
    """Signs for the head when it moves, and once after the start; never two votes that convict."""

    def __init__(self, core: Core, network: WitnessNetwork) -> None:
        self._core = core
        self._network = network
        self._store = SignStateStore(core.chain.ledger, core.address)
        self._inquiry = Inquiry(core.chain.chain_id, core.address)
        for vote in core.vote_memory.get(core.address):
            self._inquiry.note(vote)
        self._caution = Caution(core.chain, self._store, self._inquiry)
        self._begun = core.clock.monotonic()
        self._moves: deque[float] = deque(maxlen=RUSH)
        self._answered: set[str] = set()
        self._asking: set[str] = set()
        self._resent = False
        self._has_alarmed = False
        core.on_vote(self._on_vote)
        core.chain.on_head_change(lambda change: self._moves.append(core.clock.monotonic()))

    @property
    def signed(self) -> SignStateStore:
        return self._store

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask_peers(group))
            seen = -1
            while True:
                self.vote()
                seen = await self._core.pulse.wait(seen, POLL_S)

    # --- voting -------------------------------------------------------------------------------

    def vote(self) -> Vote | None:
        """Sign for the head if that is due and safe."""
        core = self._core
        if core.address not in get_voters(core.chain.head_state):
            self._set_status(VotingStatus(VotingState.NONE))
            return None
        self._resend()
        if self._is_rushing():
            return None
        if not self._is_heard():
            self._set_status(VotingStatus(VotingState.ASKING, "peers have a moment to say what they know"))
            return None
        link = self._choose()
        status = self._caution.judge(core.chain.head_state, link)
        self._set_status(status)
        if link is None or status.state is not VotingState.VOTING:
            return None
        # What was in doubt is counted in, so that the same link may not be due any more.
        self._caution.settle()
        link = self._choose()
        return None if link is None else self._sign(*link)

    def _choose(self) -> tuple[Checkpoint, Checkpoint] | None:
        chain = self._core.chain
        head = Checkpoint(chain.head.height, chain.head_hash)
        return choose_vote(chain.head_state, head, self._core.address, self._store.signed)

    def _sign(self, source: Checkpoint, target: Checkpoint) -> Vote:
        core = self._core
        vote = sign_vote(core.key, core.chain.chain_id, source, target)
        self._store.record(vote)
        self._caution.on_signed(vote)
        core.add_vote(vote)
        logger.debug("voted from height %d to %d", source.height, target.height)
        return vote

    def _resend(self) -> None:
        """A crash may have come between the record of the last vote and its sending."""
        if not self._resent:
            self._resent = True
            if self._store.last is not None:
                self._core.add_vote(self._store.last)

    def _is_rushing(self) -> bool:
        now = self._core.clock.monotonic()
        return len(self._moves) == RUSH and now - self._moves[0] < RUSH_S

    def _is_heard(self) -> bool:
        """Peers had time to speak, where none of them needs to."""
        core = self._core
        if not self._store.is_missing and not self._store.is_unknown:
            return True
        state = core.chain.head_state
        is_alone = is_quorum(state.get_stake(core.address), state.get_total_stake())
        return not is_alone or core.clock.monotonic() >= self._begun + ALONE_S

    def _set_status(self, status: VotingStatus) -> None:
        before, self._core.voting = self._core.voting, status
        if status.state is VotingState.WAITING and before != status:
            logger.warning("not voting: %s", status.detail)
        elif before.state is VotingState.WAITING and status.state is VotingState.VOTING:
            logger.warning("voting again: no vote can contradict what this key may have signed before")
            self._has_alarmed = False

    def _on_vote(self, vote: Vote) -> None:
        if vote.validator != self._core.address or not self._caution.on_seen(vote):
            return
        if self._caution.doubt is Doubt.LOST and not self._has_alarmed:
            self._has_alarmed = True  # the next ones, in every block that is caught up with, say nothing new
            logger.critical(
                "a vote of this node's key for height %d that this node did not sign: is the key used "
                "by two nodes, or the ledger an old one?",
                vote.target.height,
            )

    # --- asking -------------------------------------------------------------------------------

    async def _ask_peers(self, group: asyncio.TaskGroup) -> None:
        while True:
            state = self._core.chain.head_state
            is_due = self._core.address in get_voters(state)
            if is_due:
                for node_id in self._network.get_statuses():
                    if self._is_wanted(node_id):
                        self._asking.add(node_id)
                        group.create_task(self._ask(node_id))
            is_known = not is_due or self._inquiry.is_sufficient(state)
            await self._core.clock.sleep(ASK_AGAIN_S if is_known else ASK_S)

    def _is_wanted(self, node_id: str) -> bool:
        if node_id in self._asking:
            return False
        return node_id not in self._answered or self._core.voting.state is VotingState.WAITING

    async def _ask(self, node_id: str) -> None:
        nonce = self._inquiry.ask()
        try:
            reply = await self._network.request_witness(node_id, self._core.address, nonce)
        except TransportError as error:
            logger.debug("%s does not say what it saw of our votes: %s", node_id, error)
            self._inquiry.give_up(nonce)
            return
        finally:
            self._asking.discard(node_id)
        if self._inquiry.take(nonce, reply):
            for vote in reply.votes:
                self._core.note_vote(vote)
            self._answered.add(node_id)
            self._core.pulse.beat()
        else:
            logger.warning("%s gave no valid answer to what it saw of our votes", node_id)
