"""Messages of committees that a node has heard of, and what it does with one that it hears.

As in `consensus.gossip_rules`: rejected is what no honest node can have relayed, ignored what another state
might make right. Kept for the step that is being opened and the next one; so many of each kind that whoever
is a member, or may mine, can't crowd out anybody else.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from consensus.gossip_rules import Outcome
from consensus.types import Address, Hash32
from node.committee.messages import (
    MAX_ATTEMPTS,
    Cosign,
    Message,
    MessageError,
    Partial,
    Proposal,
    Ready,
    RoundMessage,
    TellRoot,
    decode_message,
    encode_message,
    get_sender,
    hash_message,
    verify_message,
)

MAX_MESSAGES = 65_536
MAX_BYTES = 64 * 1024 * 1024
QUOTAS: dict[type, int] = {TellRoot: 1, Ready: 2, Proposal: 2, Partial: 2, Cosign: 2}
"""Different ones of a sender for one thing: one that counts, and one that proves a contradiction."""


@dataclass(frozen=True, slots=True)
class Committee:
    """Who may speak about a task."""

    ceremony: Hash32
    members: tuple[Address, ...]
    step: int
    """That is being opened."""


class View(Protocol):
    """What the head, or a task's tip, says."""

    def get_committee(self, task: Hash32) -> Committee | None:
        """None of a task that is not open, or has no committee."""
        ...

    def may_mine(self, account: Address) -> bool: ...

    def has_batch(self, task: Hash32, step: int, batch: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Judged:
    outcome: Outcome
    detail: str = ""
    message: Message | None = None
    """If accepted."""


def judge_message(data: bytes, chain_id: Hash32, view: View) -> Judged:
    """Cheapest checks first; the signature last."""
    try:
        message = decode_message(data)
    except MessageError as error:
        return Judged(Outcome.REJECT, str(error))
    committee = view.get_committee(message.task)
    if committee is None or committee.ceremony != message.ceremony:
        return Judged(Outcome.IGNORE, "no committee of an open task")
    if not committee.step <= message.step <= committee.step + 1:
        return Judged(Outcome.IGNORE, f"the task is at step {committee.step}")
    sender = get_sender(message)
    if isinstance(message, TellRoot):
        if message.member not in committee.members:
            return Judged(Outcome.IGNORE, "told to no member")
        if not view.has_batch(message.task, message.step, message.batch):
            return Judged(Outcome.IGNORE, "no batch of this step")
        if not view.may_mine(sender):
            return Judged(Outcome.IGNORE, "may not mine")
    elif sender not in committee.members:
        return Judged(Outcome.IGNORE, "no member")
    if not verify_message(chain_id, message):
        return Judged(Outcome.REJECT, "signature")
    return Judged(Outcome.ACCEPT, message=message)


@dataclass(slots=True)
class CommitteePool:
    """Accepted messages, by the id under which they are announced."""

    _messages: dict[Hash32, Message] = field(default_factory=dict)
    _counts: Counter[tuple[object, ...]] = field(default_factory=Counter)
    _sizes: dict[Hash32, int] = field(default_factory=dict)
    _bytes: int = 0

    def take(self, data: bytes, chain_id: Hash32, view: View) -> Judged:
        """Judge and keep a message; ignored if it is known, or its sender has said enough."""
        own = hash_message(data)
        if own in self._messages:
            return Judged(Outcome.IGNORE, "known")
        judged = judge_message(data, chain_id, view)
        if judged.message is None or self._add(own, judged.message, len(data)):
            return judged
        return Judged(Outcome.IGNORE, "its sender has said enough, or the pool is full")

    def add_own(self, message: Message) -> Hash32:
        """This node's own, which it announces under the returned id."""
        data = encode_message(message)
        own = hash_message(data)
        if own not in self._messages:
            self._add(own, message, len(data))
        return own

    def _add(self, own: Hash32, message: Message, size: int) -> bool:
        slot = _get_slot(message)
        if self._counts[slot] >= QUOTAS[type(message)]:
            return False
        if len(self._messages) >= MAX_MESSAGES or self._bytes + size > MAX_BYTES:
            return False
        self._messages[own] = message
        self._sizes[own] = size
        self._counts[slot] += 1
        self._bytes += size
        return True

    def __contains__(self, message_id: Hash32) -> bool:
        return message_id in self._messages

    def __len__(self) -> int:
        return len(self._messages)

    def get(self, message_id: Hash32) -> bytes | None:
        """To hand to a peer that asks."""
        message = self._messages.get(message_id)
        return None if message is None else encode_message(message)

    def get_round(self, ceremony: Hash32, task: Hash32, step: int) -> list[RoundMessage]:
        """What a ceremony's members said about a step's openings, in order of arrival."""
        wanted = ceremony, task, step
        found = (m for m in self._messages.values() if (m.ceremony, m.task, m.step) == wanted)
        return [message for message in found if not isinstance(message, TellRoot)]

    def get_told(self, ceremony: Hash32, task: Hash32, step: int, member: Address) -> list[TellRoot]:
        """What miners told one of a ceremony's members of a step's batches."""
        wanted = ceremony, task, step
        found = (m for m in self._messages.values() if (m.ceremony, m.task, m.step) == wanted)
        return [message for message in found if isinstance(message, TellRoot) and message.member == member]

    def get_tasks(self) -> frozenset[Hash32]:
        """Of which something is kept."""
        return frozenset(message.task for message in self._messages.values())

    def forget_before(self, task: Hash32, step: int) -> None:
        """Of steps that are opened."""
        self._forget([i for i, m in self._messages.items() if m.task == task and m.step < step])

    def forget_task(self, task: Hash32) -> None:
        """Of a task that has ended."""
        self._forget([i for i, m in self._messages.items() if m.task == task])

    def _forget(self, ids: list[Hash32]) -> None:
        for message_id in ids:
            message = self._messages.pop(message_id)
            slot = _get_slot(message)
            self._counts[slot] -= 1
            if not self._counts[slot]:
                del self._counts[slot]
            self._bytes -= self._sizes.pop(message_id)


def _get_slot(message: Message) -> tuple[object, ...]:
    """What a sender has one thing to say about."""
    sender = get_sender(message)
    # A member may have the shares of a renewal, too, and has more to say then.
    where: tuple[object, ...] = (type(message), message.ceremony, message.task, message.step, sender)
    if isinstance(message, TellRoot):
        return (*where, message.batch, message.member)
    if isinstance(message, Ready | Cosign):
        return (*where, message.kind)
    return (*where, message.kind, message.attempt)


MAX_BY_MEMBER = 2 * (QUOTAS[Ready] + QUOTAS[Cosign] + MAX_ATTEMPTS * (QUOTAS[Proposal] + QUOTAS[Partial]))
"""Messages of one member about one step that are kept."""
