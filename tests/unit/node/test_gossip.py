"""Gossip without I/O: who is asked, who is told, who is at fault."""

import hashlib
from contextlib import suppress

import pytest

from consensus.gossip_rules import Outcome
from consensus.types import Hash32
from node.gossip.limits import Admission, Fault, NetworkLimits, Rate, Score, TokenBucket
from node.gossip.messages import (
    MAX_ANNOUNCED,
    MAX_INLINE_BYTES,
    MAX_KIND_BYTES,
    Announced,
    Announcement,
    Kind,
    MessageError,
    Route,
    encode_message,
)
from node.gossip.peers import Action, Ban, Flush, Gossip, KeySet, Overloaded, Pull
from node.gossip.queue import Deliver

CHAIN = Hash32(b"\x11" * 32)
TX = Kind.TRANSACTION


def ident(name: str) -> Hash32:
    return Hash32(hashlib.sha256(name.encode()).digest())


X, Y = ident("x"), ident("y")


def has_nothing(kind: Kind, object_id: Hash32) -> bool:
    return False


def say(*items: Announced, chain: Hash32 = CHAIN) -> bytes:
    return encode_message(Announcement(chain, items))


@pytest.fixture
def gossip() -> Gossip:
    gossip = Gossip(CHAIN, NetworkLimits(), 0.0)
    for name in ("a", "b", "c"):
        gossip.on_linked(name, 0.0)
    return gossip


def hear(gossip: Gossip, peer: str, *items: Announced) -> list[Action]:
    return gossip.on_announcement(peer, say(*items), has_nothing, 0.0)


def get_told(gossip: Gossip, peer: str) -> list[Announced]:
    announcement = gossip.take_outbox(peer)
    return [] if announcement is None else list(announcement.items)


def test_small_objects_travel_inline_and_large_ones_are_pulled(gossip: Gossip) -> None:
    assert gossip.announce(TX, X, b"small") == [Flush("a"), Flush("b"), Flush("c")]
    gossip.announce(TX, Y, bytes(MAX_INLINE_BYTES + 1))
    assert get_told(gossip, "a") == [Announced(TX, X, b"small"), Announced(TX, Y, None)]
    assert gossip.take_outbox("a") is None
    assert gossip.get_object(TX, Y) == bytes(MAX_INLINE_BYTES + 1)


def test_nobody_is_told_twice_nor_what_it_told(gossip: Gossip) -> None:
    hear(gossip, "a", Announced(TX, X, b"x"))
    gossip.announce(TX, X, b"x")
    assert get_told(gossip, "a") == []
    assert get_told(gossip, "b") == [Announced(TX, X, b"x")]
    gossip.announce(TX, X, b"x")
    assert get_told(gossip, "b") == []


def test_hearing_it_from_a_peer_spares_telling_it(gossip: Gossip) -> None:
    gossip.announce(TX, X, b"x")
    hear(gossip, "b", Announced(TX, X, b"x"))
    assert get_told(gossip, "b") == []
    assert get_told(gossip, "c") != []


def test_blocks_go_first_and_announcements_are_bounded(gossip: Gossip) -> None:
    for number in range(MAX_ANNOUNCED + 5):
        gossip.announce(TX, ident(str(number)), b"t")
    gossip.announce(Kind.BLOCK, X, b"block")
    first = get_told(gossip, "a")
    assert first[0].kind is Kind.BLOCK
    assert len(first) == MAX_ANNOUNCED
    assert len(get_told(gossip, "a")) == 6


def test_an_accepted_object_is_relayed(gossip: Gossip) -> None:
    (delivered,) = hear(gossip, "a", Announced(TX, X, b"x"))
    assert delivered == Deliver("a", TX, X, b"x")
    assert gossip.on_outcome(delivered, Outcome.ACCEPT, True, 0.0) == [Flush("b"), Flush("c")]
    assert hear(gossip, "b", Announced(TX, X, b"x")) == []


def test_an_ignored_object_is_not_relayed_and_nobody_is_at_fault(gossip: Gossip) -> None:
    (delivered,) = hear(gossip, "a", Announced(TX, X, b"x"))
    assert isinstance(delivered, Deliver)
    assert gossip.on_outcome(delivered, Outcome.IGNORE, False, 0.0) == []
    assert gossip.get_score("a", 0.0) == 0
    assert gossip.take_outbox("b") is None


def test_what_is_on_its_way_is_not_asked_twice(gossip: Gossip) -> None:
    assert hear(gossip, "a", Announced(TX, X, None)) == [Pull("a", TX, (X,))]
    assert hear(gossip, "b", Announced(TX, X, None)) == []
    assert hear(gossip, "a", Announced(TX, X, None)) == []


def test_a_failed_pull_goes_to_whoever_else_announced(gossip: Gossip) -> None:
    (pull,) = hear(gossip, "a", Announced(TX, X, None))
    hear(gossip, "b", Announced(TX, X, None))
    assert isinstance(pull, Pull)
    (second,) = gossip.on_pull_failed(pull, 0.0)
    assert second == Pull("b", TX, (X,))
    assert isinstance(second, Pull)
    assert gossip.on_pulled(second, [None], 0.0) == []
    assert hear(gossip, "c", Announced(TX, X, None)) == [Pull("c", TX, (X,))]


def test_what_nobody_else_has_is_asked_again_when_the_peer_answers(gossip: Gossip) -> None:
    (pull,) = hear(gossip, "a", Announced(TX, X, None))
    assert isinstance(pull, Pull)
    assert gossip.on_pull_failed(pull, 0.0) == []
    assert gossip.on_heartbeat("a", 1.0) == [pull]
    assert gossip.on_heartbeat("a", 2.0) == []


def test_a_peer_that_is_not_linked_yet_is_asked_once_it_is() -> None:
    gossip = Gossip(CHAIN, NetworkLimits(), 0.0)
    (inline,) = hear(gossip, "a", Announced(TX, X, None), Announced(TX, Y, b"y"))
    assert inline == Deliver("a", TX, Y, b"y")
    gossip.on_linked("b", 0.0)
    # An unreachable peer that announces first can't keep others from being asked.
    assert hear(gossip, "b", Announced(TX, X, None)) == [Pull("b", TX, (X,))]
    hear(gossip, "a", Announced(TX, ident("z"), None))
    assert gossip.on_linked("a", 0.0) == [Pull("a", TX, (ident("z"),))]


def test_a_reply_cut_short_is_continued(gossip: Gossip) -> None:
    (pull,) = hear(gossip, "a", Announced(TX, X, None), Announced(TX, Y, None))
    assert pull == Pull("a", TX, (X, Y))
    assert isinstance(pull, Pull)
    assert gossip.on_pulled(pull, [b"x"], 0.0) == [Deliver("a", TX, X, b"x"), Pull("a", TX, (Y,))]


def test_an_empty_reply_is_unhelpful(gossip: Gossip) -> None:
    (pull,) = hear(gossip, "a", Announced(TX, X, None))
    assert isinstance(pull, Pull)
    assert gossip.on_pulled(pull, [], 0.0) == []
    assert gossip.get_score("a", 0.0) == Fault.UNHELPFUL.points


def test_wrong_bytes_under_an_id_do_not_hide_the_right_ones(gossip: Gossip) -> None:
    (wrong,) = hear(gossip, "a", Announced(TX, X, b"valid, but not x"))
    hear(gossip, "b", Announced(TX, X, None))
    assert isinstance(wrong, Deliver)
    # The node accepts the object, but holds it under another id.
    assert gossip.on_outcome(wrong, Outcome.ACCEPT, False, 0.0) == [Pull("b", TX, (X,))]
    assert gossip.take_outbox("c") is None


def test_rejected_bytes_cost_and_others_are_asked(gossip: Gossip) -> None:
    (wrong,) = hear(gossip, "a", Announced(TX, X, b"forged"))
    hear(gossip, "b", Announced(TX, X, None))
    assert isinstance(wrong, Deliver)
    assert gossip.on_outcome(wrong, Outcome.REJECT, False, 0.0) == [Pull("b", TX, (X,))]
    assert gossip.get_score("a", 0.0) == Fault.INVALID_OBJECT.points
    assert gossip.get_score("b", 0.0) == 0


def test_enough_faults_ban_for_a_while_and_then_longer(gossip: Gossip) -> None:
    limits = NetworkLimits()
    bans = [gossip.report("a", Fault.MALFORMED, 0.0) for _ in range(4)]
    assert bans == [[], [], [], [Ban("a", limits.ban_s)]]
    assert gossip.is_banned("a", limits.ban_s - 1)
    assert not gossip.is_banned("a", limits.ban_s)
    again = limits.ban_s + 1
    for _ in range(4):
        gossip.report("a", Fault.MALFORMED, again)
    assert gossip.is_banned("a", again + 2 * limits.ban_s - 1)
    assert not gossip.is_banned("b", 0.0)


def test_scores_decay(gossip: Gossip) -> None:
    gossip.report("a", Fault.MALFORMED, 0.0)
    assert gossip.get_score("a", NetworkLimits().score_half_life_s) == pytest.approx(
        Fault.MALFORMED.points / 2
    )


def test_rare_faults_never_ban() -> None:
    score = Score(NetworkLimits())
    assert not any(score.add(Fault.MALFORMED, 600.0 * number) for number in range(1000))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff" * 100,
        say(Announced(TX, X, None))[:-1],
        say(Announced(TX, X, None)) + b"\x00",
        say(*[Announced(TX, ident(str(n)), None) for n in range(MAX_ANNOUNCED + 1)]),
        say(Announced(TX, X, bytes(MAX_INLINE_BYTES + 1))),
        say(Announced(TX, X, None), chain=X),
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_malformed_announcements_raise_and_change_nothing(gossip: Gossip, body: bytes) -> None:
    with pytest.raises(MessageError):
        gossip.on_announcement("a", body, has_nothing, 0.0)
    assert hear(gossip, "b", Announced(TX, X, None)) == [Pull("b", TX, (X,))]


def test_what_the_node_has_is_not_wanted(gossip: Gossip) -> None:
    body = say(Announced(TX, X, None), Announced(TX, Y, None))
    assert gossip.on_announcement("a", body, lambda kind, i: i == X, 0.0) == [Pull("a", TX, (Y,))]


def test_one_peer_can_not_fill_what_is_wanted() -> None:
    gossip = Gossip(CHAIN, NetworkLimits(wanted=10, wanted_per_peer=6), 0.0)
    gossip.on_linked("a", 0.0)
    gossip.on_linked("b", 0.0)
    many = [Announced(TX, ident(str(n)), None) for n in range(9)]
    (pull,) = hear(gossip, "a", *many)
    assert isinstance(pull, Pull)
    assert len(pull.ids) == 6
    (other,) = hear(gossip, "b", *(Announced(TX, ident(f"b{n}"), None) for n in range(9)))
    assert isinstance(other, Pull)
    assert len(other.ids) == 4
    assert gossip.on_heartbeat("a", 0.0) == []
    gossip.on_pulled(pull, [None] * 6, 0.0)
    (rest,) = gossip.on_heartbeat("a", 0.0)
    assert rest == Pull("a", TX, tuple(item.id for item in many[6:]))


def test_a_flood_of_announcements_is_dropped_and_costs_a_little() -> None:
    gossip = Gossip(CHAIN, NetworkLimits(announced=Rate(1, 2)), 0.0)
    assert len(hear(gossip, "a", Announced(TX, X, b""), Announced(TX, Y, b""))) == 2
    assert hear(gossip, "a", Announced(TX, ident("z"), b"")) == []
    assert gossip.get_score("a", 0.0) == Fault.FLOOD.points
    assert hear(gossip, "b", Announced(TX, ident("z"), b"")) != []


OK, PEER, TOTAL = Admission.ADMITTED, Admission.PEER_LIMIT, Admission.TOTAL_LIMIT


def test_requests_beyond_the_rate_are_not_admitted_until_time_has_passed() -> None:
    limits = NetworkLimits(rates={route: Rate(2, 3) for route in Route}, total_factor=1.5)
    gossip = Gossip(CHAIN, limits, 0.0)
    assert [gossip.admit("a", Route.CHUNK, 9, 0.0) for _ in range(4)] == [OK, OK, OK, PEER]
    # All together are limited too: 4.5 at once.
    assert [gossip.admit("b", Route.CHUNK, 9, 0.0) for _ in range(2)] == [OK, TOTAL]
    assert gossip.admit("a", Route.HASHES, 9, 0.0) is OK
    assert gossip.admit("a", Route.CHUNK, 9, 1.0) is OK


def test_requests_are_limited_whatever_their_routes_and_by_their_bytes() -> None:
    limits = NetworkLimits(requests=Rate(1, 3), received=Rate(10, 100), total_factor=2)
    gossip = Gossip(CHAIN, limits, 0.0)
    routes = (Route.STATUS, Route.HASHES, Route.CHUNK, Route.OBJECTS)
    assert [gossip.admit("a", route, 1, 0.0) for route in routes] == [OK, OK, OK, PEER]
    assert gossip.admit("b", Route.ANNOUNCE, 101, 0.0) is PEER
    assert gossip.admit("b", Route.ANNOUNCE, 90, 0.0) is OK
    assert gossip.admit("b", Route.ANNOUNCE, 90, 0.0) is PEER
    assert gossip.admit("b", Route.ANNOUNCE, 90, 9.0) is OK


def test_replies_are_charged_and_too_many_bytes_of_them_bar_further_requests() -> None:
    limits = NetworkLimits(sent=Rate(10, 100), total_bytes_factor=1.5)
    gossip = Gossip(CHAIN, limits, 0.0)
    assert gossip.admit("a", Route.CHUNK, 1, 0.0) is OK
    gossip.on_replied("a", 130, 0.0)
    assert gossip.admit("a", Route.CHUNK, 1, 0.0) is PEER
    assert gossip.admit("b", Route.CHUNK, 1, 0.0) is OK
    gossip.on_replied("b", 50, 0.0)
    assert gossip.admit("c", Route.CHUNK, 1, 0.0) is TOTAL
    assert gossip.admit("a", Route.CHUNK, 1, 3.0) is OK


def test_others_can_not_use_up_what_chosen_peers_may_ask() -> None:
    limits = NetworkLimits(requests=Rate(1, 4), announced=Rate(1, 4), total_factor=2)
    gossip = Gossip(CHAIN, limits, 0.0)
    gossip.on_linked("chosen", 0.0, is_chosen=True)
    gossip.on_linked("dialled us", 0.0)
    for flooder in "xyz":
        for _ in range(4):
            gossip.admit(flooder, Route.OBJECTS, 1, 0.0)
        with suppress(Overloaded):
            hear(gossip, flooder, *(Announced(TX, ident(f"{flooder}{n}"), None) for n in range(4)))
    assert gossip.admit("dialled us", Route.STATUS, 1, 0.0) is TOTAL
    assert gossip.admit("chosen", Route.STATUS, 1, 0.0) is OK
    with pytest.raises(Overloaded):
        hear(gossip, "dialled us", Announced(TX, X, None))
    assert hear(gossip, "chosen", Announced(TX, X, None)) == [Pull("chosen", TX, (X,))]
    # Nobody is blamed for what others asked.
    assert gossip.get_score("dialled us", 0.0) == 0


def test_an_object_larger_than_its_kind_allows_costs_without_being_looked_at(gossip: Gossip) -> None:
    (pull,) = hear(gossip, "a", Announced(Kind.CLAIM, X, None))
    hear(gossip, "b", Announced(Kind.CLAIM, X, None))
    assert isinstance(pull, Pull)
    data = bytes(MAX_KIND_BYTES[Kind.CLAIM] + 1)
    assert gossip.on_pulled(pull, [data], 0.0) == [Pull("b", Kind.CLAIM, (X,))]
    assert gossip.get_score("a", 0.0) == Fault.INVALID_OBJECT.points
    assert hear(gossip, "c", Announced(Kind.PRESENCE, Y, bytes(MAX_KIND_BYTES[Kind.PRESENCE] + 1))) == []
    assert gossip.get_score("c", 0.0) == Fault.INVALID_OBJECT.points
    assert set(MAX_KIND_BYTES) == set(Kind)


def test_what_gave_way_to_others_is_asked_for_again_without_blame(gossip: Gossip) -> None:
    (delivered,) = hear(gossip, "a", Announced(TX, X, b"x"))
    hear(gossip, "b", Announced(TX, X, None))
    gossip.report("c", Fault.MALFORMED, 0.0)
    hear(gossip, "c", Announced(TX, X, None))
    assert isinstance(delivered, Deliver)
    gossip.on_dropped(delivered, 0.0)
    assert gossip.get_score("a", 0.0) == 0
    assert gossip.on_heartbeat("c", 0.0) == []  # who is at fault is not asked again
    assert gossip.on_heartbeat("a", 0.0) == [Pull("a", TX, (X,))]
    assert gossip.on_heartbeat("b", 0.0) == []


def test_usefulness_counts_what_came_first_and_was_good(gossip: Gossip) -> None:
    (delivered,) = hear(gossip, "a", Announced(TX, X, b"x"))
    hear(gossip, "b", Announced(TX, X, b"x"))
    assert isinstance(delivered, Deliver)
    gossip.on_outcome(delivered, Outcome.ACCEPT, True, 0.0)
    assert (gossip.get_usefulness("a"), gossip.get_usefulness("b")) == (1, 0)


def test_a_ban_of_an_earlier_run_goes_on(gossip: Gossip) -> None:
    gossip.restore_ban("a", 50.0, 0.0)
    assert gossip.get_bans(49.0) == {"a": 50.0}
    assert gossip.is_banned("a", 49.0)
    assert gossip.get_bans(50.0) == {}


def test_a_peer_that_was_away_is_told_again_but_not_of_blocks(gossip: Gossip) -> None:
    gossip.announce(TX, X, b"x")
    gossip.announce(Kind.BLOCK, Y, b"y")
    assert len(get_told(gossip, "a")) == 2
    gossip.on_unlinked("a")
    gossip.announce(TX, ident("z"), b"z")
    assert gossip.take_outbox("a") is None
    assert gossip.on_linked("a", 1.0) == [Flush("a")]
    assert get_told(gossip, "a") == [Announced(TX, X, b"x"), Announced(TX, ident("z"), b"z")]


def test_an_announcement_that_did_not_arrive_is_put_back(gossip: Gossip) -> None:
    gossip.announce(TX, X, b"x")
    announcement = gossip.take_outbox("a")
    assert announcement is not None
    gossip.put_back("a", announcement)
    assert gossip.take_outbox("a") == announcement


def test_outboxes_and_recent_objects_are_bounded() -> None:
    gossip = Gossip(CHAIN, NetworkLimits(outbox=3, recent_bytes=10), 0.0)
    gossip.on_linked("a", 0.0)
    for number in range(5):
        gossip.announce(TX, ident(str(number)), b"1234")
    assert [item.id for item in get_told(gossip, "a")] == [ident(str(n)) for n in (2, 3, 4)]
    assert gossip.get_object(TX, ident("2")) is None
    assert gossip.get_object(TX, ident("3")) == b"1234"


def test_key_sets_forget_the_oldest() -> None:
    keys = KeySet(2)
    for object_id in (X, Y, X, ident("z")):
        keys.add((TX, object_id))
    assert (TX, X) in keys
    assert (TX, Y) not in keys
    assert len(keys) == 2


def test_buckets_refill_to_their_burst_and_time_going_back_gives_nothing() -> None:
    bucket = TokenBucket(Rate(10, 5), 0.0)
    assert bucket.take(5, 0.0)
    assert not bucket.take(1, 0.0)
    assert bucket.take(1, 0.1)
    assert bucket.take(5, 100.0)
    assert not bucket.take(1, 50.0)
    assert not bucket.take(1, 100.0)
