"""Rates, scores and bans of peers: pure, with time as an argument."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from node.gossip.messages import ROUTES, Route


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` at once, then `per_s`."""

    per_s: float
    burst: float


def _build_default_rates() -> Mapping[Route, Rate]:
    return {route: Rate(limits.per_s, limits.burst) for route, limits in ROUTES.items()}


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """What one peer, and all together, may ask of this node."""

    rates: Mapping[Route, Rate] = field(default_factory=_build_default_rates)
    """Requests of one peer, by route."""
    announced: Rate = Rate(5_000, 20_000)
    """Objects announced by one peer."""
    total_factor: float = 8.0
    """All peers together may use so many times one peer's rates."""
    chunks_per_peer: int = 16
    """Chunks read from disk for one peer at the same time."""
    chunks_total: int = 64
    links: int = 64
    """Peers dialled, configured and learned."""
    outbox: int = 8_192
    """Announcements waiting for one peer; beyond it the oldest are dropped."""
    wanted: int = 8_192
    """Announced objects being pulled or judged."""
    wanted_per_peer: int = 4_096
    deferred: int = 1_024
    """Announced objects of one peer to be asked for once it answers."""
    known: int = 16_384
    """Ids remembered of what each peer has."""
    seen: int = 65_536
    """Ids remembered of what was announced here."""
    recent_bytes: int = 32 * 1024 * 1024
    """Announced objects kept to be pulled."""
    pulls_per_peer: int = 4
    """Pull requests open at one peer."""
    ban_score: float = 100.0
    score_half_life_s: float = 600.0
    ban_s: float = 300.0
    """Length of a first ban; each further one is twice as long, up to a day."""


class Fault(Enum):
    """What a peer may do wrong; the first number is what it weighs against `ban_score`."""

    FLOOD = (1, "a request beyond the rate, which was refused")
    UNHELPFUL = (5, "it said that it has something and did not give it")
    MALFORMED = (30, "bytes that no honest node sends")
    INVALID_OBJECT = (30, "an object that the rules reject whatever the state")
    CORRUPT_BLOB = (40, "blob bytes that do not match their hash")

    def __init__(self, points: int, meaning: str) -> None:
        self.points = points
        self.meaning = meaning


class TokenBucket:
    """Admits at most `burst` at once and `per_s` over time."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = rate.burst
        self._time = now

    def take(self, amount: float, now: float) -> bool:
        """Take tokens if there are enough; a refusal takes none."""
        self._tokens = min(self._rate.burst, self._tokens + max(0.0, now - self._time) * self._rate.per_s)
        self._time = max(self._time, now)
        if amount > self._tokens:
            return False
        self._tokens -= amount
        return True


class RateLimiter:
    """Token buckets of one peer, or of all together with `factor`."""

    def __init__(self, limits: NetworkLimits, now: float, factor: float = 1.0) -> None:
        self._buckets = {
            route: TokenBucket(Rate(rate.per_s * factor, rate.burst * factor), now)
            for route, rate in limits.rates.items()
        }
        rate = limits.announced
        self._announced = TokenBucket(Rate(rate.per_s * factor, rate.burst * factor), now)

    def admit_request(self, route: Route, now: float) -> bool:
        return self._buckets[route].take(1, now)

    def admit_announced(self, count: int, now: float) -> bool:
        return self._announced.take(count, now)


class Score:
    """Faults of one peer, decaying by half every half-life, and its bans."""

    def __init__(self, limits: NetworkLimits) -> None:
        self._limits = limits
        self._value = 0.0
        self._time = 0.0
        self._bans = 0
        self.banned_until = 0.0

    def get(self, now: float) -> float:
        """0 for a peer without fault."""
        return self._value * math.exp2(-max(0.0, now - self._time) / self._limits.score_half_life_s)

    def add(self, fault: Fault, now: float) -> bool:
        """Count a fault; True if the peer is banned for it now."""
        self._value, self._time = self.get(now) + fault.points, now
        if self._value < self._limits.ban_score or self.is_banned(now):
            return False
        self.banned_until = now + min(86_400.0, self._limits.ban_s * 2**self._bans)
        self._bans += 1
        # Half of it stays, so that a peer that goes on as before is banned again sooner.
        self._value /= 2
        return True

    def is_banned(self, now: float) -> bool:
        return now < self.banned_until
