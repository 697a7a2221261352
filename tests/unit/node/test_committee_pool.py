"""What a node does with a committee's messages; what is sealed stays sealed."""

from dataclasses import replace

import pytest

from consensus.claims import sign_claim
from consensus.crypto import SigningKey
from consensus.gossip_rules import Outcome
from consensus.task import BlobRef
from consensus.types import Address, Hash32, Signature
from node.committee.boxes import Box, BoxError, SharedBox, get_public_key, open_box, seal
from node.committee.messages import (
    MAX_BOX_BYTES,
    MAX_CONTENT_BYTES,
    LossContent,
    Message,
    MessageError,
    OpeningKind,
    Partial,
    Proposal,
    Ready,
    TellRoot,
    compute_question,
    decode_message,
    encode_content,
    encode_message,
    hash_message,
    open_proposal,
    open_told,
    seal_proposal,
    sign_message,
    tell_root,
)
from node.committee.pool import Committee, CommitteePool
from node.committee.records import Answered, Cosigned, RecordDamaged, Records, decode_record, encode_record

CHAIN, CEREMONY, TASK, HASH = (Hash32(bytes([number]) * 32) for number in range(1, 5))
STEP = 5
KEYS = [SigningKey(bytes([number + 1]) * 32) for number in range(5)]
MEMBERS = tuple(sorted(key.address for key in KEYS[:3]))
MINER, STRANGER = KEYS[3], KEYS[4]
PRIVATES = [bytes([60 + place]) * 32 for place in range(3)]
PUBLICS = tuple(get_public_key(private) for private in PRIVATES)
CONTENT = LossContent(HASH, HASH, HASH)
NONE = Signature(b"")


class View:
    def get_committee(self, task: Hash32) -> Committee | None:
        return Committee(CEREMONY, MEMBERS, STEP) if task == TASK else None

    def may_mine(self, account: Address) -> bool:
        return account == MINER.address

    def has_batch(self, task: Hash32, step: int, batch: int) -> bool:
        return batch == 0


def ready(key: SigningKey = KEYS[0], question: Hash32 = HASH, **changes: object) -> bytes:
    message = Ready(CEREMONY, TASK, STEP, OpeningKind.LOSS, key.address, question, NONE)
    return encode_message(sign_message(key, CHAIN, replace(message, **changes)))  # type: ignore[arg-type]


def tell(key: SigningKey = MINER, batch: int = 0, member: Address = MEMBERS[0]) -> TellRoot:
    claim = sign_claim(key, CHAIN, TASK, STEP, batch, BlobRef(HASH, 1000))
    return tell_root(key, CHAIN, CEREMONY, claim, member, PUBLICS[0])


def propose() -> Proposal:
    question = compute_question(TASK, STEP, CONTENT)
    blank = Proposal(
        CEREMONY, TASK, STEP, OpeningKind.LOSS, 1, KEYS[0].address, (0, 1), question, HASH,
        SharedBox(b"", ()), NONE,
    )  # fmt: skip
    return seal_proposal(KEYS[0], CHAIN, blank, encode_content(CONTENT), PUBLICS)


def test_members_and_miners_are_heard_once() -> None:
    pool = CommitteePool()
    for data in (ready(), encode_message(tell()), encode_message(propose())):
        assert pool.take(data, CHAIN, View()).outcome is Outcome.ACCEPT
        assert pool.take(data, CHAIN, View()).outcome is Outcome.IGNORE
        assert pool.get(hash_message(data)) == data
    assert len(pool) == 3
    assert [type(message) for message in pool.get_round(CEREMONY, TASK, STEP)] == [Ready, Proposal]
    assert pool.get_told(CEREMONY, TASK, STEP, MEMBERS[0])
    assert not pool.get_told(CEREMONY, TASK, STEP, MEMBERS[1])
    # Of those who had shares before, or have them after a renewal, it is nothing.
    assert not pool.get_told(HASH, TASK, STEP, MEMBERS[0])
    assert not pool.get_round(HASH, TASK, STEP)


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (ready(STRANGER), Outcome.IGNORE),
        (ready(MINER), Outcome.IGNORE),
        (ready(step=STEP + 1), Outcome.ACCEPT),
        (ready(step=STEP + 2), Outcome.IGNORE),
        (ready(step=STEP - 1), Outcome.IGNORE),
        (ready(task=HASH), Outcome.IGNORE),
        (ready(ceremony=HASH), Outcome.IGNORE),
        (encode_message(tell(STRANGER)), Outcome.IGNORE),
        (encode_message(tell(batch=1)), Outcome.IGNORE),
        (encode_message(tell(member=MINER.address)), Outcome.IGNORE),
        (ready()[:-1], Outcome.REJECT),
        (ready()[:-1] + b"\0", Outcome.REJECT),
        (bytes(300_000), Outcome.REJECT),
        (b"", Outcome.REJECT),
    ],
)
def test_judgement(data: bytes, outcome: Outcome) -> None:
    pool = CommitteePool()
    assert pool.take(data, CHAIN, View()).outcome is outcome
    assert len(pool) == (outcome is Outcome.ACCEPT)


def test_nobody_crowds_out_another() -> None:
    """A member's third readiness is not kept, whatever it is of; forgotten steps make room."""
    pool = CommitteePool()
    outcomes = [pool.take(ready(question=Hash32(bytes([n]) * 32)), CHAIN, View()).outcome for n in range(4)]
    assert outcomes == [Outcome.ACCEPT, Outcome.ACCEPT, Outcome.IGNORE, Outcome.IGNORE]
    assert pool.take(ready(KEYS[1]), CHAIN, View()).outcome is Outcome.ACCEPT
    assert pool.take(ready(step=STEP + 1), CHAIN, View()).outcome is Outcome.ACCEPT
    again = encode_message(tell())
    assert pool.take(again, CHAIN, View()).outcome is Outcome.ACCEPT
    assert pool.take(encode_message(tell()), CHAIN, View()).outcome is Outcome.IGNORE
    pool.forget_before(TASK, STEP + 1)
    assert len(pool) == 1
    assert pool.take(ready(), CHAIN, View()).outcome is Outcome.ACCEPT
    pool.forget_task(TASK)
    assert len(pool) == 0
    assert hash_message(again) not in pool


def test_own_messages_are_announced() -> None:
    pool, message = CommitteePool(), decode_message(ready())
    own = pool.add_own(message)
    assert own == pool.add_own(message) == hash_message(ready())
    assert pool.get(own) == ready()


def test_roots_are_for_one_member() -> None:
    """Nobody else's key opens it, and it opens in no other place."""
    told = tell()
    claim = open_told(PRIVATES[0], CHAIN, told)
    assert claim.bundle.root == HASH
    assert HASH not in encode_message(replace(told, ceremony=CEREMONY))
    with pytest.raises(BoxError):
        open_told(PRIVATES[1], CHAIN, told)
    for changed in (
        replace(told, step=STEP + 1),
        replace(told, batch=1),
        replace(told, task=CHAIN),
        replace(told, ceremony=HASH),
        replace(told, miner=STRANGER.address),
        replace(told, member=MEMBERS[1]),
    ):
        with pytest.raises(BoxError):
            open_told(PRIVATES[0], CHAIN, changed)
    with pytest.raises(BoxError):
        open_told(PRIVATES[0], HASH, told)


def test_a_told_claim_is_of_its_miner_and_batch() -> None:
    """A miner can't pass on another's claim as told by itself."""
    claim = sign_claim(STRANGER, CHAIN, TASK, STEP, 0, BlobRef(HASH, 1000))
    told = tell_root(MINER, CHAIN, CEREMONY, claim, MEMBERS[0], PUBLICS[0])
    with pytest.raises(MessageError, match="another batch or miner"):
        open_told(PRIVATES[0], CHAIN, told)


def test_proposals_open_for_members_alone() -> None:
    proposal = propose()
    for place, private in enumerate(PRIVATES):
        assert open_proposal(private, place, CHAIN, proposal) == CONTENT
    with pytest.raises(BoxError):
        open_proposal(bytes([99]) * 32, 0, CHAIN, proposal)
    with pytest.raises(BoxError):
        open_proposal(PRIVATES[0], 3, CHAIN, proposal)
    with pytest.raises(BoxError):
        open_proposal(PRIVATES[0], 0, CHAIN, replace(proposal, attempt=2))


def test_a_proposal_names_what_is_in_it() -> None:
    other = replace(propose(), question=HASH)
    with pytest.raises(MessageError, match="question"):
        open_proposal(
            PRIVATES[0], 0, CHAIN, seal_proposal(KEYS[0], CHAIN, other, encode_content(CONTENT), PUBLICS)
        )


def test_keys_of_small_order_are_refused() -> None:
    for point in (bytes(32), (1).to_bytes(32, "little")):
        with pytest.raises(BoxError):
            seal(point, b"data", b"context")
        with pytest.raises(BoxError):
            open_box(PRIVATES[0], Box(Hash32(point), bytes(32)), b"context")


@pytest.mark.parametrize(
    "message",
    [
        replace(propose(), attempt=3),
        replace(propose(), attempt=0),
        replace(propose(), subset=(1, 0)),
        replace(propose(), subset=(0, 0)),
        replace(propose(), subset=(0, 64)),
        replace(propose(), subset=(-1, 0)),
        replace(propose(), step=-1),
        replace(propose(), shared=SharedBox(bytes(MAX_CONTENT_BYTES + 17), ())),
        replace(propose(), shared=SharedBox(b"", (Box(HASH, b""),) * 65)),
        replace(tell(), box=Box(HASH, bytes(MAX_BOX_BYTES + 1))),
        replace(tell(), batch=2**32),
        Partial(CEREMONY, TASK, STEP, OpeningKind.LOSS, 1, MEMBERS[0], HASH, ((-1,),), NONE),
        Partial(CEREMONY, TASK, STEP, OpeningKind.LOSS, 1, MEMBERS[0], HASH, ((1,) * 9,), NONE),
        Partial(CEREMONY, TASK, STEP, OpeningKind.LOSS, 1, MEMBERS[0], HASH, ((),) * 4097, NONE),
    ],
)
def test_every_field_is_bounded(message: Message) -> None:
    with pytest.raises(MessageError):
        decode_message(encode_message(message))


def test_records_never_contradict_each_other() -> None:
    first, second = Cosigned(1, HASH), Cosigned(1, TASK)
    assert decode_record(encode_record(first)) == first
    with pytest.raises(RecordDamaged):
        Records([first]).add(second)
    answered = Answered(propose(), encode_content(CONTENT))
    assert Records([answered]).get_answer(1) == answered.id
    with pytest.raises(RecordDamaged):
        Records([answered]).add(Answered(propose(), encode_content(CONTENT)))
    with pytest.raises(RecordDamaged):
        decode_record(b"\x90")
