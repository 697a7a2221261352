"""Blocks kept aside are bounded in number and in bytes."""

from consensus.crypto import hash_domain
from node.waiting import WaitingBlock, WaitingRoom
from tests.unit.consensus.world import World


def build(number: int, size: int = 10) -> WaitingBlock:
    return WaitingBlock(hash_domain("test", bytes([number])), World().build_carrier(), bytes(size))


def test_the_oldest_leave_when_there_are_too_many() -> None:
    room = WaitingRoom(max_blocks=3)
    blocks = [build(number) for number in range(5)]
    for block in blocks:
        room.add(block)
    assert room.find(lambda block: True) == blocks[2:]


def test_the_oldest_leave_when_they_are_too_large() -> None:
    room = WaitingRoom(max_bytes=100)
    for block in (build(1, 60), build(2, 40), build(2, 40), build(3, 50)):
        room.add(block)
    assert [waiting.hash for waiting in room.find(lambda block: True)] == [build(2).hash, build(3).hash]
    room.add(build(4, 101))
    assert not len(room)
