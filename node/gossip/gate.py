"""Connections of the peer listener: who may open one, who keeps one, who must go. Pure, time is an argument.

A connection passes three stages, each with its own bound and time: its TLS handshake, its first request, and
idleness between requests. Handshakes cost the node most, so their number at once and their rate are bounded,
by address and in total; connections are bounded by address, by organisation, by node and in total. When a
total is reached, the address or organisation with most connections gives one up, so that a flood displaces
itself; a connection with a request under way, or of a peer that this node chose, is never displaced.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from node.gossip.limits import Rate, TokenBucket
from node.tls import PeerIdentity

ADDRESS_RATE = Rate(20, 64)
TOTAL_RATE = Rate(100, 256)


@dataclass(frozen=True, slots=True)
class GateLimits:
    """What the listener bears."""

    connections: int = 512
    """All that are open, handshakes included."""
    per_address: int = 128
    """Of one IP address; nodes behind one address share it."""
    per_organisation: int = 128
    per_node: int = 48
    handshakes: int = 64
    """TLS handshakes under way."""
    handshakes_per_address: int = 32
    address_rate: Rate = ADDRESS_RATE
    """New connections of one address."""
    total_rate: Rate = TOTAL_RATE
    """New connections of all addresses."""
    handshake_s: float = 5.0
    first_request_s: float = 10.0
    """From the handshake to the first request."""
    idle_s: float = 60.0
    """Between two requests."""
    remembered_addresses: int = 4_096
    """Addresses whose rates are remembered."""


class Refusal(StrEnum):
    """Why a connection was not taken, or was closed."""

    ADDRESS_RATE = "too many connections of this address in a short time"
    TOTAL_RATE = "too many connections in a short time"
    ADDRESS_FULL = "too many open connections of this address"
    HANDSHAKES_FULL = "too many handshakes under way"
    FULL = "too many open connections"
    NODE_FULL = "too many open connections of this node"
    ORGANISATION_FULL = "too many open connections of this organisation"
    HANDSHAKE_TIME = "the handshake took too long"
    SILENT = "no request came"
    IDLE = "no request came for long"
    DISPLACED = "it made room for others"


@dataclass(slots=True)
class Connection:
    """One connection; compared by identity."""

    number: int
    address: str
    since: float
    """When it was taken, passed its handshake, or ended its last request."""
    identity: PeerIdentity | None = None
    """None until the handshake is done."""
    requests: int = 0
    """Requests that were begun."""
    active: int = 0
    """Requests under way, whose bodies have arrived."""


class ConnectionGate:
    """All open connections. Calls name what must be closed; the caller closes it and calls `on_closed`.

    `is_chosen` tells whether a node id is of a peer that this node decided to link.
    """

    def __init__(self, limits: GateLimits, now: float, is_chosen: Callable[[str], bool]) -> None:
        self.limits = limits
        self._is_chosen = is_chosen
        self.refused: Counter[Refusal] = Counter()
        """How often what was the reason, for operators."""
        self._open: dict[int, Connection] = {}
        self._numbers = 0
        self._addresses: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        self._organisations: Counter[str] = Counter()
        self._handshakes: OrderedDict[int, Connection] = OrderedDict()
        self._rates: OrderedDict[str, TokenBucket] = OrderedDict()
        self._total_rate = TokenBucket(limits.total_rate, now)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def handshakes(self) -> int:
        return len(self._handshakes)

    def count_organisation(self, organisation: str) -> int:
        return self._organisations[organisation]

    def count_address(self, address: str) -> int:
        return self._addresses[address]

    # --- stages -------------------------------------------------------------------------------

    def on_connect(self, address: str, now: float) -> tuple[Connection | None, list[Connection]]:
        """A connection was opened: the taken one or None, and those to close for it. Before any TLS."""
        limits = self.limits
        refusal, displaced = self._check_connect(address, now)
        if refusal is not None:
            self.refused[refusal] += 1
            return None, []
        if not self._get_rate(address, now).take(1, now):
            self.refused[Refusal.ADDRESS_RATE] += 1
            return None, []
        if not self._total_rate.take(1, now):
            self.refused[Refusal.TOTAL_RATE] += 1
            return None, []
        self._numbers += 1
        connection = Connection(self._numbers, address, now)
        self._open[connection.number] = self._handshakes[connection.number] = connection
        self._addresses[address] += 1
        for victim in displaced:
            self.refused[Refusal.DISPLACED] += 1
            self.on_closed(victim)
        assert len(self._open) <= limits.connections
        return connection, displaced

    def _check_connect(self, address: str, now: float) -> tuple[Refusal | None, list[Connection]]:
        limits = self.limits
        if self._addresses[address] >= limits.per_address:
            return Refusal.ADDRESS_FULL, []
        waiting = Counter(connection.address for connection in self._handshakes.values())
        if waiting[address] >= limits.handshakes_per_address:
            return Refusal.HANDSHAKES_FULL, []
        if len(self._handshakes) >= limits.handshakes:
            worst, count = max(waiting.items(), key=lambda item: item[1])
            if count <= waiting[address] + 1:
                return Refusal.HANDSHAKES_FULL, []
            # The oldest: whoever is honest has long been done.
            return None, [next(c for c in self._handshakes.values() if c.address == worst)]
        if len(self._open) >= limits.connections:
            victim = self._find_victim(address)
            return (Refusal.FULL, []) if victim is None else (None, [victim])
        return None, []

    def _find_victim(self, address: str) -> Connection | None:
        """The connection that is missed least, of whoever has most and more than a newcomer would."""
        holders = Counter(self._get_holder(c) for c in self._open.values())
        most = 1 + holders[address]
        spare = [
            c
            for c in self._open.values()
            if not c.active
            and holders[self._get_holder(c)] > most
            and not (c.identity is not None and self._is_chosen(c.identity.node_id))
        ]
        return min(
            spare,
            key=lambda c: (-holders[self._get_holder(c)], c.requests > 0, c.since),
            default=None,
        )

    @staticmethod
    def _get_holder(connection: Connection) -> str:
        identity = connection.identity
        return connection.address if identity is None else "organisation " + identity.organisation

    def on_identified(self, connection: Connection, identity: PeerIdentity, now: float) -> Refusal | None:
        """The handshake is done and proved who it is; a refusal means that it is to be closed."""
        limits = self.limits
        refusal = None
        if connection.number not in self._open:
            return Refusal.DISPLACED  # counted when that happened
        if self._nodes[identity.node_id] >= limits.per_node:
            refusal = Refusal.NODE_FULL
        elif self._organisations[identity.organisation] >= limits.per_organisation:
            refusal = Refusal.ORGANISATION_FULL
        if refusal is not None:
            self.refused[refusal] += 1
            return refusal
        self._handshakes.pop(connection.number, None)
        connection.identity, connection.since = identity, now
        self._nodes[identity.node_id] += 1
        self._organisations[identity.organisation] += 1
        return None

    def on_request(self, connection: Connection) -> None:
        connection.requests += 1
        connection.active += 1

    def on_reply(self, connection: Connection, now: float) -> None:
        connection.active -= 1
        connection.since = now

    def on_closed(self, connection: Connection) -> None:
        """It is no more; harmless when that is known already."""
        if self._open.pop(connection.number, None) is None:
            return
        self._handshakes.pop(connection.number, None)
        _decrease(self._addresses, connection.address)
        if connection.identity is not None:
            _decrease(self._nodes, connection.identity.node_id)
            _decrease(self._organisations, connection.identity.organisation)

    def get_expired(self, now: float) -> list[tuple[Connection, Refusal]]:
        """Connections whose time is over, with the reason."""
        expired = []
        for connection in self._open.values():
            refusal = self._get_expiry(connection, now)
            if refusal is not None:
                self.refused[refusal] += 1
                expired.append((connection, refusal))
        return expired

    def _get_expiry(self, connection: Connection, now: float) -> Refusal | None:
        waited, limits = now - connection.since, self.limits
        if connection.identity is None:
            return Refusal.HANDSHAKE_TIME if waited > limits.handshake_s else None
        if connection.active:
            return None
        if not connection.requests:
            return Refusal.SILENT if waited > limits.first_request_s else None
        return Refusal.IDLE if waited > limits.idle_s else None

    def _get_rate(self, address: str, now: float) -> TokenBucket:
        bucket = self._rates.pop(address, None) or TokenBucket(self.limits.address_rate, now)
        self._rates[address] = bucket
        if len(self._rates) > self.limits.remembered_addresses:
            self._rates.popitem(last=False)
        return bucket


def _decrease(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
