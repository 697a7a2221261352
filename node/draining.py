"""Before a node stops: nothing new is begun, what is under way is finished, reads are served as ever."""

import logging
from collections.abc import Callable, Mapping

from node.clock import Clock
from node.pulse import Pulse

logger = logging.getLogger(__name__)

POLL_S = 0.25
"""What is under way may end without a beat of the pulse."""


class Drain:
    """Whether the node takes new work, and what of it is under way.

    A draining node follows the chain, votes, proposes and answers reads as ever; it begins no batch, job or
    round, signs no presence, and its API refuses writes. It does not come back from that but by a restart.
    """

    def __init__(self, clock: Clock, pulse: Pulse) -> None:
        self._clock = clock
        self._pulse = pulse
        self._counts: dict[str, Callable[[], int]] = {}
        self._is_draining = False

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def watch(self, name: str, count: Callable[[], int]) -> None:
        """`count` says how much of this kind is under way."""
        self._counts[name] = count

    def get_under_way(self) -> Mapping[str, int]:
        """What is under way, by kind."""
        return {name: number for name, count in self._counts.items() if (number := count())}

    def begin(self) -> None:
        """Take no new work from now on; harmless if that is so already."""
        if not self._is_draining:
            self._is_draining = True
            logger.info("draining: no new work; under way: %s", self.describe())
            self._pulse.beat()

    def describe(self) -> str:
        """What is under way, in words."""
        return ", ".join(f"{number} {name}" for name, number in self.get_under_way().items()) or "nothing"

    async def wait(self, timeout_s: float) -> bool:
        """Return once nothing is under way: True; or after `timeout_s`: False."""
        end = self._clock.monotonic() + timeout_s
        seen = self._pulse.version
        while self.get_under_way():
            left = end - self._clock.monotonic()
            if left <= 0:
                logger.warning("not finished after %.0f s, given up: %s", timeout_s, self.describe())
                return False
            seen = await self._pulse.wait(seen, min(left, POLL_S))
        return True
