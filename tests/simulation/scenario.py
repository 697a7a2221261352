"""What happens in a run, drawn from its seed alone: who is there, who lies, when the network fails."""

from dataclasses import dataclass
from random import Random

from consensus.params import ChainParams
from tests.simulation.byzantine import HABITS
from tests.simulation.clients import Change
from tests.simulation.engine import GOOD, Weather
from tests.simulation.tasks import TaskPlan

CHAOS_MS = 22_000
"""Until then the network fails and nodes crash."""
LIARS_MS = 44_000
"""Until then Byzantine nodes act, on a network that works."""
END_MS = 74_000
"""Within this much time after the last lie all honest nodes agree and all is final."""


@dataclass(frozen=True, slots=True)
class Outage:
    """A partition into the sides that `groups` names, or with `node` a crash, for a span of time."""

    start_ms: int
    end_ms: int
    groups: tuple[int, ...] = ()
    node: int = -1


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    params: ChainParams
    stakes: tuple[int, ...]
    observers: int
    """Nodes without stake, after the validators."""
    habits: dict[int, frozenset[str]]
    """Of Byzantine nodes, by index."""
    twins: tuple[int, ...]
    """Byzantine nodes of which a second copy with the same key runs, each of them honest by itself."""
    offsets: tuple[int, ...]
    weather: Weather
    outages: tuple[Outage, ...]
    tasks: tuple[TaskPlan, ...]
    changes: tuple[Change, ...]
    pay_ms: int
    is_attack: bool = False
    chaos_ms: int = CHAOS_MS
    liars_ms: int = LIARS_MS
    end_ms: int = END_MS

    @property
    def validators(self) -> int:
        return len(self.stakes)

    def count_byzantine_stake(self) -> int:
        return sum(self.stakes[index] for index in self.habits if index < self.validators)


def get_name(index: int) -> str:
    return f"n{index}"


def _draw_size(seed: int) -> int:
    """Most runs have 4 to 7 validators, one in 25 has 25, one in 250 has 100."""
    if seed % 250 == 249:
        return 100
    if seed % 25 == 24:
        return 25
    return 4 + seed % 4


def build_scenario(seed: int) -> Scenario:
    """With less than a third of stake in Byzantine hands, whatever the changes of set."""
    random = Random(f"scenario {seed}")
    size = _draw_size(seed)
    is_equal = random.random() < 0.4
    stakes = tuple(10 if is_equal else random.randrange(3, 20) for _ in range(size))
    byzantine = _choose_byzantine(random, stakes)
    observers = random.choice((0, 1, 1, 2)) if size <= 25 else 0
    nodes = size + observers
    habits = {index: _draw_habits(random) for index in byzantine}
    is_split_brain = bool(byzantine) and random.random() < 0.2
    twins = tuple(index for index in byzantine if is_split_brain or random.random() < 0.1)
    if is_split_brain:
        habits = {index: habits[index] if random.random() < 0.3 else frozenset() for index in byzantine}
        outages = _draw_split_brain(random, stakes, observers, byzantine, CHAOS_MS - 1_000)
    else:
        outages = _draw_outages(random, nodes, len(twins))
    params = ChainParams(
        min_block_ms=500,
        idle_ms=random.choice((1_000, 1_500)),
        slot_ms=random.choice((1_500, 2_000)),
        rank_ms=random.choice((1_000, 2_000, 4_000)),
        verdict_ms=random.choice((4_000, 8_000, 15_000)),
        evidence_ms=random.choice((15_000, 40_000, 300_000)),
        max_body_bytes=max(random.choice((6_000, 16_384, 65_536)), 1_000 * size),
        max_transactions=random.choice((4, 10, 40)),
    )
    is_bad = random.random() < 0.8
    weather = GOOD
    if is_bad:
        weather = Weather(
            20,
            random.choice((200, 600, 1_500, 3_000)),
            random.choice((0.0, 0.02, 0.1, 0.25)),
            random.choice((0.0, 0.05)),
        )
    count = 0 if size == 100 else random.choice((0, 1, 1, 1, 2))
    return Scenario(
        seed=seed,
        params=params,
        stakes=stakes,
        observers=observers,
        habits=habits,
        twins=twins,
        offsets=tuple(random.randrange(-400, 401) for _ in range(nodes)),
        weather=weather,
        outages=outages,
        tasks=tuple(_draw_task(random, number, nodes, byzantine) for number in range(count)),
        changes=_draw_changes(random, size, observers, byzantine),
        pay_ms=random.choice((1_500, 3_000, 6_000)),
    )


def _choose_byzantine(random: Random, stakes: tuple[int, ...]) -> list[int]:
    """Validators with less than a third of all stake, mostly as many as that allows."""
    if random.random() < 0.1:
        return []
    order = list(range(len(stakes)))
    random.shuffle(order)
    chosen: list[int] = []
    held = 0
    for index in order:
        if 3 * (held + stakes[index]) < sum(stakes) and (not chosen or random.random() < 0.9):
            chosen.append(index)
            held += stakes[index]
    return sorted(chosen)


def _draw_habits(random: Random) -> frozenset[str]:
    return frozenset(random.sample(HABITS, random.choice((1, 2, 3, 4))))


def _draw_outages(random: Random, nodes: int, copies: int) -> tuple[Outage, ...]:
    """Over by the end of chaos; the twins' second copies come after all nodes."""
    outages = []
    if random.random() < 0.6:
        start = random.randrange(2_000, CHAOS_MS // 2)
        sides = random.choice((2, 2, 3))
        groups = tuple(random.randrange(sides) for _ in range(nodes + copies))
        outages.append(Outage(start, random.randrange(start + 2_000, CHAOS_MS), groups=groups))
    for _ in range(random.choice((0, 0, 1, 1, 2, 3))):
        start = random.randrange(1_000, CHAOS_MS - 3_000)
        end = random.randrange(start + 500, CHAOS_MS)
        outages.append(Outage(start, end, node=random.randrange(nodes)))
    return tuple(outages)


def _draw_split_brain(
    random: Random, stakes: tuple[int, ...], observers: int, byzantine: list[int], until: int
) -> tuple[Outage, ...]:
    """The honest are split evenly, and every liar runs a copy of itself on either side."""
    honest = [index for index in range(len(stakes)) if index not in byzantine]
    _, group_of = _split_evenly(honest, stakes)
    groups = [group_of.get(index, 0) for index in range(len(stakes))]
    groups += [random.randrange(2) for _ in range(observers)]
    nodes = len(groups)
    groups += [1 for _ in byzantine]
    start = random.choice((0, random.randrange(0, 8_000)))
    outages = [Outage(start, until, groups=tuple(groups))]
    if start:
        # The second copies wake up when the partition begins.
        outages += [Outage(0, start + 1, node=nodes + place) for place in range(len(byzantine))]
    return tuple(outages)


def _draw_task(random: Random, number: int, nodes: int, byzantine: list[int]) -> TaskPlan:
    losses = [900]
    for _ in range(random.choice((1, 2, 3))):
        losses.append(random.randrange(10, max(11, losses[-1])))
    rungs = random.choice((1, 2, 3))
    targets = sorted(random.sample(range(10, 901), rungs), reverse=True)
    if random.random() < 0.6:
        targets[-1] = max(targets[-1], min(losses))
        targets = sorted(set(targets), reverse=True)
    names = [get_name(index) for index in range(nodes)]
    miners = tuple(random.sample(names, min(len(names), random.choice((1, 2, 3)))))
    bad = [get_name(index) for index in byzantine]
    given: tuple[int, ...] | None = None
    if random.random() < 0.3:
        given = tuple(sorted(random.sample(range(nodes), random.randrange(nodes))))
    return TaskPlan(
        number=number,
        start_ms=random.randrange(500, 8_000),
        pace_ms=random.choice((300, 800, 1_500)),
        span_ms=random.choice((15_000, 30_000, 45_000)),
        mode=random.choice(("honest", "honest", "honest", "vanish", "equivocate", "lie", "late")),
        at=random.randrange(0, 2 * len(losses)),
        losses=tuple(losses),
        targets=tuple(targets),
        rewards=tuple(random.randrange(0, 1_000) for _ in targets),
        fee=random.choice((0, 7, 31)),
        bond=random.choice((0, 500)),
        miners=miners,
        fakers=frozenset(name for name in bad if random.random() < 0.2),
        liked=random.choice((1.0, 1.0, 0.8, 0.5, 0.0)),
        given=given,
    )


def _draw_changes(random: Random, size: int, observers: int, byzantine: list[int]) -> tuple[Change, ...]:
    changes = []
    honest = [index for index in range(size) if index not in byzantine]
    for _ in range(random.choice((0, 0, 1, 2, 3))):
        kind = random.choice(("join", "leave", "more", "less", "grant"))
        if kind == "join" and not observers:
            kind = "more"
        index = size + random.randrange(observers) if kind == "join" else random.choice(honest)
        if kind == "leave" and byzantine and random.random() < 0.3:
            index = random.choice(byzantine)
        stake = random.randrange(1, 15)
        changes.append(Change(random.randrange(1_000, LIARS_MS - 8_000), kind, get_name(index), stake))
    return tuple(changes)


def _split_evenly(order: list[int], stakes: tuple[int, ...]) -> tuple[list[int], dict[int, int]]:
    """Stake of two sides, and each one's side."""
    sides = [0, 0]
    group_of: dict[int, int] = {}
    for index in sorted(order, key=lambda item: -stakes[item]):
        side = sides.index(min(sides))
        group_of[index] = side
        sides[side] += stakes[index]
    return sides, group_of


def build_attack(seed: int) -> Scenario:
    """A third of stake or more runs two copies of itself, one on each side of a partition of the honest."""
    random = Random(f"attack {seed}")
    size = 4 + seed % 4
    stakes = tuple(random.randrange(8, 13) for _ in range(size))
    total = sum(stakes)
    order = list(range(size))
    random.shuffle(order)
    chosen: list[int] = []
    while 3 * sum(stakes[index] for index in chosen) < total:
        chosen.append(order.pop())
    sides, _ = _split_evenly(order, stakes)
    while len(order) > 2:
        held = sum(stakes[index] for index in chosen)
        is_enough = 3 * (min(sides) + held) >= 2 * total
        if 3 * (held + stakes[order[-1]]) > 2 * total or (is_enough and random.random() < 0.8):
            break
        chosen.append(order.pop())
        sides, _ = _split_evenly(order, stakes)
    observers = random.choice((0, 1))
    nodes = size + observers
    chosen = sorted(chosen)
    outages = _draw_split_brain(random, stakes, observers, chosen, 26_000)
    changes: tuple[Change, ...] = ()
    if random.random() < 0.3:
        kind, index = random.choice((("leave", order[0]), ("more", order[0]), ("less", order[-1])))
        changes = (Change(random.randrange(500, 12_000), kind, get_name(index), 2),)
    return Scenario(
        seed=seed,
        params=ChainParams(idle_ms=1_000, slot_ms=1_500, max_body_bytes=65_536, max_transactions=40),
        stakes=stakes,
        observers=observers,
        habits={index: frozenset() for index in chosen},
        twins=tuple(chosen),
        offsets=tuple(random.randrange(-200, 201) for _ in range(nodes)),
        weather=Weather(20, random.choice((180, 600)), random.choice((0.0, 0.05)), 0.0),
        outages=outages,
        tasks=(_draw_task(random, 0, nodes, chosen),) if random.random() < 0.3 else (),
        changes=changes,
        pay_ms=1_500,
        is_attack=True,
        chaos_ms=26_000,
        liars_ms=26_000,
        end_ms=40_000,
    )
