"""Leases: everyone deals the same, every miner is in every order, first places are even."""

from collections import Counter

import pytest

from consensus.crypto import hash_domain
from consensus.leases import compute_leases
from consensus.types import Address, Hash32

TASK = hash_domain("test", b"task")
MINERS = [Address(bytes([i]) * 32) for i in range(5)]


@pytest.mark.parametrize("miners", range(1, 6))
@pytest.mark.parametrize("step", [0, 1, 7])
def test_first_places_are_even(miners: int, step: int) -> None:
    leases = compute_leases(TASK, step, range(7), MINERS[:miners])
    assert list(leases) == list(range(7))
    assert all(sorted(order) == MINERS[:miners] for order in leases.values())
    places = Counter(order[0] for order in leases.values())
    assert max(places.values()) - min(places[miner] for miner in MINERS[:miners]) <= 1


def test_order_of_miners_does_not_matter_but_task_and_step_do() -> None:
    leases = compute_leases(TASK, 3, range(6), MINERS)
    assert compute_leases(TASK, 3, range(6), MINERS[::-1] + MINERS[:2]) == leases
    assert compute_leases(TASK, 4, range(6), MINERS) != leases
    assert compute_leases(Hash32(bytes(32)), 3, range(6), MINERS) != leases


def test_nobody_to_lease_to() -> None:
    assert compute_leases(TASK, 0, (4, 2), ()) == {4: (), 2: ()}
