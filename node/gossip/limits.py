"""Rates, scores and bans of peers: pure, with time as an argument."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from node.gossip.messages import ROUTES, Route
from node.gossip.queue import DEFAULT_LANES, LaneLimits, LaneName
from node.gossip.selection import SlotLimits

MIB = 1024 * 1024


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
    requests: Rate = Rate(600, 2_000)
    """Requests of one peer, whatever their routes."""
    announced: Rate = Rate(5_000, 20_000)
    """Objects announced by one peer."""
    received: Rate = Rate(32 * MIB, 128 * MIB)
    """Bytes of one peer's requests."""
    sent: Rate = Rate(128 * MIB, 512 * MIB)
    """Bytes of replies to one peer."""
    total_factor: float = 8.0
    """All peers together may use so many times one peer's rates of requests and announcements..."""
    total_bytes_factor: float = 2.0
    """...and of bytes. Peers that this node chose have such a total of their own, which no others use up."""
    chunks_per_peer: int = 16
    """Chunks read from disk for one peer at the same time."""
    chunks_total: int = 64
    slots: SlotLimits = field(default_factory=SlotLimits)
    """Links by kind."""
    lanes: Mapping[LaneName, LaneLimits] = field(default_factory=lambda: DEFAULT_LANES)
    """Objects waiting to be judged."""
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
    OVERSIZE = (20, "a request longer than its route takes, or of unknown length")
    INVALID_OBJECT = (30, "an object that the rules reject whatever the state")
    CORRUPT_BLOB = (40, "blob bytes that do not match their hash")
    POISONED = (100, "a part of a proved whole that its hash does not fit: banned at once")

    def __init__(self, points: int, meaning: str) -> None:
        self.points = points
        self.meaning = meaning


class TokenBucket:
    """Admits at most `burst` at once and `per_s` over time."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = rate.burst
        self._time = now

    def has(self, amount: float, now: float) -> bool:
        """Whether there are so many tokens."""
        self._tokens = min(self._rate.burst, self._tokens + max(0.0, now - self._time) * self._rate.per_s)
        self._time = max(self._time, now)
        return amount <= self._tokens

    def take(self, amount: float, now: float) -> bool:
        """Take tokens if there are enough; a refusal takes none."""
        if not self.has(amount, now):
            return False
        self._tokens -= amount
        return True

    def charge(self, amount: float) -> None:
        """Take tokens for what is done already; there may be less than none afterwards."""
        self._tokens -= amount


class RateLimiter:
    """Token buckets of one peer, or of several together with factors."""

    def __init__(
        self, limits: NetworkLimits, now: float, factor: float = 1.0, bytes_factor: float = 1.0
    ) -> None:
        def build(rate: Rate, times: float = factor) -> TokenBucket:
            return TokenBucket(Rate(rate.per_s * times, rate.burst * times), now)

        self._routes = {route: build(rate) for route, rate in limits.rates.items()}
        self._requests = build(limits.requests)
        self._announced = build(limits.announced)
        self._received = build(limits.received, bytes_factor)
        self._sent = build(limits.sent, bytes_factor)

    def admit_request(self, route: Route, size: int, now: float) -> bool:
        """Whether a request of so many bytes is within every rate; what is not takes nothing."""
        # Replies were charged when their size was known.
        checks = ((self._routes[route], 1), (self._requests, 1), (self._received, size))
        if not self._sent.has(0, now) or not all(bucket.has(n, now) for bucket, n in checks):
            return False
        for bucket, amount in checks:
            bucket.charge(amount)
        return True

    def admit_announced(self, count: int, now: float) -> bool:
        return self._announced.take(count, now)

    def charge_sent(self, size: int) -> None:
        self._sent.charge(size)


class Admission(Enum):
    """What becomes of a request before it is looked at."""

    ADMITTED = "admitted"
    PEER_LIMIT = "beyond what one peer may ask"
    TOTAL_LIMIT = "beyond what all may ask together, which is nobody's fault"


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
