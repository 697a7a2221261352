"""The listener's gate: stages, bounds, and who gives way in a flood."""

import random

from node.gossip.gate import Connection, ConnectionGate, GateLimits, Refusal
from node.gossip.limits import Rate
from node.tls import PeerIdentity

FAST = Rate(1e6, 1e6)


def build_limits(
    connections: int = 10,
    per_address: int = 10,
    per_organisation: int = 10,
    per_node: int = 10,
    handshakes: int = 10,
    handshakes_per_address: int = 10,
    address_rate: Rate = FAST,
    total_rate: Rate = FAST,
) -> GateLimits:
    return GateLimits(
        connections,
        per_address,
        per_organisation,
        per_node,
        handshakes,
        handshakes_per_address,
        address_rate,
        total_rate,
    )


def build_gate(limits: GateLimits, *chosen: str) -> ConnectionGate:
    return ConnectionGate(limits, 0.0, lambda node_id: node_id in chosen)


def connect(gate: ConnectionGate, address: str, now: float = 0.0) -> Connection:
    connection, _ = gate.on_connect(address, now)
    assert connection is not None
    return connection


def identify(gate: ConnectionGate, address: str, node: str, now: float = 0.0, org: str = "") -> Connection:
    connection = connect(gate, address, now)
    assert gate.on_identified(connection, PeerIdentity(node, org or f"org-{node}"), now) is None
    return connection


def test_rates_bound_what_is_spent_on_new_connections() -> None:
    gate = build_gate(build_limits(1_000, 1_000, handshakes=1_000, address_rate=Rate(1, 3)))
    taken = [gate.on_connect("1.1.1.1", 0.0)[0] is not None for _ in range(5)]
    assert taken == [True, True, True, False, False]
    assert gate.refused[Refusal.ADDRESS_RATE] == 2
    assert gate.on_connect("2.2.2.2", 0.0)[0] is not None
    assert gate.on_connect("1.1.1.1", 1.0)[0] is not None
    gate = build_gate(build_limits(total_rate=Rate(1, 2)))
    assert [gate.on_connect(f"{n}.1.1.1", 0.0)[0] is not None for n in range(3)] == [True, True, False]
    assert gate.refused[Refusal.TOTAL_RATE] == 1


def test_an_address_has_its_bound_and_what_is_closed_counts_no_more() -> None:
    gate = build_gate(build_limits(per_address=2))
    first = connect(gate, "1.1.1.1")
    connect(gate, "1.1.1.1")
    assert gate.on_connect("1.1.1.1", 0.0) == (None, [])
    assert gate.refused[Refusal.ADDRESS_FULL] == 1
    gate.on_closed(first)
    gate.on_closed(first)
    connect(gate, "1.1.1.1")
    assert len(gate) == 2


def test_nodes_and_organisations_have_theirs() -> None:
    gate = build_gate(build_limits(per_node=2, per_organisation=3))
    for node in ("a", "a", "b"):
        identify(gate, "1.1.1.1", node, org="x")
    third = connect(gate, "1.1.1.1")
    assert gate.on_identified(third, PeerIdentity("a", "x"), 0.0) is Refusal.NODE_FULL
    assert gate.on_identified(third, PeerIdentity("c", "x"), 0.0) is Refusal.ORGANISATION_FULL
    assert gate.on_identified(third, PeerIdentity("c", "y"), 0.0) is None
    assert gate.count_organisation("x") == 3


def test_slow_handshakes_displace_themselves_not_a_newcomer_from_elsewhere() -> None:
    gate = build_gate(build_limits(100, 100, handshakes=6, handshakes_per_address=5))
    slow = [connect(gate, "6.6.6.6", n / 10) for n in range(5)]
    assert gate.on_connect("6.6.6.6", 1.0) == (None, [])
    connect(gate, "1.1.1.1", 1.0)
    newcomer, displaced = gate.on_connect("2.2.2.2", 1.0)
    assert newcomer is not None
    assert displaced == [slow[0]]
    assert gate.handshakes == 6
    # It finished at that very moment: too late.
    assert gate.on_identified(slow[0], PeerIdentity("m", "m"), 1.0) is Refusal.DISPLACED


def test_a_full_listener_displaces_the_largest_holder_and_never_a_chosen_or_busy_peer() -> None:
    gate = build_gate(build_limits(connections=8, handshakes=20), "friend")
    friend = identify(gate, "9.9.9.9", "friend", 0.0, org="mallory-org")
    busy = identify(gate, "6.6.6.6", "m0", 0.0, org="mallory-org")
    gate.on_request(busy)
    spoke = identify(gate, "6.6.6.6", "m1", 0.0, org="mallory-org")
    gate.on_request(spoke)
    gate.on_reply(spoke, 9.0)
    silent = [identify(gate, "6.6.6.7", f"s{n}", 1.0 + n, org="mallory-org") for n in range(4)]
    honest = identify(gate, "1.1.1.1", "honest", 5.0)
    gone = []
    for number in range(4):
        newcomer, displaced = gate.on_connect(f"2.2.2.{number}", 10.0 + number)
        assert newcomer is not None
        gone += displaced
    assert gone == silent
    newcomer, displaced = gate.on_connect("3.3.3.3", 20.0)
    assert displaced == [spoke]
    # Nobody is left who has more than the newcomer would: it is turned away.
    assert gate.on_connect("4.4.4.4", 20.0) == (None, [])
    assert {friend.number, busy.number, honest.number} <= set(gate._open)
    assert len(gate) == 8


def test_an_address_that_floods_can_not_get_in_at_the_cost_of_others() -> None:
    gate = build_gate(build_limits(connections=6, handshakes=20))
    for number in range(4):
        identify(gate, f"1.1.1.{number}", f"h{number}")
    connect(gate, "6.6.6.6")
    connect(gate, "6.6.6.6")
    assert gate.on_connect("6.6.6.6", 0.0) == (None, [])
    assert gate.refused[Refusal.FULL] == 1


def test_each_stage_has_its_time() -> None:
    gate = build_gate(build_limits())
    limits = gate.limits
    stuck = connect(gate, "1.1.1.1", 0.0)
    silent = identify(gate, "1.1.1.2", "silent", 0.0)
    idle = identify(gate, "1.1.1.3", "idle", 0.0)
    gate.on_request(idle)
    busy = identify(gate, "1.1.1.4", "busy", 0.0)
    gate.on_request(busy)
    gate.on_reply(idle, 1.0)
    assert gate.get_expired(limits.handshake_s) == []
    assert gate.get_expired(limits.handshake_s + 0.1) == [(stuck, Refusal.HANDSHAKE_TIME)]
    gate.on_closed(stuck)
    assert gate.get_expired(limits.first_request_s + 0.1) == [(silent, Refusal.SILENT)]
    gate.on_closed(silent)
    assert gate.get_expired(limits.idle_s + 1.1) == [(idle, Refusal.IDLE)]
    gate.on_closed(idle)
    assert gate.get_expired(1e9) == []
    gate.on_reply(busy, 1e9)
    assert gate.get_expired(1e9 + limits.idle_s + 1) == [(busy, Refusal.IDLE)]


def test_counts_hold_whatever_happens() -> None:
    seed = 3
    print(f"seed {seed}")
    rng = random.Random(seed)
    limits = build_limits(20, 8, 9, 4, handshakes=7, handshakes_per_address=4)
    gate = build_gate(limits, "n1")
    now, alive = 0.0, dict[int, Connection]()
    for _ in range(5_000):
        now += rng.random()
        match rng.randrange(4):
            case 0 | 1:
                taken, displaced = gate.on_connect(f"1.1.1.{rng.randrange(6)}", now)
                for victim in displaced:
                    del alive[victim.number]
                if taken is not None:
                    alive[taken.number] = taken
            case 2 if alive:
                found = rng.choice(list(alive.values()))
                if found.identity is None:
                    node = rng.randrange(8)
                    if gate.on_identified(found, PeerIdentity(f"n{node}", f"o{node // 3}"), now):
                        gate.on_closed(alive.pop(found.number))
                else:
                    gate.on_request(found)
                    gate.on_reply(found, now)
            case _:
                for expired, _reason in gate.get_expired(now):
                    gate.on_closed(alive.pop(expired.number))
        assert set(gate._open) == set(alive)
        assert len(alive) <= limits.connections
        assert gate.handshakes == sum(c.identity is None for c in alive.values()) <= limits.handshakes
        assert all(gate.count_address(f"1.1.1.{n}") <= limits.per_address for n in range(6))
        assert all(gate.count_organisation(f"o{n}") <= limits.per_organisation for n in range(3))
    for connection in alive.values():
        gate.on_closed(connection)
    assert not gate._addresses
    assert not gate._nodes
    assert not gate._organisations
