"""Objects on their way in: pulled from peers, kept in bounded lanes, handed to the node one at a time."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from consensus.gossip_rules import Outcome
from consensus.types import Hash32
from node.clock import Clock
from node.gossip.limits import NetworkLimits
from node.gossip.messages import Kind
from node.gossip.peers import Action, Gossip, Pull
from node.gossip.queue import Deliver, Lane, LaneName, get_lane
from node.gossip.server import Handlers
from node.gossip.transport import TransportError

logger = logging.getLogger(__name__)

BACKLOG_BYTES = 64 * 1024 * 1024
"""Objects waiting to be judged; beyond it nothing more is pulled."""

RequestObjects = Callable[[str, Kind, tuple[Hash32, ...]], Awaitable[Sequence[bytes | None]]]


class ObjectIntake:
    """Runs pulls and judgements; what follows from them goes to `perform`."""

    def __init__(
        self,
        gossip: Gossip,
        handlers: Handlers,
        limits: NetworkLimits,
        clock: Clock,
        request_objects: RequestObjects,
        perform: Callable[[Sequence[Action]], None],
    ) -> None:
        self._gossip = gossip
        self._handlers = handlers
        self._limits = limits
        self._clock = clock
        self._request_objects = request_objects
        self._perform = perform
        self._lanes = {name: Lane(limits.lanes[name], self._get_score) for name in LaneName}
        self._filled = {name: asyncio.Event() for name in LaneName}
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._pulling: dict[str, asyncio.Semaphore] = {}
        self._group: asyncio.TaskGroup | None = None
        self.outcomes: Counter[tuple[Kind, str]] = Counter()
        """Objects by what became of them: accept, ignore, reject, or dropped for others."""

    def start(self, group: asyncio.TaskGroup) -> None:
        self._group = group
        for name in LaneName:
            group.create_task(self._judge_lane(name), name=f"judge {name}")

    def stop(self) -> None:
        """Begin nothing any more; the group's end ends the rest."""
        self._group = None

    def _get_score(self, node_id: str) -> float:
        return self._gossip.get_score(node_id, self._clock.monotonic())

    def _update_room(self) -> None:
        if sum(lane.size for lane in self._lanes.values()) > BACKLOG_BYTES:
            self._has_room.clear()
        else:
            self._has_room.set()

    def deliver(self, delivered: Deliver) -> None:
        """Have an object judged, in its turn."""
        name = get_lane(delivered.kind)
        for dropped in self._lanes[name].put(delivered):
            self.outcomes[dropped.kind, "dropped"] += 1
            self._gossip.on_dropped(dropped, self._clock.monotonic())
        self._update_room()
        self._filled[name].set()

    def pull(self, pull: Pull) -> None:
        if self._group is not None:
            self._group.create_task(self._pull(pull))

    async def _pull(self, pull: Pull) -> None:
        limit = self._pulling.setdefault(pull.peer, asyncio.Semaphore(self._limits.pulls_per_peer))
        async with limit:
            await self._has_room.wait()
            try:
                objects = await self._request_objects(pull.peer, pull.kind, pull.ids)
            except TransportError as error:
                logger.debug("pulling from %s failed: %s", pull.peer, error)
                self._perform(self._gossip.on_pull_failed(pull, self._clock.monotonic()))
                return
        self._perform(self._gossip.on_pulled(pull, objects, self._clock.monotonic()))

    async def _judge_lane(self, name: LaneName) -> None:
        """Hand a lane's objects to the node, one at a time."""
        lane, filled = self._lanes[name], self._filled[name]
        while True:
            delivered = lane.take()
            if delivered is None:
                filled.clear()
                await filled.wait()
                continue
            self._update_room()
            await self._judge(delivered)
            # A judgement may not have waited for anything: let requests be answered between two of them.
            await asyncio.sleep(0)

    async def _judge(self, delivered: Deliver) -> None:
        kind, object_id = delivered.kind, delivered.id
        try:
            outcome = await self._handlers.on_object(kind, object_id, delivered.data, delivered.peer)
        except Exception:
            # Whatever a peer's bytes provoke must not end the network.
            logger.exception("judging %s %s failed", kind, object_id.hex())
            outcome = Outcome.IGNORE
        self.outcomes[kind, outcome.name.lower()] += 1
        if outcome is Outcome.REJECT:
            logger.info("%s sent a bad %s %s", delivered.peer, kind, object_id.hex()[:12])
        is_held = outcome is Outcome.ACCEPT and self._handlers.has_object(kind, object_id)
        now = self._clock.monotonic()
        self._perform(self._gossip.on_outcome(delivered, outcome, is_held, now))
