"""Virtual time and the virtual network: messages that are late, lost, doubled, overtaken, cut off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import ParamSpec, Protocol

P = ParamSpec("P")

Event = tuple[int, int, Callable[..., None], tuple[object, ...]]

FAR = 2**62
"""Later than every event."""


class Engine:
    """Runs actions in order of their virtual time in milliseconds; of one time, in order of scheduling."""

    def __init__(self, start: int) -> None:
        self.now = start
        self.start = start
        self.queue: list[Event] = []
        self.count = 0
        """Actions scheduled so far."""

    def at(self, time: int, action: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Does it at this time, or now if that is past; arguments by position only."""
        if kwargs:
            raise TypeError("events take no keyword arguments")
        self.count += 1
        event: Event = (max(time, self.now), self.count, action, args)
        heappush(self.queue, event)

    def after(self, delay: int, action: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        self.at(self.now + delay, action, *args, **kwargs)

    def run_until(self, end: int) -> None:
        queue = self.queue
        while queue and queue[0][0] <= end:
            self.now, _, action, args = heappop(queue)
            action(*args)
        self.now = end


@dataclass(frozen=True, slots=True)
class Weather:
    """What links are like: delays lie between two bounds, most near the lower one, so messages overtake."""

    least_ms: int
    spread_ms: int
    loss: float
    double: float


GOOD = Weather(20, 180, 0.0, 0.0)
"""A network of which liveness may be asked."""


class Receiver(Protocol):
    index: int

    def receive(self, item: object, sender: int) -> None: ...


class Network:
    """Carries messages between nodes of one group; everything it decides comes from the generator."""

    def __init__(self, engine: Engine, random: Random) -> None:
        self.engine = engine
        self.random = random
        self.weather = GOOD
        self.nodes: list[Receiver] = []
        self.groups: list[int] = []
        """Which side of a partition each node is on."""
        self.messages = 0
        self.bytes = 0

    def set_groups(self, groups: Sequence[int]) -> None:
        self.groups = list(groups)

    def heal(self) -> None:
        self.groups = [0] * len(self.nodes)

    def is_linked(self, source: int, target: int) -> bool:
        return self.groups[source] == self.groups[target]

    def call(
        self, source: int, target: int, action: Callable[P, None], *args: P.args, **kw: P.kwargs
    ) -> None:
        """Does the action where the target is, if the message arrives."""
        self.messages += 1
        if not self.is_linked(source, target):
            return
        weather, random = self.weather, self.random.random
        if weather.loss and random() < weather.loss:
            return
        self.engine.after(weather.least_ms + int(random() ** 3 * weather.spread_ms), action, *args, **kw)

    def send(self, source: int, target: int, item: object) -> None:
        self.call(source, target, self.nodes[target].receive, item, source)

    def broadcast(self, source: int, item: object, size: int, targets: Sequence[int] | None = None) -> None:
        """To every node, or to those named."""
        engine, random, weather, groups = self.engine, self.random.random, self.weather, self.groups
        least, spread, loss, double = weather.least_ms, weather.spread_ms, weather.loss, weather.double
        now, group, queue, count = engine.now, groups[source], engine.queue, engine.count
        chosen = self.nodes if targets is None else [self.nodes[target] for target in targets]
        for node in chosen:
            if node.index == source:
                continue
            self.messages += 1
            self.bytes += size
            if groups[node.index] != group or (loss and random() < loss):
                continue
            count += 1
            heappush(queue, (now + least + int(random() ** 3 * spread), count, node.receive, (item, source)))
            if double and random() < double:
                count += 1
                heappush(
                    queue, (now + least + int(random() * 4 * spread), count, node.receive, (item, source))
                )
        engine.count = count
