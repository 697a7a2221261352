"""Which miners are at work: signed, short-lived notices, so that a silent miner is given no lease.

Not part of consensus: nodes that hear different notices only risk computing a batch twice.
"""

from dataclasses import dataclass, field

from consensus.claims import Presence
from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.types import Address, Hash32, Millis

PRESENCE_MS = 15_000
"""How long a notice counts."""
MAX_SKEW_MS = 60_000
MAX_NOTICES = 4_096


def hash_presence(data: bytes) -> Hash32:
    """The id under which a notice's bytes are announced."""
    return hash_domain("presence-id", data)


def compute_presence_id(presence: Presence) -> Hash32:
    return hash_presence(encode(presence))


@dataclass(slots=True)
class PresenceTable:
    """The latest notice of each miner for each task."""

    _latest: dict[tuple[Hash32, Address], Presence] = field(default_factory=dict)
    _ids: dict[Hash32, Presence] = field(default_factory=dict)

    def add(self, presence: Presence, now: Millis) -> bool:
        """Keep a checked notice; False if it is not news, stale, or from too far in the future."""
        if not now - PRESENCE_MS <= presence.time <= now + MAX_SKEW_MS:
            return False
        key = presence.task, presence.miner
        known = self._latest.get(key)
        if known is not None and known.time >= presence.time:
            return False
        if known is None and len(self._latest) >= MAX_NOTICES:
            self._drop_stale(now)
            if len(self._latest) >= MAX_NOTICES:
                return False
        if known is not None:
            self._ids.pop(compute_presence_id(known), None)
        self._latest[key] = presence
        self._ids[compute_presence_id(presence)] = presence
        return True

    def get(self, presence_id: Hash32) -> Presence | None:
        return self._ids.get(presence_id)

    def get_present(self, task: Hash32, now: Millis) -> tuple[Address, ...]:
        """The miners at work on a task, ascending."""
        return tuple(
            sorted(m for (t, m), p in self._latest.items() if t == task and p.time + PRESENCE_MS >= now)
        )

    def _drop_stale(self, now: Millis) -> None:
        for key in [k for k, p in self._latest.items() if p.time + PRESENCE_MS < now]:
            self._ids.pop(compute_presence_id(self._latest.pop(key)), None)
