"""Open files: the limit raised, shared out before anything listens, and watched.

The ledger and the peers must never wait for a descriptor, so each kind has a share and the APIs get the rest:
they shed connections where a flood would take what others need. Meeting the limit costs whoever meets it one
connection or one file; this keeps it from being the ledger.
"""

import errno
import logging
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass

from node.clock import Clock
from node.config import NodeConfig

logger = logging.getLogger(__name__)

MOST = 1_048_576
"""More is of no use; some systems say that there is no limit."""
LEDGER = 64
"""The database maps its tables and closes them; this is for its log, and tables being opened."""
FIXED = 96
"""Logs, the event loop, files that requests read at once, the runtime itself."""
PER_WORKER = 12
"""Pipes of a worker process, in each of its pools."""
PER_LINK = 4
"""Connections to a peer that is dialled, usually fewer."""
LEAST_PEERS = 32
LEAST_API = 32
MOST_API = 16_384
OPERATOR = 32
"""Connections of the operator's listener."""
LOOK_S = 5.0
REPEAT_S = 60.0
NEARLY_FULL = 0.9


class TooFewDescriptors(OSError):
    """The node could not run within the limit of open files."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How the limit is shared out."""

    limit: int
    wanted: int
    """What the settings may need at once."""
    peer_connections: int
    """At the peer listener."""
    api_connections: int
    """At the public listener, event streams included."""
    backlog: int
    """Connections that a listener of the API may accept in one go."""


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns what may be used."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY:
        return MOST
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return min(soft, MOST)


def compute_fixed(config: NodeConfig) -> int:
    """What is needed whatever the load."""
    pools = 3  # mining or custody, verifying, one more
    dialled = PER_LINK * min(config.peer.max_peers, len(config.peer.peers) + config.peer.outbound)
    return FIXED + LEDGER + OPERATOR + PER_WORKER * (config.workers + pools) + dialled


def plan(config: NodeConfig, limit: int) -> Budget:
    """Shares of the limit, logged where they are less than the settings ask for.

    Raises: TooFewDescriptors with the remedy.
    """
    fixed = compute_fixed(config)
    streams = config.api.max_event_streams
    wanted = fixed + config.peer.max_connections + 2 * streams
    least = fixed + LEAST_PEERS + LEAST_API
    if limit < least:
        raise TooFewDescriptors(
            f"{limit} open files are allowed, this configuration needs {least} at the least and may use "
            f"{wanted}: raise the limit (LimitNOFILE= of its service, `ulimit -n`, --ulimit nofile of a "
            "container), or set fewer workers and peer.max_peers"
        )
    rest = limit - fixed
    peers = min(config.peer.max_connections, max(LEAST_PEERS, rest // 2))
    api = rest - peers
    backlog = max(4, min(1_024, api // 4))
    connections = min(MOST_API, api - backlog)
    if peers < config.peer.max_connections or connections < streams:
        logger.warning(
            "descriptors: %d open files are allowed, the settings may use %d: %d connections of peers and %d "
            "of the API are taken. Raise the limit (LimitNOFILE=, ulimit -n), or lower peer.max_connections "
            "and api.max_event_streams",
            limit,
            wanted,
            peers,
            connections,
        )
    return Budget(limit, wanted, peers, connections, backlog)


def is_exhaustion(error: BaseException) -> bool:
    """Whether a call failed for want of descriptors, the process's or the machine's."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def count_open() -> int:
    """Descriptors that this process holds; -1 if that can't be read, as for want of one."""
    try:
        return len(os.listdir("/proc/self/fd")) - 1
    except OSError:
        return -1


class DescriptorWatch:
    """Says at most once a minute that descriptors run out, and how many connections were shed."""

    def __init__(self, clock: Clock, limit: int, get_shed: Callable[[], int]) -> None:
        self._clock = clock
        self._limit = limit
        self._get_shed = get_shed
        self._shed = 0
        self._told_at: float | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep(LOOK_S)
            self.look(count_open())

    def look(self, used: int) -> None:
        """`used`: descriptors held, -1 if there is none left to count them with."""
        shed, now = self._get_shed(), self._clock.monotonic()
        is_full = used < 0 or used >= NEARLY_FULL * self._limit
        if not is_full and shed == self._shed:
            return
        if self._told_at is not None and now < self._told_at + REPEAT_S:
            return
        self._told_at = now
        logger.warning(
            "descriptors: %s of %d are in use; %d connections of the API were shed since this was last said. "
            "Blocks and peers go on; raise the limit (LimitNOFILE=, ulimit -n) if this is no attack",
            "all" if used < 0 else used,
            self._limit,
            shed - self._shed,
        )
        self._shed = shed
