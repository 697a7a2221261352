"""What a node has seen of others' votes, and what others say that they have seen of ours.

A validator that lost its sign-state, or was restored from an old backup, can't know what it signed; others
can, for every vote that left it. Each node keeps the furthest votes of every validator, on disk, and says
under its signature which they are. Votes prove themselves; only that there are none is believed, and of so
many validators that two thirds of stake, with the asking one's own, say so.
"""

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from consensus.codec import CodecError, decode, encode
from consensus.crypto import SigningKey, verify
from consensus.finality import is_quorum
from consensus.state import State
from consensus.types import Address, Hash32, Height, Signature
from consensus.vote import NOTHING_SIGNED, Checkpoint, SignState, Vote, verify_vote
from node.gossip.messages import NONCE_BYTES, PeerStatus, WitnessReply, WitnessRequest
from node.ledger.chainstore import Ledger

SEEN_PREFIX = b"seenvotes/"
MAX_SEEN = 4_096
"""Validators whose votes are remembered; more have never been members of the last, active and next sets."""


@dataclass(frozen=True, slots=True)
class SeenVotes:
    """A validator's furthest votes: of the highest target and, if another, of the highest source."""

    votes: tuple[Vote, ...]

    def including(self, vote: Vote) -> "SeenVotes":
        votes = (*self.votes, vote)
        furthest = max(votes, key=lambda seen: (seen.target.height, seen.source.height))
        latest = max(votes, key=lambda seen: (seen.source.height, seen.target.height))
        if furthest.source.height >= latest.source.height:
            return SeenVotes((furthest,))
        return SeenVotes((furthest, latest))


class VoteMemory:
    """The furthest votes of every validator, kept over restarts; votes come in checked."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen: OrderedDict[Address, SeenVotes] = OrderedDict()
        self._changed: set[Address] = set()
        for key, data in ledger.iterate_records(SEEN_PREFIX):
            try:
                self._seen[Address(key[len(SEEN_PREFIX) :])] = decode(SeenVotes, data)
            except CodecError:
                continue  # worth no more than votes that were never seen

    def add(self, vote: Vote) -> None:
        before = self._seen.get(vote.validator, SeenVotes(()))
        after = before.including(vote)
        if after == before:
            return
        self._seen[vote.validator] = after
        self._seen.move_to_end(vote.validator)
        self._changed.add(vote.validator)

    def get(self, validator: Address) -> tuple[Vote, ...]:
        found = self._seen.get(validator)
        return () if found is None else found.votes

    def flush(self) -> None:
        """Write what changed since the last time, as one batch. A crash before it forgets little: every
        other node has seen the same votes."""
        forgotten = []
        while len(self._seen) > MAX_SEEN:
            forgotten.append(self._seen.popitem(last=False)[0])
        changed = [validator for validator in self._changed if validator in self._seen]
        self._changed.clear()
        if changed or forgotten:
            puts = {SEEN_PREFIX + validator: encode(self._seen[validator]) for validator in changed}
            self._ledger.put_records(puts, [SEEN_PREFIX + validator for validator in forgotten])


def _get_signed(chain_id: Hash32, validator: Address, nonce: bytes, reply: WitnessReply) -> bytes:
    return chain_id + validator + nonce + encode(replace(reply, signature=Signature(b"")))


def sign_witness(
    key: SigningKey, chain_id: Hash32, request: WitnessRequest, reply: WitnessReply
) -> WitnessReply:
    """The reply under the key's name."""
    named = replace(reply, witness=key.address)
    signed = _get_signed(chain_id, request.validator, request.nonce, named)
    return replace(named, signature=key.sign("witness", signed))


def verify_witness(chain_id: Hash32, validator: Address, nonce: bytes, reply: WitnessReply) -> bool:
    """True exactly if the answering node signed this answer to this question, and all votes in it are the
    validator's."""
    if any(vote.validator != validator or not verify_vote(chain_id, vote) for vote in reply.votes):
        return False
    signed = _get_signed(chain_id, validator, nonce, reply)
    return verify(reply.witness, "witness", signed, reply.signature)


class WitnessNetwork(Protocol):
    """What asking needs of the peer network."""

    def get_statuses(self) -> Mapping[str, PeerStatus]:
        """What linked peers last said of themselves, by node id."""
        ...

    async def request_witness(self, node_id: str, validator: Address, nonce: bytes) -> WitnessReply:
        """Raises `TransportError`."""
        ...


@dataclass(slots=True)
class Inquiry:
    """What is known of the votes that a validator signed before; no I/O."""

    chain_id: Hash32
    validator: Address
    known: SignState = NOTHING_SIGNED
    """The furthest that anybody has seen it sign."""
    _answers: dict[Address, WitnessReply] = field(default_factory=dict)
    _first: dict[Address, WitnessReply] = field(default_factory=dict)
    """What each said when it was asked first: later heads are not those of our former self's time."""
    _asked: set[bytes] = field(default_factory=set)

    def ask(self) -> bytes:
        """A nonce for one question."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._asked.add(nonce)
        return nonce

    def give_up(self, nonce: bytes) -> None:
        self._asked.discard(nonce)

    def take(self, nonce: bytes, reply: WitnessReply) -> bool:
        """Count an answer; False if it is none to this question."""
        is_asked = nonce in self._asked
        self._asked.discard(nonce)
        if not is_asked or not verify_witness(self.chain_id, self.validator, nonce, reply):
            return False
        self._answers[reply.witness] = reply
        self._first.setdefault(reply.witness, reply)
        for vote in reply.votes:
            self.note(vote)
        return True

    def note(self, vote: Vote) -> None:
        """A vote of the validator was seen."""
        self.known = self.known.after(vote)

    def is_sufficient(self, state: State) -> bool:
        """Whether validators with two thirds of stake, the asking one's included, have answered."""
        members = {self.validator, *self._answers}
        stake = sum(state.get_stake(member) for member in members)
        return is_quorum(stake, state.get_total_stake())

    def is_complete(self, state: State) -> bool:
        """Whether every other validator has answered."""
        others = {member.address for member in state.get_acting_validators()} - {self.validator}
        return others <= self._answers.keys()

    def can_others_justify(self, state: State) -> bool:
        """Whether two thirds of stake may vote without the asking validator: all but those who say that they
        are silent too."""
        stake = sum(
            member.stake
            for member in state.get_acting_validators()
            if member.address != self.validator
            and not ((answer := self._answers.get(member.address)) and answer.is_silent)
        )
        return is_quorum(stake, state.get_total_stake())

    def get_heads(self) -> list[Checkpoint]:
        """The heads that were reported, each node's first."""
        return [reply.head for reply in self._first.values()]

    def get_common_height(self, state: State) -> Height:
        """The greatest height of first head that more than a third of stake reports or surpasses: no smaller
        part can raise it by lies."""
        return self._get_quantile(state, {a: reply.head.height for a, reply in self._first.items()})

    def get_common_justified(self, state: State) -> Height:
        """The same for justified checkpoints."""
        return self._get_quantile(state, {a: reply.justified.height for a, reply in self._first.items()})

    def _get_quantile(self, state: State, heights: dict[Address, Height]) -> Height:
        total, stake = state.get_total_stake(), 0
        for address, height in sorted(heights.items(), key=lambda item: -item[1]):
            stake += state.get_stake(address)
            if 3 * stake > total:
                return height
        return Height(0)
