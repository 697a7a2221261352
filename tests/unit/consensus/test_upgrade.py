"""Protocol upgrades: scheduled with notice, in force by height, unknown versions told from wrong ones."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from consensus.block import Header
from consensus.codec import encode
from consensus.errors import InvalidBlock, InvalidTransaction, Reason
from consensus.params import ChainParams
from consensus.payload import CancelUpgrade, ScheduleUpgrade, SetMiningOrganisations, SetOrganisation
from consensus.proposal import build_proposal
from consensus.records import Upgrade
from consensus.state import State
from consensus.transition import apply_transaction
from consensus.types import Height, Millis
from consensus.upgrade import (
    MIN_NOTICE,
    UnknownVersion,
    compute_notice,
    get_nearest_rules,
    get_next_upgrade,
    get_rules_at,
    get_version_at,
)
from consensus.validation import check_block, decode_block, validate_block
from consensus.versions import VERSIONS
from tests.unit.consensus.test_governance import build, refuse
from tests.unit.consensus.world import OUTSIDER, PARAMS, VERIFIER, World, build_genesis

NEWEST = max(VERSIONS)
QUICK = replace(PARAMS, evidence_ms=PARAMS.min_block_ms * MIN_NOTICE)
LOOK_ALIKE = SetOrganisation(OUTSIDER.address, "lab-a ")


@pytest.fixture
def world() -> World:
    return World(genesis=build_genesis(QUICK))


@pytest.fixture
def third() -> Iterator[int]:
    """A version that nobody's software knows but the world's, while it is registered."""
    number = NEWEST + 1
    VERSIONS[number] = replace(VERSIONS[NEWEST], number=number, title="of a test")
    yield number
    VERSIONS.pop(number, None)


def advance(world: World, height: int) -> None:
    while world.header.height < height:
        world.carry()


def schedule(world: World, version: int = 2, ahead: int = MIN_NOTICE) -> Height:
    """Schedules an upgrade in the next block, so many blocks ahead of it."""
    height = Height(world.header.height + 1 + ahead)
    world.carry(build(world, ScheduleUpgrade(version, height)))
    return height


def test_nothing_is_stored_before_the_first_upgrade(world: World) -> None:
    assert world.state.get_upgrades() == ()
    assert get_version_at(world.state, 10**9) == 1
    assert world.state.with_upgrades(()).root == world.state.root
    height = schedule(world)
    assert world.state.get_upgrades() == (Upgrade(2, height),)


def test_the_notice_is_the_evidence_span_of_the_quickest_blocks() -> None:
    assert compute_notice(ChainParams()) == 7_200
    assert compute_notice(replace(PARAMS, evidence_ms=0)) == MIN_NOTICE
    assert compute_notice(replace(PARAMS, min_block_ms=3, evidence_ms=100)) == 34


def test_what_may_be_scheduled(world: World) -> None:
    following = world.header.height + 1
    soonest = Height(following + MIN_NOTICE)
    for action, reason in (
        (ScheduleUpgrade(2, Height(soonest - 1)), Reason.UPGRADE_HEIGHT),
        (ScheduleUpgrade(2, Height(following + 2**24 + 1)), Reason.UPGRADE_HEIGHT),
        (ScheduleUpgrade(1, soonest), Reason.UPGRADE_VERSION),
        (ScheduleUpgrade(-1, soonest), Reason.UPGRADE_VERSION),
        (ScheduleUpgrade(2**16 + 1, soonest), Reason.UPGRADE_VERSION),
        (CancelUpgrade(2, soonest), Reason.UPGRADE_UNKNOWN),
    ):
        assert refuse(world, build(world, action)) == reason
    assert refuse(world, build(world, ScheduleUpgrade(2, soonest), ())) == Reason.GOVERN_QUORUM
    schedule(world)
    later = Height(world.header.height + 50)
    with pytest.raises(InvalidTransaction) as waiting:
        apply_transaction(world.state, build(world, ScheduleUpgrade(3, later)), world.get_context())
    assert waiting.value.reason == Reason.UPGRADE_PENDING
    assert waiting.value.is_premature


def test_an_upgrade_can_be_cancelled_until_its_notice_begins(world: World) -> None:
    height = schedule(world, ahead=MIN_NOTICE + 2)
    assert refuse(world, build(world, CancelUpgrade(2, Height(height + 1)))) == Reason.UPGRADE_UNKNOWN
    assert refuse(world, build(world, CancelUpgrade(3, height))) == Reason.UPGRADE_UNKNOWN
    before = world.state
    advance(world, height - MIN_NOTICE - 1)
    cancel = build(world, CancelUpgrade(2, height))
    state = apply_transaction(world.state, cancel, world.get_context())
    assert state.get_upgrades() == ()
    assert before.get_upgrades()
    advance(world, height - MIN_NOTICE)
    assert refuse(world, cancel) == Reason.UPGRADE_NOTICE
    advance(world, height)
    assert refuse(world, cancel) == Reason.UPGRADE_UNKNOWN


def test_each_block_obeys_the_rules_of_its_height(world: World) -> None:
    """Version 2 refuses names that version 1 admits; the blocks before it stay valid."""
    height = schedule(world)
    blocks = []
    parents: list[tuple[Header, State]] = []
    while world.header.height < height - 1:
        is_last = world.header.height == height - 2
        block = world.build_carrier(*((build(world, LOOK_ALIKE),) if is_last else ()))
        parents.append((world.header, world.state))
        blocks.append(block)
        world.add(block)
        assert block.header.version == 1
    assert world.state.get_account(OUTSIDER.address).organisation == "lab-a "
    assert get_rules_at(world.state, height).number == 2
    assert get_rules_at(world.state, height - 1).number == 1

    assert refuse(world, build(world, LOOK_ALIKE)) == Reason.GOVERN_FIELD
    for name in ("lab\u202ea", "lab\u00a0a", "lab\na", "\u200blab", " lab"):
        assert refuse(world, build(world, SetMiningOrganisations((name,)))) == Reason.GOVERN_FIELD
    world.carry(build(world, SetMiningOrganisations(("Hôpital Nord", "実験室"))))
    assert world.header.version == 2

    for block, (header, state) in zip(blocks, parents, strict=True):
        after = validate_block(header, state, block, world.params, world.chain_id, VERIFIER)
        assert after.root == block.header.state_root


def test_a_block_of_another_version_than_that_of_its_height_is_refused(world: World) -> None:
    height = schedule(world)
    while world.header.height <= height:
        block = world.build_carrier()
        for version in (1, 2):
            if version != block.header.version:
                with pytest.raises(InvalidBlock) as caught:
                    world.validate(world.forge(block, version=version))
                assert caught.value.reason == Reason.B2_VERSION
                assert caught.value.peer_at_fault
        world.add(block)
    for version in (0, -1):
        with pytest.raises(InvalidBlock) as caught:
            world.validate(world.forge(world.build_carrier(), version=version))
        assert caught.value.reason == Reason.B2_VERSION


def test_who_does_not_know_the_version_stops_before_it(world: World, third: int) -> None:
    height = schedule(world, third)
    advance(world, height - 1)
    block = world.build_carrier()
    assert block.header.version == third
    for known in (1, 2):
        with pytest.raises(UnknownVersion) as caught:
            validate_block(
                world.header, world.state, block, world.params, world.chain_id, VERIFIER, known=known
            )
        assert not caught.value.peer_at_fault
        assert caught.value.version == third
        time = Millis(world.header.time + 2_000)
        with pytest.raises(UnknownVersion):
            build_proposal(
                world.header, world.state, (), None, time, OUTSIDER, world.params, world.chain_id, known=known
            )
    parent, state = world.header, world.state
    world.add(block)
    del VERSIONS[third]
    with pytest.raises(UnknownVersion):
        validate_block(parent, state, block, world.params, world.chain_id, VERIFIER)
    assert get_nearest_rules(state, height).number == NEWEST


def test_a_block_of_an_unknown_version_is_nobodys_fault(world: World) -> None:
    block = world.forge(world.build_carrier(), version=NEWEST + 1)
    with pytest.raises(UnknownVersion) as caught:
        check_block(block, world.params, world.chain_id)
    assert caught.value.reason == Reason.B2_UNKNOWN_VERSION
    assert not caught.value.peer_at_fault
    # Its body may hold what can't be decoded here; the version stands where it always does.
    data = encode(block)
    with pytest.raises(UnknownVersion):
        decode_block(data[:-1] + b"\xc1", world.params)
    for broken in (encode(world.build_carrier())[:-1], b"", b"\x93", b"\x93\x9a", b"\x93\x9a\xc4"):
        with pytest.raises(InvalidBlock) as malformed:
            decode_block(broken, world.params)
        assert malformed.value.reason == Reason.B1_MALFORMED
        assert malformed.value.peer_at_fault


def test_versions_are_numbered_without_gaps() -> None:
    assert list(VERSIONS) == list(range(1, NEWEST + 1))
    assert all(number == row.number for number, row in VERSIONS.items())


def test_a_second_upgrade_follows_the_first(world: World, third: int) -> None:
    first = schedule(world)
    advance(world, first)
    assert get_next_upgrade(world.state, world.header.height) is None
    second = schedule(world, third)
    heights = (first - 1, first, second - 1, second)
    assert [get_version_at(world.state, height) for height in heights] == [1, 2, 2, third]
