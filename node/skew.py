"""How far this machine's clock is from its peers': estimated from their answers, named, never corrected.

Consensus holds blocks that are ahead of the local clock (B3), so a clock that is behind makes the node fall
behind, and one that is ahead makes its blocks wait at everybody else. Rates and timeouts use monotonic time
and don't care; a step of the wall clock is named all the same.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from consensus.types import Millis
from node.clock import Clock

logger = logging.getLogger(__name__)

WARN_MS = 500
MIN_PEERS = 2
"""Fewer may warn, but keep nobody from being ready: one peer's word is not enough."""
LOOK_S = 10.0
REPEAT_S = 600.0
SAMPLES = 5
MAX_EXCHANGE_S = 1.0
"""Half the time of an exchange is what its sample may be wrong by; slower ones say too little."""


class OffsetSampler:
    """One peer's clock relative to ours: the median of its last few answers."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)

    def add(self, peer_ms: Millis, received_ms: Millis, elapsed_s: float) -> None:
        """A peer's time as it answered, ours as the answer came, and how long the exchange took."""
        if elapsed_s <= MAX_EXCHANGE_S:
            self._samples.append(peer_ms - (received_ms - elapsed_s * 500))

    @property
    def offset_ms(self) -> float | None:
        """By how much the peer's clock is ahead of ours; None while nothing is known."""
        return _choose_median(self._samples) if self._samples else None

    def forget(self) -> None:
        """The local clock was stepped: what was measured before says nothing."""
        self._samples.clear()


def _choose_median(values: Sequence[float]) -> float:
    """The middle one; of two in the middle the one nearer to 0."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return min(ordered[middle - 1], ordered[middle], key=abs)


@dataclass(frozen=True, slots=True)
class Skew:
    """The local clock relative to the peers'."""

    behind_ms: float
    """By how much it is behind them; negative if it is ahead."""
    peers: int
    """How many the median was taken over."""

    def describe(self) -> str:
        direction = "behind" if self.behind_ms > 0 else "ahead of"
        return f"{abs(self.behind_ms) / 1000:.3f} s {direction} the median of {self.peers} peers"


def estimate(offsets: Sequence[float]) -> Skew | None:
    """From each peer's offset, in milliseconds ahead of the local clock; None without any.

    Less than half of the peers can't move it beyond what the others say.
    """
    return Skew(_choose_median(offsets), len(offsets)) if offsets else None


class SkewWatch:
    """Looks at the estimate every few seconds and says what it means."""

    def __init__(
        self,
        clock: Clock,
        get_offsets: Callable[[], Sequence[float]],
        forget: Callable[[], None],
        limit_ms: int,
    ) -> None:
        """`limit_ms`: from here on blocks are not where they should be when they should be there."""
        self._clock = clock
        self._get_offsets = get_offsets
        self._forget = forget
        self.limit_ms = limit_ms
        self._told_at: float | None = None
        self._difference_ms = self._get_difference()

    def get_skew(self) -> Skew | None:
        """What is known now; for readiness and metrics."""
        return estimate(self._get_offsets())

    @property
    def is_out_of_step(self) -> bool:
        """Whether the clock is so wrong that the node should not be counted on."""
        skew = self.get_skew()
        return skew is not None and skew.peers >= MIN_PEERS and abs(skew.behind_ms) > self.limit_ms

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Log what has changed, or what is still wrong after a while."""
        self._look_for_step()
        skew = self.get_skew()
        if skew is None:
            return
        now = self._clock.monotonic()
        if abs(skew.behind_ms) <= WARN_MS:
            if self._told_at is not None:
                self._told_at = None
                logger.info("the clock is right again: %s", skew.describe())
        elif self._told_at is None or now >= self._told_at + REPEAT_S:
            self._told_at = now
            logger.warning(
                "clock skew: this machine's clock is %s; blocks come late from %d ms on. Set it right by NTP "
                "(chronyc tracking, timedatectl); the node does not adjust it",
                skew.describe(),
                self.limit_ms,
            )

    def _get_difference(self) -> float:
        return self._clock.now_ms() - self._clock.monotonic() * 1000

    def _look_for_step(self) -> None:
        """The wall clock against the monotonic one: slewing is slow, a step is not."""
        before, self._difference_ms = self._difference_ms, self._get_difference()
        step = self._difference_ms - before
        if abs(step) > WARN_MS:
            direction = "forward" if step > 0 else "back"
            logger.warning(
                "clock skew: this machine's clock was set %s by %.3f s", direction, abs(step) / 1000
            )
            self._forget()
