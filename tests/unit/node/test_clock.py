"""The manual clock wakes in order and only when due; the system clock moves."""

import asyncio

from consensus.types import Millis
from node.clock import ManualClock, SystemClock


async def test_sleepers_wake_in_the_order_of_their_times() -> None:
    clock, woken = ManualClock(1000), list[tuple[str, int]]()

    async def sleep(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.now_ms()))

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("late", 3.0), ("early", 1.0), ("middle", 2.0)):
            group.create_task(sleep(name, seconds))
        await asyncio.sleep(0)
        assert clock.sleepers == 3
        await clock.run_for(2.5)
        assert woken == [("early", 2000), ("middle", 3000)]
        await clock.run_for(0.5)
    assert woken[-1] == ("late", 4000)
    assert clock.monotonic() == 3.0


async def test_sleeping_again_within_the_same_advance() -> None:
    clock, ticks = ManualClock(), list[float]()

    async def tick() -> None:
        for _ in range(5):
            await clock.sleep(1)
            ticks.append(clock.monotonic())

    task = asyncio.create_task(tick())
    await clock.run_for(5)
    await task
    assert ticks == [1, 2, 3, 4, 5]


async def test_waiting_until_a_time() -> None:
    clock = ManualClock(1000)
    await clock.wait_until(Millis(999))
    waiting = asyncio.create_task(clock.wait_until(Millis(1500)))
    await clock.run_for(0.4)
    assert not waiting.done()
    await clock.run_for(0.1)
    assert waiting.done()


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    sleeping = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)
    sleeping.cancel()
    await asyncio.gather(sleeping, return_exceptions=True)
    assert clock.sleepers == 0
    clock.advance(2)


async def test_the_system_clock_moves() -> None:
    clock = SystemClock()
    before, start = clock.now_ms(), clock.monotonic()
    await clock.sleep(0.001)
    await clock.wait_until(Millis(before + 2))
    assert clock.now_ms() >= before + 2
    assert clock.monotonic() > start
