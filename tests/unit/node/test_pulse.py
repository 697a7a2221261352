"""The pulse: beats wake, time-outs end, and a cancellation is never lost."""

import asyncio

from node.pulse import Pulse


async def test_a_beat_before_the_wait_returns_at_once() -> None:
    pulse = Pulse()
    seen = pulse.version
    pulse.beat()
    assert await pulse.wait(seen, 60.0) == seen + 1


async def test_a_wait_without_a_beat_ends_with_its_time() -> None:
    pulse = Pulse()
    assert await pulse.wait(pulse.version, 0.001) == pulse.version


async def test_a_service_cancelled_right_after_a_beat_ends() -> None:
    pulse = Pulse()

    async def serve() -> None:
        seen = -1
        while True:
            seen = await pulse.wait(seen, 60.0)

    service = asyncio.create_task(serve())
    for _ in range(3):
        await asyncio.sleep(0)
    pulse.beat()
    service.cancel()
    done, _ = await asyncio.wait([service], timeout=5.0)
    assert done
    assert service.cancelled()
