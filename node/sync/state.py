"""A state tree from several peers at once: every node proves itself against the node that names it."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from consensus.crypto import hash_domain
from consensus.tree import TreeError, get_children
from consensus.types import ZERO_HASH, Hash32
from node.clock import Clock
from node.gossip.limits import Fault
from node.ledger.chainstore import Ledger
from node.ledger.snapshot import put_nodes
from node.sync.crew import Crew, CrewLimits
from node.sync.ports import Lacking, Poisoned, SyncNetwork

logger = logging.getLogger(__name__)

NODES_A_JOB = 64
JOBS_AHEAD = 64
"""Jobs submitted; what else is missing waits in a list of hashes."""

Nodes = tuple[Mapping[Hash32, bytes], tuple[Hash32, ...]]
"""Accepted nodes by hash, and hashes that are still wanted."""


def verify_nodes(network: SyncNetwork, peer: str, wanted: Sequence[Hash32], given: Sequence[bytes]) -> Nodes:
    """What a peer gave for the wanted nodes, each checked against its parent's word.

    Raises: Poisoned after reporting the peer; Lacking if it gave nothing.
    """
    missing = dict.fromkeys(wanted)
    accepted: dict[Hash32, bytes] = {}
    for data in given:
        node = hash_domain("tree", data)
        if node not in missing:
            network.report(peer, Fault.POISONED, f"a state node that nothing names: {node.hex()}")
            raise Poisoned("a state node that nothing names")
        del missing[node]
        try:
            children = get_children(data)
        except TreeError as error:
            network.report(peer, Fault.POISONED, f"state node {node.hex()}: {error}")
            raise Poisoned(str(error)) from error
        accepted[node] = data
        missing.update(dict.fromkeys(child for child in children if child not in accepted))
    if not accepted:
        raise Lacking(f"{peer} has none of the state nodes")
    return accepted, tuple(missing)


def find_missing(ledger: Ledger, roots: Sequence[Hash32]) -> list[Hash32]:
    """The highest nodes below (and among) the roots that the ledger lacks."""
    missing: list[Hash32] = []
    stack = list(roots)
    while stack:
        node = stack.pop()
        data = ledger.get_node(node)
        if data is None:
            missing.append(node)
        else:
            stack += get_children(data)
    return missing


class StateFetcher:
    """Fetches what a state tree lacks into the ledger; begun again after a crash, it goes on where it was."""

    def __init__(
        self,
        network: SyncNetwork,
        clock: Clock,
        ledger: Ledger,
        get_peers: Callable[[], Collection[str]],
        limits: CrewLimits | None = None,
    ) -> None:
        self._network = network
        self._ledger = ledger
        self._crew: Crew[tuple[Hash32, ...], Nodes] = Crew(clock, get_peers, self._fetch, limits)
        self.fetched = 0
        """Nodes that came."""

    async def __aenter__(self) -> "StateFetcher":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._crew.__aexit__(*error)

    @property
    def busy(self) -> tuple[str, ...]:
        return self._crew.busy

    async def fetch(self, root: Hash32) -> None:
        """Return once the whole tree is stored. Raises: SyncStopped."""
        missing = [] if root == ZERO_HASH else find_missing(self._ledger, [root])
        while missing or self._crew.open_jobs:
            while missing and self._crew.open_jobs < JOBS_AHEAD:
                # The deepest first: the list of what is wanted stays short.
                job = tuple(missing[-NODES_A_JOB:])
                del missing[-NODES_A_JOB:]
                self._crew.submit(job)
            _, _, (accepted, wanted) = await self._crew.get_result()
            put_nodes(self._ledger, accepted)
            self.fetched += len(accepted)
            missing += find_missing(self._ledger, wanted)

    async def _fetch(self, peer: str, job: tuple[Hash32, ...]) -> Nodes:
        reply = await self._network.request_state(peer, job)
        return verify_nodes(self._network, peer, job, reply.nodes)
