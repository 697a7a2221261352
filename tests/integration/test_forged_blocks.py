"""Forged blocks given to a whole node core as a peer would: refused with their rule's reason, the peer at
fault, nothing changed, and the node goes on with the honest block.

The forgeries are those of the unit tests of the rules; here they travel as bytes through the peer handlers
into a chain over a real ledger.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgpack
import pytest

from consensus.block import Block
from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain
from consensus.errors import Reason
from consensus.gossip_rules import Outcome
from consensus.identifiers import compute_block_hash
from consensus.task import OpenGradient, OpenLoss
from consensus.types import ZERO_HASH, Hash32, Height, Millis
from consensus.vote import Checkpoint, Vote, sign_vote
from consensus.work import LossCheck
from node.blobs import BlobStore
from node.chain import Chain, Imported, ImportStatus
from node.clock import ManualClock
from node.core import Core
from node.events import EventBus
from node.gossip.messages import Kind
from node.handlers import PeerHandlers
from node.history import WeightHistory
from node.ledger.check import check_ledger
from node.ledger.level import LevelStore
from node.mempool import Mempool
from node.recomputer import Recomputer
from node.waiting import MAX_BLOCKS
from node.work import VerdictBook, WorkService
from tests.unit.consensus.test_block_rules import FORGERIES as BLOCK_FORGERIES
from tests.unit.consensus.test_openings import REFUSED as WRONG_OPENINGS
from tests.unit.consensus.test_work_rules import FORGERIES as WORK_FORGERIES
from tests.unit.consensus.world import (
    CIPHERTEXT,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    START,
    World,
)

MUCH_LATER_MS = 100_000_000
"""Ahead of every block here, so that nothing is held unless a test turns the clock back."""
OTHER = hash_domain("test", b"other")


@dataclass
class RecordedWorld(World):
    """Remembers its blocks, for a node to follow."""

    blocks: list[Block] = field(default_factory=list)

    def add(self, block: Block) -> None:
        super().add(block)
        self.blocks.append(block)


class RecordingCore(Core):
    """Remembers what became of each block; the handlers tell a peer's network only whom to blame."""

    imported: Imported

    def take_block(self, data: bytes) -> Imported:
        self.imported = super().take_block(data)
        return self.imported


class Follower:
    """A node core over LevelDB that hears of blocks from a peer."""

    def __init__(self, world: RecordedWorld, directory: Path) -> None:
        self.clock = ManualClock(START + MUCH_LATER_MS)
        self.verdicts = VerdictBook()
        store = LevelStore(directory / "ledger")
        self.chain = Chain(world.genesis, store, self.clock, self.verdicts)
        self.verdicts.open(self.chain.ledger)
        blobs = BlobStore(directory / "blobs")
        self.core = RecordingCore(
            self.chain,
            Mempool(),
            blobs,
            WorkService(blobs, self.verdicts, 1),
            WeightHistory(self.chain.ledger),
            EventBus(100, self.clock.now_ms()),
            self.clock,
            SigningKey(b"f" * 32),
        )
        self.chain.on_head_change(self.core.on_head_change)
        self.recomputer = Recomputer(self.core)
        self.handlers = PeerHandlers(self.core, self.recomputer)
        self._world = world

    async def give(self, block: Block | bytes) -> Outcome:
        """The block arrives from a peer."""
        data = block if isinstance(block, bytes) else encode(block)
        block_hash = Hash32(bytes(32)) if isinstance(block, bytes) else compute_block_hash(block.header)
        return await self.handlers.on_object(Kind.BLOCK, block_hash, data, "peer")

    async def follow(self) -> None:
        """Catch up with the world, losses recomputed."""
        for block in self._world.blocks:
            assert await self.give(block) is Outcome.ACCEPT, self.core.imported
        assert self.mark == (compute_block_hash(self._world.header), self._world.state.root)

    def recompute(self, step: int, ciphertext: Hash32 = CIPHERTEXT) -> LossCheck:
        """Record a finished recomputation."""
        check = LossCheck(self._world.task, step, self._world.weights[step])
        self.verdicts.remember(check, ciphertext)
        return check

    @property
    def mark(self) -> tuple[Hash32, Hash32]:
        """Head and state root."""
        assert self.chain.head_state.root == self.chain.head.state_root
        return self.chain.head_hash, self.chain.head_state.root

    async def refuse(self, forged: Block | bytes, reason: Reason) -> None:
        """The forged block is refused for this reason, its peer blamed, and nothing changes."""
        before, waiting = self.mark, self.chain.get_waiting_checks()
        outcome = await self.give(forged)
        imported = self.core.imported
        assert (imported.status, imported.reason) == (ImportStatus.INVALID, reason), imported
        assert outcome is Outcome.REJECT
        assert imported.peer_at_fault
        assert self.mark == before
        assert self.chain.get_waiting_checks() == waiting
        if imported.hash is not None:
            assert not self.handlers.has_object(Kind.BLOCK, imported.hash)

    async def go_on(self, honest: Block) -> None:
        """The honest block is accepted, and everything stored is consistent."""
        self._world.add(honest)
        assert await self.give(honest) is Outcome.ACCEPT, self.core.imported
        assert self.mark == (compute_block_hash(self._world.header), self._world.state.root)
        assert list(check_ledger(self.chain.ledger)) == []


Start = Callable[[RecordedWorld], Follower]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Makes followers and closes their ledgers."""
    followers: list[Follower] = []

    def build(world: RecordedWorld) -> Follower:
        followers.append(Follower(world, tmp_path / str(len(followers))))
        return followers[-1]

    yield build
    for follower in followers:
        follower.chain.ledger.close()


@pytest.fixture
def carried() -> RecordedWorld:
    """A chain of one carrier block."""
    world = RecordedWorld()
    world.carry(world.transfer(OUTSIDER, MINER_A, 5))
    return world


@pytest.fixture
def mined() -> RecordedWorld:
    """Rung 0 is met by the loss at step 2 and pending; miner A has three credits, miner B one."""
    world = RecordedWorld()
    world.open()
    world.open_loss(900)
    world.open_gradient((MINER_A, MINER_A))
    world.open_gradient((MINER_A, MINER_B))
    world.open_loss(60)
    return world


# --- B ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("forge", "reason", "cause"), BLOCK_FORGERIES)
async def test_forged_block(
    carried: RecordedWorld,
    start: Start,
    forge: Callable[[World, Block], Block],
    reason: Reason,
    cause: Reason | None,
) -> None:
    follower = start(carried)
    await follower.follow()
    honest = carried.build_carrier(carried.transfer(OUTSIDER, MINER_A, 7))
    forged = forge(carried, honest)
    if forged.header.parent != honest.header.parent:
        # Nobody can tell a forged parent from one that is still to come.
        assert await follower.give(forged) is Outcome.IGNORE
        assert follower.core.imported.status is ImportStatus.ORPHAN
    else:
        await follower.refuse(forged, reason)
        assert cause is None or cause in follower.core.imported.detail
    await follower.go_on(honest)


def test_every_rule_is_forged() -> None:
    """B1 to B9 and W1 to W7 each have a forgery here or below."""
    forged = {reason for _, reason, _ in BLOCK_FORGERIES} | {reason for _, reason in WORK_FORGERIES}
    apart = {
        Reason.B1_MALFORMED,
        Reason.B1_NON_CANONICAL,
        Reason.B2_UNKNOWN_VERSION,  # unit/consensus/test_upgrade.py: not forged, only not known
        Reason.B7_RANK,
        Reason.W1_STATUS,
        Reason.W1_FINAL,
        Reason.W1_DEADLINE,
        Reason.W4_CIPHERTEXT,
    }
    rules = {reason for reason in Reason if reason[0] in "BW" and reason[1].isdigit()}
    assert rules <= forged | apart


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"\x93\x9a\xcc\x01" + data[3:], Reason.B1_NON_CANONICAL),
        (lambda data: data + b"\x00", Reason.B1_MALFORMED),
        (lambda data: data[:-1], Reason.B1_MALFORMED),
        (lambda data: b"", Reason.B1_MALFORMED),
        (lambda data: b"\xdd\xff\xff\xff\xff", Reason.B1_MALFORMED),
        (lambda data: data + bytes(64 * 1024), Reason.B1_OVERSIZE),
    ],
)
async def test_bytes_that_are_no_canonical_block(
    carried: RecordedWorld, start: Start, change: Callable[[bytes], bytes], reason: Reason
) -> None:
    follower = start(carried)
    await follower.follow()
    honest = carried.build_carrier(carried.transfer(OUTSIDER, MINER_A, 7))
    forged = change(encode(honest))
    if reason is Reason.B1_NON_CANONICAL:
        assert msgpack.unpackb(forged) == msgpack.unpackb(encode(honest))
    await follower.refuse(forged, reason)
    await follower.go_on(honest)


async def test_oversize_body(carried: RecordedWorld, start: Start) -> None:
    follower = start(carried)
    await follower.follow()
    honest = carried.build_carrier(carried.transfer(OUTSIDER, MINER_A, 7))
    vote = sign_vote(MINER_A, carried.chain_id, Checkpoint(Height(0), carried.chain_id), carried.head)
    body = replace(honest.body, votes=(vote,) * 100)
    await follower.refuse(carried.forge(honest, body=body), Reason.B1_OVERSIZE)
    await follower.go_on(honest)


@pytest.mark.parametrize(("build", "cause"), WRONG_OPENINGS)
async def test_block_with_a_wrong_opening(
    start: Start, build: Callable[[World], OpenGradient | OpenLoss], cause: Reason
) -> None:
    """Forged, replayed, skipped and doubled openings."""
    world = RecordedWorld()
    world.open()
    world.open_loss(900)
    world.open_gradient()
    follower = start(world)
    await follower.follow()
    honest = world.build_carrier(world.sign(CUSTODY, world.build_gradient()))
    body = replace(honest.body, transactions=(world.sign(CUSTODY, build(world)),))
    await follower.refuse(world.forge(honest, body=body), Reason.B6_TRANSACTION)
    assert cause in follower.core.imported.detail
    await follower.go_on(honest)


async def test_opening_replayed_from_an_earlier_block(mined: RecordedWorld, start: Start) -> None:
    follower = start(mined)
    await follower.follow()
    for block in mined.blocks:
        for old in block.body.transactions:
            if isinstance(old.payload, OpenGradient | OpenLoss):
                honest = mined.build_carrier(after=8_000)
                forged = mined.forge(honest, body=replace(honest.body, transactions=(old,)))
                await follower.refuse(forged, Reason.B6_TRANSACTION)
    follower.recompute(2)
    await follower.go_on(mined.build_work_block(MINER_A))


# --- W ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("forge", "reason"), WORK_FORGERIES)
async def test_forged_work(
    mined: RecordedWorld, start: Start, forge: Callable[[World, Block], Block], reason: Reason
) -> None:
    follower = start(mined)
    await follower.follow()
    honest = mined.build_work_block(MINER_A)
    await follower.refuse(forge(mined, honest), reason)
    follower.recompute(2)
    await follower.go_on(honest)
    paid = follower.chain.head_state.get_task(mined.task)
    assert paid is not None
    assert paid.next_taken_rung == 1


async def test_later_loss_opening_chosen(mined: RecordedWorld, start: Start) -> None:
    """A later opening on the chain is lower still; only the first that meets the rung counts."""
    mined.open_gradient()
    mined.open_gradient()
    mined.open_loss(40)
    first, second = mined.task_state.qualified
    follower = start(mined)
    await follower.follow()
    honest = mined.build_work_block(MINER_A)
    forged = mined.forge_work(
        honest,
        step=second.step,
        loss=second.loss,
        loss_opening=second.loss_opening,
        openings=second.openings,
        weights=mined.weights[second.step],
    )
    await follower.refuse(forged, Reason.W5_FIRST)
    follower.recompute(first.step)
    await follower.go_on(honest)


async def test_work_taken_twice(mined: RecordedWorld, start: Start) -> None:
    follower = start(mined)
    await follower.follow()
    follower.recompute(2)
    block = mined.build_work_block(MINER_A)
    await follower.go_on(block)
    money = mined.count_money()
    honest = mined.build_carrier(mined.transfer(OUTSIDER, MINER_A, 7))
    again = mined.forge(honest, key=MINER_A, body=replace(honest.body, work=block.body.work))
    await follower.refuse(again, Reason.W1_MILESTONE)
    await follower.go_on(honest)
    assert mined.count_money() == money


async def test_work_after_the_deadline(mined: RecordedWorld, start: Start) -> None:
    follower = start(mined)
    await follower.follow()
    honest = mined.build_work_block(MINER_A)
    late = mined.forge(honest, time=Millis(START + 2_000_000))
    await follower.refuse(late, Reason.W1_DEADLINE)
    follower.recompute(2)
    await follower.go_on(honest)


async def test_work_before_the_task_opens(start: Start) -> None:
    world = RecordedWorld()
    world.publish()
    follower = start(world)
    await follower.follow()
    template = RecordedWorld()
    template.open()
    template.open_loss(60)
    template.carry()
    work = template.build_work()
    honest = world.build_carrier()
    forged = world.forge(honest, key=MINER_A, body=replace(honest.body, work=replace(work, task=world.task)))
    await follower.refuse(forged, Reason.W1_STATUS)
    await follower.go_on(honest)


class SilentWorld(RecordedWorld):
    """Nobody votes unless a test says so, so nothing becomes final."""

    def build_votes(self, voters: Sequence[SigningKey] | None = None) -> tuple[Vote, ...]:
        return () if voters is None else super().build_votes(voters)


async def test_work_on_a_publication_that_is_not_final(start: Start) -> None:
    world = SilentWorld()
    world.open()
    world.open_loss(60)
    follower = start(world)
    await follower.follow()
    honest = world.build_carrier()
    forged = world.forge(honest, key=MINER_A, body=replace(honest.body, work=world.build_work()))
    await follower.refuse(forged, Reason.W1_FINAL)
    await follower.go_on(honest)


async def test_a_loss_that_does_not_recompute(mined: RecordedWorld, start: Start) -> None:
    """W4: the custody signed another ciphertext than this node computed; carrier blocks go on."""
    follower = start(mined)
    await follower.follow()
    follower.recompute(2, OTHER)
    await follower.refuse(mined.build_work_block(MINER_A), Reason.W4_CIPHERTEXT)
    await follower.go_on(mined.build_carrier(mined.transfer(OUTSIDER, MINER_A, 7)))


# --- blocks that can't be judged yet ----------------------------------------------------------


async def test_a_block_waits_for_its_recomputation(mined: RecordedWorld, start: Start) -> None:
    follower = start(mined)
    await follower.follow()
    before = follower.mark
    block = mined.build_work_block(MINER_A)
    assert await follower.give(block) is Outcome.IGNORE
    imported = follower.core.imported
    assert imported.status is ImportStatus.WAITING
    assert imported.check == LossCheck(mined.task, 2, mined.weights[2])
    assert follower.mark == before
    follower.chain.retry(follower.recompute(2))
    assert follower.mark == (compute_block_hash(block.header), block.header.state_root)
    mined.add(block)
    await follower.go_on(mined.build_carrier(mined.transfer(OUTSIDER, MINER_A, 7)))


async def test_a_forged_block_never_waits(mined: RecordedWorld, start: Start) -> None:
    """Nobody can make a node recompute for a block that breaks another rule."""
    follower = start(mined)
    await follower.follow()
    forged = mined.forge(mined.build_work_block(MINER_A), state_root=ZERO_HASH)
    await follower.refuse(forged, Reason.B9_STATE_ROOT)


async def test_a_block_of_the_future_is_held(carried: RecordedWorld, start: Start) -> None:
    follower = start(carried)
    await follower.follow()
    before = follower.mark
    follower.clock.advance(-MUCH_LATER_MS / 1000)
    assert follower.clock.now_ms() == START
    future = carried.build_carrier(carried.transfer(OUTSIDER, MINER_A, 7))
    assert await follower.give(future) is Outcome.IGNORE
    assert follower.core.imported.status is ImportStatus.HELD
    assert follower.core.imported.until == future.header.time
    follower.clock.advance((future.header.time - START - 1) / 1000)
    follower.chain.on_tick()
    assert follower.mark == before
    follower.clock.advance(0.001)
    follower.chain.on_tick()
    assert follower.mark == (compute_block_hash(future.header), future.header.state_root)
    # Whoever has no turn at that time can't make a node keep anything.
    carried.add(future)
    honest = carried.build_carrier()
    follower.clock.advance(-1.0)
    await follower.refuse(carried.forge(honest, key=OUTSIDER), Reason.B7_TURN)


async def test_an_orphan_waits_for_its_parent(mined: RecordedWorld, start: Start) -> None:
    follower = start(mined)
    for block in reversed(mined.blocks[1:]):
        assert await follower.give(block) is Outcome.IGNORE
        assert follower.core.imported.status is ImportStatus.ORPHAN
        assert follower.core.imported.missing == block.header.parent
    assert follower.chain.head.height == 0
    assert await follower.give(mined.blocks[0]) is Outcome.ACCEPT
    assert follower.mark == (compute_block_hash(mined.header), mined.state.root)


async def test_orphans_are_checked_and_never_push_out_a_block_that_is_recomputed(
    mined: RecordedWorld, start: Start
) -> None:
    follower = start(mined)
    await follower.follow()
    work = mined.build_work_block(MINER_A)
    await follower.give(work)
    template = mined.build_carrier()
    unsigned = mined.forge(template, parent=OTHER)
    await follower.refuse(replace(unsigned, signature=template.signature), Reason.B4_SIGNATURE)
    for number in range(MAX_BLOCKS + 10):
        orphan = mined.forge(template, parent=hash_domain("test", number.to_bytes(4, "big")))
        assert await follower.give(orphan) is Outcome.IGNORE
    assert follower.handlers.has_object(Kind.BLOCK, compute_block_hash(orphan.header))
    follower.chain.retry(follower.recompute(2))
    assert follower.mark == (compute_block_hash(work.header), work.header.state_root)


async def test_blocks_kept_aside_are_not_served_as_stored(mined: RecordedWorld, start: Start) -> None:
    """Synchronising would take such a block for one that needs no asking for any more."""
    follower = start(mined)
    orphan = mined.blocks[-1]
    await follower.give(orphan)
    block_hash = compute_block_hash(orphan.header)
    assert follower.handlers.has_object(Kind.BLOCK, block_hash)
    assert follower.handlers.get_object(Kind.BLOCK, block_hash) is None
    for block in mined.blocks[:-1]:
        assert await follower.give(block) is Outcome.ACCEPT
    assert follower.handlers.get_object(Kind.BLOCK, block_hash) == encode(orphan)


async def test_a_fork_with_a_forged_block_does_not_hide_the_honest_one(
    carried: RecordedWorld, start: Start
) -> None:
    """Two blocks at one height, one forged after it: the honest branch wins whatever came first."""
    follower = start(carried)
    await follower.follow()
    here = carried.build_carrier(carried.transfer(OUTSIDER, MINER_A, 7))
    there = carried.build_carrier(carried.transfer(OUTSIDER, MINER_B, 9))
    assert await follower.give(there) is Outcome.ACCEPT
    fork = replace(carried, blocks=list(carried.blocks))
    fork.header, fork.state, fork.chain_id = carried.header, carried.state, carried.chain_id
    fork.add(there)
    await follower.refuse(fork.forge(fork.build_carrier(), state_root=ZERO_HASH), Reason.B9_STATE_ROOT)
    carried.add(here)
    await follower.give(here)
    await follower.go_on(carried.build_carrier(carried.transfer(OUTSIDER, MINER_A, 8)))
