"""What a node lets in and hands on of committees' openings, and what a miner says about its own bundles."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from consensus.claims import sign_claim, sign_sealed_claim
from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain
from consensus.gossip_rules import Outcome, judge_claim, judge_sealed_claim
from consensus.params import ChainParams
from consensus.publication import get_step_batches
from consensus.state import State
from consensus.task import Claim, PublishTask, SealedClaim
from consensus.types import Address, Hash32, Signature
from node import seals
from node.chain import Chain
from node.committee.exchange import CommitteeExchange
from node.committee.messages import Message, OpeningKind, Ready, TellRoot, encode_message, sign_message
from node.committee.mining import CommitteeMining
from node.committee.view import PoolView, TipView
from node.core import Core
from node.gossip.messages import Kind
from node.pulse import Pulse
from node.seals import SealPool, compute_seal_id, hash_seal
from node.tasks import TaskTip, load_definition
from tests.unit.consensus.ceremonial import MEMBERS, Committee, build_committee
from tests.unit.consensus.world import CUSTODY, MINER_A, MINER_B, OUTSIDER, World, build_blob

OTHER = hash_domain("test", b"other")
BUNDLE = build_blob("bundle")
STEP = 0


@pytest.fixture(scope="module")
def committee() -> Committee:
    return build_committee()


def seal(
    committee: Committee,
    key: SigningKey = MINER_A,
    step: int = STEP,
    batch: int | None = None,
    root: Hash32 = BUNDLE.root,
) -> SealedClaim:
    """Of the step's first batch, if no other is given."""
    world = committee.world
    if batch is None:
        batch = get_step_batches(get_publication(committee), max(0, step))[0]
    return sign_sealed_claim(key, world.chain_id, world.task, step, batch, root)


def get_publication(committee: Committee) -> PublishTask:
    found = committee.world.state.get_publication(committee.world.task)
    assert found is not None
    return found


# --- rules of gossip --------------------------------------------------------------------------


def test_seals(committee: Committee) -> None:
    world = committee.world

    def judge(data: bytes) -> Outcome:
        return judge_sealed_claim(data, world.state, world.chain_id).outcome

    good = seal(committee)
    assert judge(encode(good)) == Outcome.ACCEPT
    assert judge(encode(seal(committee, step=STEP + 1))) == Outcome.ACCEPT
    assert judge(encode(seal(committee, step=STEP + 2))) == Outcome.IGNORE
    assert judge(encode(seal(committee, OUTSIDER))) == Outcome.IGNORE
    assert judge(encode(replace(good, task=OTHER))) == Outcome.IGNORE
    assert judge(encode(seal(committee, batch=9))) == Outcome.REJECT
    assert judge(encode(seal(committee, step=-1))) == Outcome.REJECT
    assert judge(encode(replace(good, miner=MINER_B.address))) == Outcome.REJECT
    assert judge(encode(replace(good, seal=OTHER))) == Outcome.REJECT
    assert judge(encode(replace(good, signature=Signature(b"")))) == Outcome.REJECT
    assert judge(encode(good) + b"\0") == Outcome.REJECT
    assert judge(bytes(10_000)) == Outcome.REJECT


def test_open_claims_of_a_committees_task_go_nowhere(committee: Committee) -> None:
    """An open claim tells the root to everybody, who could then claim the batch without computing it."""
    world = committee.world
    claim = encode(sign_claim(MINER_A, world.chain_id, world.task, STEP, 0, BUNDLE))
    assert judge_claim(claim, world.state, world.chain_id).outcome == Outcome.IGNORE


def test_a_custodians_task_has_no_seals() -> None:
    world = World()
    world.open()
    sealed = sign_sealed_claim(MINER_A, world.chain_id, world.task, STEP, 0, BUNDLE.root)
    judged = judge_sealed_claim(encode(sealed), world.state, world.chain_id)
    assert judged.outcome == Outcome.IGNORE


# --- the pool of seals ------------------------------------------------------------------------


def test_the_first_seal_binds_a_miner(committee: Committee) -> None:
    pool, first, second = SealPool(), seal(committee), seal(committee, root=OTHER)
    assert pool.add(compute_seal_id(first), first)
    assert not pool.add(compute_seal_id(second), second)
    assert pool.get(compute_seal_id(first)) == first
    assert pool.get(compute_seal_id(second)) is None
    assert hash_seal(encode(first)) == compute_seal_id(first)
    other = seal(committee, MINER_B)
    assert pool.add(compute_seal_id(other), other)
    assert set(pool.get_for(first.task, STEP, 0)) == {first, other}
    assert pool.get_for(first.task, STEP, 1) == ()


def test_opened_steps_and_ended_tasks_are_forgotten(committee: Committee) -> None:
    pool, task = SealPool(), committee.world.task
    for step in range(3):
        item = seal(committee, step=step)
        pool.add(compute_seal_id(item), item)
    pool.drop_before(task, 2)
    assert [len(pool.get_for_step(task, step)) for step in range(3)] == [0, 0, 1]
    pool.drop_task(task)
    assert pool.get_tasks() == frozenset()


def test_the_pool_of_seals_is_bounded(committee: Committee, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seals, "MAX_SEALS", 2)
    pool, items = SealPool(), [seal(committee, step=step) for step in range(3)]
    for item in items:
        assert pool.add(compute_seal_id(item), item)
    assert [pool.get_for_step(committee.world.task, step) for step in range(3)] == [
        (),
        *((i,) for i in items[1:]),
    ]
    # What has left may come again.
    assert pool.add(compute_seal_id(items[0]), items[0])


# --- in and out -------------------------------------------------------------------------------


@dataclass
class Head:
    """What the exchange asks of a chain."""

    head_state: State
    chain_id: Hash32
    params: ChainParams = field(default_factory=ChainParams)


@dataclass
class Room:
    """One node's exchange; what it announces is kept."""

    committee: Committee
    key: SigningKey
    sent: list[tuple[Kind, Hash32, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = self.committee.world
        self.chain = Head(world.state, world.chain_id)
        self.pulse = Pulse()
        self.committees = CommitteeExchange(
            cast(Chain, self.chain), self.pulse, lambda *item: self.sent.append(item), self.look
        )
        self.address = self.key.address

    @property
    def tip(self) -> TaskTip:
        world = self.committee.world
        return TaskTip(world.task_state, world.state, 3, 0)

    def look(self, task: Hash32) -> TipView:
        state = self.committee.world.state
        definition = load_definition(state, task)
        return TipView(definition, None if definition is None else self.tip)

    def get_told(self) -> list[TellRoot]:
        members = {key.address for key in MEMBERS}
        told = [
            self.committees.messages.get_told(
                self.committee.ceremony, self.committee.world.task, STEP, member
            )
            for member in members
        ]
        return [message for messages in told for message in messages]


@pytest.fixture
def room(committee: Committee) -> Room:
    return Room(committee, MINER_A)


def test_a_new_seal_is_handed_on_once(room: Room, committee: Committee) -> None:
    data = encode(seal(committee, MINER_B))
    assert room.committees.take_seal(data) == Outcome.ACCEPT
    assert room.committees.take_seal(data) == Outcome.IGNORE
    assert [(kind, sent) for kind, _, sent in room.sent] == [(Kind.SEAL, data)]
    assert room.committees.take_seal(b"\0") == Outcome.REJECT
    assert room.committees.take_seal(encode(seal(committee, root=OTHER, batch=9))) == Outcome.REJECT
    assert len(room.sent) == 1


def build_ready(committee: Committee, key: SigningKey, **changes: object) -> Message:
    world = committee.world
    blank = Ready(
        committee.ceremony, world.task, STEP, OpeningKind.GRADIENT, key.address, OTHER, Signature(b"")
    )
    return sign_message(key, world.chain_id, replace(blank, **changes))  # type: ignore[arg-type]


def test_a_members_message_is_handed_on_once(room: Room, committee: Committee) -> None:
    member = encode_message(build_ready(committee, MEMBERS[0]))
    assert room.committees.take_message(member) == Outcome.ACCEPT
    assert room.committees.take_message(member) == Outcome.IGNORE
    assert [kind for kind, _, _ in room.sent] == [Kind.COMMITTEE]
    for key, changes in ((OUTSIDER, {}), (MEMBERS[0], {"task": OTHER}), (MEMBERS[0], {"ceremony": OTHER})):
        message = encode_message(build_ready(committee, key, **changes))
        assert room.committees.take_message(message) == Outcome.IGNORE
    assert room.committees.take_message(b"\0") == Outcome.REJECT
    assert len(room.sent) == 1


def test_what_is_said_again_is_announced_again(room: Room, committee: Committee) -> None:
    """A peer that has restarted since knows nothing of it."""
    message = build_ready(committee, MEMBERS[0])
    room.committees.say(message)
    room.committees.say(message)
    assert len(room.sent) == 2
    assert len(room.committees.messages) == 1


def test_the_tips_view_of_other_tasks_is_empty(room: Room, committee: Committee) -> None:
    view, world = PoolView(room.look), committee.world
    found = view.get_committee(world.task)
    assert found is not None
    assert (found.ceremony, found.step, set(found.members)) == (
        committee.ceremony,
        STEP,
        {key.address for key in MEMBERS},
    )
    assert view.has_batch(world.task, STEP, 0)
    assert not view.has_batch(world.task, STEP, 9)
    assert view.may_mine(MINER_A.address)
    assert not view.may_mine(OUTSIDER.address)
    assert view.get_committee(OTHER) is None
    assert not view.has_batch(OTHER, STEP, 0)
    single = World()
    single.open()
    tip = TaskTip(single.task_state, single.state, 3, 0)
    plain = TipView(load_definition(single.state, single.task), tip)
    assert plain.get_committee(single.task) is None


def test_what_the_head_has_opened_is_forgotten() -> None:
    committee = build_committee()
    room, world = Room(committee, MINER_A), committee.world
    room.committees.take_seal(encode(seal(committee)))
    room.committees.take_seal(encode(seal(committee, step=STEP + 1)))
    room.committees.take_message(encode_message(build_ready(committee, MEMBERS[0])))
    committee.open_loss(900)
    committee.open_gradient()
    room.chain.head_state = world.state
    room.committees.forget_opened()
    assert room.committees.seals.get_for_step(world.task, STEP) == ()
    assert len(room.committees.seals.get_for_step(world.task, STEP + 1)) == 1
    assert len(room.committees.messages) == 0


# --- a miner's side ---------------------------------------------------------------------------


@dataclass
class Presences:
    order: Sequence[Address]

    def get_present(self, task: Hash32, now: int) -> Sequence[Address]:
        return self.order


def claim(committee: Committee, key: SigningKey = MINER_A) -> Claim:
    world = committee.world
    return sign_claim(key, world.chain_id, world.task, STEP, 0, BUNDLE)


def test_a_root_is_told_only_when_enough_are_bound_to_it(committee: Committee) -> None:
    """To all members, in boxes that only they open; a seal of another root counts for nothing."""
    room, world = Room(committee, MINER_A), committee.world
    mining, own = CommitteeMining(cast(Core, room)), claim(committee)
    definition = load_definition(world.state, world.task)
    assert definition is not None
    mining.seal(own)
    [(kind, _, data)] = room.sent
    assert (kind, data) == (Kind.SEAL, encode(seal(committee)))
    assert BUNDLE.root not in data
    mining.tell(definition, room.tip, [own])
    assert room.get_told() == []
    room.committees.take_seal(encode(seal(committee, CUSTODY, root=OTHER)))
    mining.tell(definition, room.tip, [own])
    assert room.get_told() == []
    room.committees.take_seal(encode(seal(committee, MINER_B)))
    mining.tell(definition, room.tip, [own])
    told = room.get_told()
    assert {message.member for message in told} == {key.address for key in MEMBERS}
    assert all(BUNDLE.root not in encode_message(message) for message in told)
    sent = len(room.sent)
    mining.tell(definition, room.tip, [own])
    assert len(room.sent) == sent
    mining.repeat(own)
    assert len(room.sent) == sent + 1 + len(MEMBERS)
    mining.forget(own)
    mining.repeat(own)
    assert len(room.sent) == sent + 2 + len(MEMBERS)
