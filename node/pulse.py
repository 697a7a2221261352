"""How services learn that something changed."""

import asyncio
import contextlib


class Pulse:
    """Wakes every waiting service whenever something changed; no wake-up is lost."""

    def __init__(self) -> None:
        self._version = 0
        self._event = asyncio.Event()

    @property
    def version(self) -> int:
        return self._version

    def beat(self) -> None:
        self._version += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seen: int, timeout_s: float) -> int:
        """Return once the version differs from `seen`, or after `timeout_s`; the version then."""
        if self._version == seen:
            with contextlib.suppress(TimeoutError):
                # Not `wait_for`, which before Python 3.12 loses a cancellation that comes with a beat.
                async with asyncio.timeout(timeout_s):
                    await self._event.wait()
        return self._version
