"""Announcements: rejected only what no honest node can have relayed."""

from dataclasses import replace

import pytest

from consensus.claims import sign_claim, sign_presence
from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.errors import Reason
from consensus.gossip_rules import Outcome, judge_claim, judge_presence, judge_transaction
from consensus.task import Available
from consensus.transaction import MAX_TRANSACTION_BYTES
from consensus.types import Millis, Signature
from tests.unit.consensus.world import (
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    World,
    build_blob,
    build_genesis,
    build_milestone_world,
)

OTHER = hash_domain("test", b"other")


def test_transactions() -> None:
    world = World()
    world.carry(world.transfer(OUTSIDER, MINER_A, 1))
    good = world.transfer(OUTSIDER, MINER_A, 1)

    def judge(data: bytes) -> tuple[Outcome, Reason | None]:
        judgement = judge_transaction(data, world.state, world.get_context())
        return judgement.outcome, judgement.reason

    assert judge(encode(good)) == (Outcome.ACCEPT, None)
    early = world.transfer(OUTSIDER, MINER_A, 1, 9)
    assert judge(encode(early)) == (Outcome.ACCEPT, Reason.TX_NONCE_FUTURE)
    unknown = world.sign(MINER_A, Available(OTHER))
    assert judge(encode(unknown)) == (Outcome.ACCEPT, Reason.TASK_UNKNOWN)
    stale = world.transfer(OUTSIDER, MINER_A, 1, 0)
    assert judge(encode(stale)) == (Outcome.IGNORE, Reason.TX_NONCE)
    forged = replace(good, signature=Signature(bytes(64)))
    assert judge(encode(forged)) == (Outcome.REJECT, Reason.TX_SIGNATURE)
    foreign = World(build_genesis(name="other")).transfer(OUTSIDER, MINER_A, 1)
    assert judge(encode(foreign)) == (Outcome.REJECT, Reason.TX_CHAIN)
    assert judge(encode(good)[:-1]) == (Outcome.REJECT, Reason.TX_MALFORMED)
    assert judge(bytes(MAX_TRANSACTION_BYTES + 1)) == (Outcome.REJECT, Reason.TX_OVERSIZE)


@pytest.fixture(scope="module")
def world() -> World:
    """At step 2, whose batches are 0 and 1."""
    return build_milestone_world()


def test_claims(world: World) -> None:
    def judge(data: bytes) -> Outcome:
        return judge_claim(data, world.state, world.chain_id).outcome

    good = world.build_claims(2)[0]
    assert judge(encode(good)) == Outcome.ACCEPT
    assert judge(encode(world.build_claims(3)[0])) == Outcome.ACCEPT
    assert judge(encode(world.build_claims(4)[0])) == Outcome.IGNORE
    assert judge(encode(world.build_claims(1)[0])) == Outcome.IGNORE
    assert judge(encode(world.build_claims(2, (OUTSIDER,))[0])) == Outcome.IGNORE
    assert judge(encode(replace(good, task=OTHER))) == Outcome.IGNORE
    assert judge(encode(replace(good, miner=MINER_B.address))) == Outcome.REJECT
    assert judge(encode(replace(good, signature=Signature(b"")))) == Outcome.REJECT
    for step, batch in ((2, 2), (2, -1), (-1, 0)):
        wrong = sign_claim(MINER_A, world.chain_id, world.task, step, batch, build_blob("bundle"))
        assert judge(encode(wrong)) == Outcome.REJECT
    empty = sign_claim(MINER_A, world.chain_id, world.task, 2, 0, build_blob("bundle", 0))
    assert judge(encode(empty)) == Outcome.REJECT
    foreign = sign_claim(MINER_A, OTHER, world.task, 2, 0, build_blob("bundle"))
    assert judge(encode(foreign)) == Outcome.REJECT
    assert judge(b"\x00" + encode(good)) == Outcome.REJECT
    assert judge(bytes(600)) == Outcome.REJECT


def test_claims_of_an_ended_task_are_ignored() -> None:
    world = World()
    world.open()
    claim = encode(world.build_claims(0)[0])
    world.open_loss(1)
    world.add(world.build_work_block(MINER_A))
    world.settle()
    assert judge_claim(claim, world.state, world.chain_id).outcome == Outcome.IGNORE


def test_presence(world: World) -> None:
    now = Millis(world.header.time + 1_000)

    def judge(data: bytes, known: Millis | None = None) -> Outcome:
        return judge_presence(data, world.state, world.chain_id, now, known).outcome

    good = encode(sign_presence(MINER_A, world.chain_id, world.task, now))
    assert judge(good) == Outcome.ACCEPT
    assert judge(good, Millis(now - 1)) == Outcome.ACCEPT
    assert judge(good, now) == Outcome.IGNORE
    for time in (now - 60_001, now + 60_001):
        far = encode(sign_presence(MINER_A, world.chain_id, world.task, Millis(time)))
        assert judge(far) == Outcome.IGNORE
    assert judge(encode(sign_presence(OUTSIDER, world.chain_id, world.task, now))) == Outcome.IGNORE
    assert judge(encode(sign_presence(MINER_A, OTHER, world.task, now))) == Outcome.REJECT
    stolen = replace(sign_presence(MINER_A, world.chain_id, world.task, now), miner=CUSTODY.address)
    assert judge(encode(stolen)) == Outcome.REJECT
    assert judge(good[:-1]) == Outcome.REJECT
    assert judge(bytes(300)) == Outcome.REJECT
