"""Leases on a fake clock: present miners share a step's batches, and a silent one's lease passes on.

How long a step takes is a matter of leases here, and not of this machine.
"""

import asyncio
from collections import Counter

import pytest

from tests.integration.bench import JOB_S, LEASE_MS, Bench
from tests.integration.material import BATCHES


@pytest.mark.parametrize(("count", "rounds"), [(1, [1, 1, 1]), (2, [2, 1]), (3, [3])])
async def test_more_miners_share_a_steps_batches(bench: Bench, count: int, rounds: list[int]) -> None:
    """Three batches: one miner takes three jobs' time, two take two, three take one; none is done twice."""
    miners = bench.miners[:count]
    bench.introduce(*miners)
    started = bench.clock.monotonic()
    async with bench.mine(*miners):
        for jobs in rounds:
            await bench.finish_round(jobs)
    assert bench.clock.monotonic() - started == pytest.approx(JOB_S * len(rounds))
    leases = bench.get_leases(*miners)
    assert bench.get_claimants() == {batch: [order[0]] for batch, order in leases.items()}
    shares = Counter(order[0] for order in leases.values())
    assert sorted(shares.values()) == {1: [3], 2: [1, 2], 3: [1, 1, 1]}[count]
    assert sorted(batch for work in bench.works for batch in work.begun) == list(range(BATCHES))


async def test_the_lease_of_a_silent_miner_passes_on(bench: Bench) -> None:
    """It says that it is there and computes nothing: the other gets its batches after `lease_ms`."""
    miner, silent = bench.miners[:2]
    bench.introduce(miner, silent)
    own = [b for b, order in bench.get_leases(miner, silent).items() if order[0] == miner.address]
    started = bench.clock.monotonic()
    async with bench.mine(miner):
        for _ in own:
            await bench.finish_round(1)
            bench.introduce(silent)
        if len(own) == 1:
            passed = bench.clock.monotonic() - started
            bench.clock.advance(LEASE_MS / 1000 - passed - 0.001)
            bench.introduce(silent)  # a beat: the miner looks once more, in vain
            await asyncio.sleep(0)
            assert {b for b, claimants in bench.get_claimants().items() if claimants} == set(own)
            assert bench.works[1].begun == own
            bench.clock.advance(0.001)
        for _ in range(BATCHES - len(own)):
            await bench.finish_round(1)
    assert bench.get_claimants() == {batch: [miner.address] for batch in range(BATCHES)}
    assert bench.clock.monotonic() - started >= LEASE_MS / 1000
