"""Whether it is safe for a validator to sign: what it may have signed before, without knowing so.

A sign-state that was lost, or is of an old backup, does not say what this key has signed. Then nothing is
signed before the head's justified height is above every height that it can have voted for, so that no new
vote doubles or surrounds an old one. Only where that can never come about by itself is a vote allowed that
is above all old targets and not below any old source:

- for a newcomer, of whom nobody knows a vote: at a network's beginning everyone is one;
- if all other validators have answered, and too many of them are silent too for the rest to justify
  anything. (DESIGN 5)
"""

from collections import OrderedDict
from enum import StrEnum

from consensus.state import State
from consensus.types import Height
from consensus.vote import NOTHING_SIGNED, Checkpoint, Vote
from node.chain import Chain
from node.signstate import SignStateStore
from node.voting import VotingState, VotingStatus
from node.witness import Inquiry

MAX_SIGNED = 1_024
"""Own votes remembered since the start, to tell them from those of another node with this key."""


class Doubt(StrEnum):
    NONE = "none"
    NEWCOMER = "newcomer"
    """Nothing is recorded, and nobody has seen a vote of this key."""
    LOST = "lost"
    """This key has, or may have, signed more than is recorded."""


class Caution:
    """Judges every vote before it is signed; takes note of every vote of this key that is seen."""

    def __init__(self, chain: Chain, store: SignStateStore, inquiry: Inquiry) -> None:
        self._chain = chain
        self._store = store
        self._inquiry = inquiry
        self._start = chain.head.height
        self._trusted = store.signed
        """Votes up to here were signed before the start, or are counted in."""
        self._signed: OrderedDict[Height, Vote] = OrderedDict()
        if store.last is not None:
            self._signed[store.last.target.height] = store.last
        self._doubt: Doubt | None = None
        """None before enough validators have answered."""
        self._bound = Height(0)

    @property
    def doubt(self) -> Doubt | None:
        return self._doubt

    def on_signed(self, vote: Vote) -> None:
        """This node signs it."""
        self._signed[vote.target.height] = vote
        if len(self._signed) > MAX_SIGNED:
            _, oldest = self._signed.popitem(last=False)
            self._trusted = self._trusted.after(oldest)

    def on_seen(self, vote: Vote) -> bool:
        """A vote of this key came from anywhere; True if this node did not sign it."""
        self._inquiry.note(vote)
        own = self._signed.get(vote.target.height)
        if own is not None:
            is_foreign = own != vote
        else:
            is_foreign = (
                vote.target.height > self._trusted.target or vote.source.height > self._trusted.source
            )
        if is_foreign and self._doubt is not None:
            # At the start it is no news: the answers tell how far it has gone.
            self._doubt = Doubt.LOST
            self._bound = max(self._bound, vote.target.height, self._chain.head.height)
        return is_foreign

    def judge(self, state: State, link: tuple[Checkpoint, Checkpoint] | None) -> VotingStatus:
        """Whether a vote from the one to the other may be signed; with None, whether any may."""
        if self._doubt is None:
            if not self._inquiry.is_sufficient(state):
                return VotingStatus(VotingState.ASKING, "too few validators have said what they know")
            self._doubt = self._find_doubt(state)
        if self._doubt is Doubt.NONE:
            return VotingStatus(VotingState.VOTING)
        bound = self._get_bound(state)
        if link is not None:
            source, target = (checkpoint.height for checkpoint in link)
            if source > bound or self._is_enough(state, source, target, bound):
                return VotingStatus(VotingState.VOTING)
        what = "for a higher one" if self._doubt is Doubt.NEWCOMER else "once a higher one is justified"
        detail = f"this key may have signed for blocks up to height {bound}; it votes again {what}"
        return VotingStatus(VotingState.WAITING, detail)

    def settle(self) -> None:
        """A vote was allowed: what was in doubt is counted in."""
        if self._doubt is not Doubt.NONE:
            self._store.settle(self._inquiry.known)
            self._trusted = self._store.signed
            self._doubt = Doubt.NONE

    def _find_doubt(self, state: State) -> Doubt:
        known, signed = self._inquiry.known, self._store.signed
        if self._store.is_unknown or known.target > signed.target or known.source > signed.source:
            return Doubt.LOST
        if not self._store.is_missing:
            return Doubt.NONE
        if known != NOTHING_SIGNED:
            return Doubt.LOST
        return Doubt.NEWCOMER if self._get_bound(state) else Doubt.NONE

    def _get_bound(self, state: State) -> Height:
        """The greatest height that this key can have voted for."""
        known = self._inquiry.known
        heads = [head.height for head in self._inquiry.get_heads() if self._is_stored(head)]
        common = self._inquiry.get_common_height(state)
        return max(self._bound, self._start, known.target, common, *heads)

    def _is_stored(self, head: Checkpoint) -> bool:
        header = self._chain.get_header(head.hash)
        return header is not None and header.height == head.height

    def _is_enough(self, state: State, source: Height, target: Height, bound: Height) -> bool:
        inquiry = self._inquiry
        if self._doubt is Doubt.LOST:
            is_stuck = inquiry.is_complete(state) and not inquiry.can_others_justify(state)
            if not is_stuck:
                return False
        least = max(inquiry.known.source, inquiry.get_common_justified(state))
        return target > bound and source >= least
