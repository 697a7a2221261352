"""Objects waiting to be judged: fair among peers, bounded, a flood displaces itself."""

import random

from consensus.types import Hash32
from node.gossip.messages import MAX_KIND_BYTES, Kind
from node.gossip.queue import DEFAULT_LANES, Deliver, Lane, LaneLimits, LaneName, get_lane

WIDE = LaneLimits(objects=100, size=10_000, objects_per_peer=100, size_per_peer=10_000)


def build(peer: str, number: int, size: int = 10) -> Deliver:
    return Deliver(peer, Kind.TRANSACTION, Hash32(number.to_bytes(32)), bytes(size))


def take_all(lane: Lane) -> list[tuple[str, int]]:
    taken = []
    while (delivered := lane.take()) is not None:
        taken.append((delivered.peer, int.from_bytes(delivered.id)))
    return taken


def test_peers_take_turns_and_each_one_keeps_its_order() -> None:
    lane = Lane(WIDE, lambda peer: 0)
    for number in range(5):
        assert lane.put(build("a", number)) == []
    lane.put(build("b", 10))
    lane.put(build("b", 11))
    lane.put(build("c", 20))
    assert take_all(lane) == [
        ("a", 0), ("b", 10), ("c", 20), ("a", 1), ("b", 11), ("a", 2), ("a", 3), ("a", 4)
    ]  # fmt: skip
    assert (len(lane), lane.size) == (0, 0)


def test_one_peer_is_bounded_and_loses_its_own_oldest() -> None:
    lane = Lane(LaneLimits(100, 10_000, 3, 100), lambda peer: 0)
    lane.put(build("b", 9))
    for number in range(3):
        lane.put(build("a", number))
    assert [d.id for d in lane.put(build("a", 3))] == [build("a", 0).id]
    assert [d.id for d in lane.put(build("a", 4, 95))] == [build("a", n).id for n in (1, 2, 3)]
    assert take_all(lane) == [("b", 9), ("a", 4)]


def test_a_full_lane_drops_the_oldest_of_the_worst_scored_peer() -> None:
    scores = {"good": 0.0, "bad": 5.0, "worse": 50.0}
    lane = Lane(LaneLimits(6, 10_000, 6, 10_000), scores.__getitem__)
    for number in range(2):
        for peer in scores:
            lane.put(build(peer, number))
    dropped = [d for number in range(2, 5) for d in lane.put(build("good", number))]
    assert [(d.peer, d.id[-1]) for d in dropped] == [("worse", 0), ("worse", 1), ("bad", 0)]
    # With nothing left of the worse ones it is the newcomer's own.
    assert [d.peer for d in lane.put(build("bad", 7))] == ["bad"]
    assert [d.peer for d in lane.put(build("worse", 7))] == ["worse"]


def test_among_equals_who_holds_most_gives_way() -> None:
    lane = Lane(LaneLimits(100, 1_000, 100, 1_000), lambda peer: 0)
    for number in range(9):
        lane.put(build("flood", number, 100))
    lane.put(build("honest", 1, 50))
    assert [d.peer for d in lane.put(build("honest", 2, 100))] == ["flood"]


def test_bounds_hold_whatever_comes() -> None:
    limits = LaneLimits(20, 1_000, 8, 400)
    seed = 11
    print(f"seed {seed}")
    rng = random.Random(seed)
    lane = Lane(limits, lambda peer: int(peer))
    held = 0
    for number in range(3_000):
        held += 1 - len(lane.put(build(str(rng.randrange(5)), number, rng.randrange(1, 300))))
        if rng.random() < 0.3 and lane.take() is not None:
            held -= 1
        assert len(lane) == held <= limits.objects
        assert lane.size <= limits.size
    assert len(take_all(lane)) == held
    assert lane.size == 0


def test_every_kind_has_a_lane_that_takes_its_largest_object() -> None:
    assert set(DEFAULT_LANES) == set(LaneName)
    for kind in Kind:
        limits = DEFAULT_LANES[get_lane(kind)]
        assert MAX_KIND_BYTES[kind] <= limits.size_per_peer <= limits.size
