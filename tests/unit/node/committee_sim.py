"""Members of a committee on one heap of events: seeded delays, drops and duplicates, crashes, liars.

Everything but the lattice is real: signatures, boxes, the codec, pools that relay what they accept, records.
The opening itself is Shamir's scheme over two primes, with masks of the pairs and noise from a PRF.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain
from consensus.gossip_rules import Outcome
from consensus.types import Address, Hash32, Millis, Signature
from node.committee.boxes import get_public_key
from node.committee.choice import Suspects
from node.committee.member import MemberSealer
from node.committee.messages import (
    Content,
    LossContent,
    OpeningKind,
    RoundMessage,
    encode_message,
    sign_message,
)
from node.committee.pool import Committee, CommitteePool
from node.committee.ports import Effects, Opened, PartWanted, SumWanted
from node.committee.records import Records, decode_record, encode_record, get_name
from node.committee.rounds import Round
from node.committee.tally import Evidence, Refused
from node.committee.terms import Terms, Waits, compute_opening_name

CHAIN, CEREMONY, TASK = (Hash32(bytes([number]) * 32) for number in (1, 2, 3))
PRIMES = (1_152_921_504_606_830_593, 1_152_921_504_606_748_673)
MESSAGE = 123_456_789
NOISE = 1_000
LIMIT = 2**32
STEP = 7
WAITS = Waits(lead=5_000, settle=200, retry=15_000, repeat=1_000)
CONTENT = LossContent(Hash32(bytes([4]) * 32), Hash32(bytes([5]) * 32), Hash32(bytes([6]) * 32))
Values = tuple[tuple[int, ...], ...]


def build_keys(count: int) -> list[SigningKey]:
    keys = [SigningKey(bytes([number + 1]) * 32) for number in range(count)]
    return sorted(keys, key=lambda key: key.address)


def build_terms(count: int, threshold: int, step: int = STEP) -> Terms:
    members = tuple(key.address for key in build_keys(count))
    return Terms(CHAIN, CEREMONY, TASK, step, OpeningKind.LOSS, members, threshold, (PRIMES,), WAITS)


def _draw(label: bytes, prime: int) -> int:
    return int.from_bytes(hash_domain("test", label + prime.to_bytes(8, "big")), "big") % prime


def compute_part(terms: Terms, place: int, wanted: PartWanted) -> Values:
    """Lagrange factor times share, noise after it, masks that cancel."""
    opening = compute_opening_name(terms.chain_id, terms.ceremony, wanted.question)
    label = opening + bytes([wanted.attempt, *wanted.subset])
    noise = _draw(b"noise" + bytes([place]) + label, 2 * NOISE + 1) - NOISE
    row = []
    for prime in PRIMES:
        factor = 1
        for other in wanted.subset:
            if other != place:
                factor = factor * (1 + other) * pow(other - place, -1, prime) % prime
        polynomial = [MESSAGE, *(_draw(b"share%d" % degree, prime) for degree in range(1, terms.threshold))]
        share = sum(c * (1 + place) ** degree for degree, c in enumerate(polynomial))
        mask = 0
        for other in wanted.subset:
            if other != place:
                pair = _draw(b"mask" + bytes(sorted((place, other))) + label, prime)
                mask += pair if place < other else -pair
        row.append((factor * share + noise + mask) % prime)
    return (tuple(row),)


def compute_sum(wanted: SumWanted) -> tuple[int, ...] | None:
    residues = [sum(part[0][i] for part in wanted.parts) % prime for i, prime in enumerate(PRIMES)]
    p, q = PRIMES
    value = residues[0] + p * ((residues[1] - residues[0]) * pow(p, -1, q) % q)
    value = value - p * q if value > p * q // 2 else value
    return (value,) if abs(value) <= LIMIT else None


@dataclass
class SimJudge:
    budget: int = 10
    accept: bool = True

    def check_content(self, content: Content) -> None:
        return None

    def has_budget(self, kind: OpeningKind, attempt: int) -> bool:
        return attempt <= self.budget

    def compute_opened(self, content: Content, attempt: int, numbers: tuple[int, ...]) -> Hash32:
        assert isinstance(content, LossContent)
        named = (
            encode(content) + bytes([attempt]) + b"".join(n.to_bytes(32, "big", signed=True) for n in numbers)
        )
        return hash_domain("opening", named)


@dataclass
class SimView:
    committee: Committee

    def get_committee(self, task: Hash32) -> Committee | None:
        return self.committee if task == TASK else None

    def may_mine(self, account: Address) -> bool:
        return True

    def has_batch(self, task: Hash32, step: int, batch: int) -> bool:
        return batch < 4


@dataclass
class Node:
    """One member: what is on its disk outlives its process."""

    sim: "Sim"
    place: int
    key: SigningKey
    disk: dict[bytes, bytes] = field(default_factory=dict)
    round: Round | None = None
    life: int = 0
    content: LossContent = CONTENT
    wrong: bool | tuple[int, ...] = False
    """In all attempts, or in these."""
    crash: Callable[[str, Effects], bool] | None = None
    """Asked before an output ("before") and after its records are stored ("stored")."""
    refused: list[Refused] = field(default_factory=list)
    closed: str | None = None
    sent: list[RoundMessage] = field(default_factory=list)
    pool: CommitteePool = field(default_factory=CommitteePool)
    suspects: Suspects = field(default_factory=Suspects)

    def start(self) -> None:
        terms = self.sim.terms
        sealer = MemberSealer(terms, self.key, self.sim.privates[self.place], self.sim.publics)
        records = Records(decode_record(data) for data in self.disk.values())
        self.life += 1
        self.pool = CommitteePool()
        self.round = Round(terms, self.key, sealer, self.sim.judge, self.suspects, records)
        self.sim.at(self.sim.random.randrange(500), self._tick, self.life)

    def check(self) -> None:
        if self.round is not None:
            self.apply(self.round.on_checked(self.sim.now, self.content))

    def stop(self) -> None:
        self.round = None

    def _tick(self, life: int) -> None:
        if self.round is not None and life == self.life:
            self.apply(self.round.on_tick(self.sim.now))
            self.sim.at(50, self._tick, life)

    def apply(self, effects: Effects) -> None:
        if self.crash is not None and self.crash("before", effects):
            return self.stop()
        for record in effects.records:
            name = get_name(record)
            assert name not in self.disk, "a record is written once"
            self.disk[name] = encode_record(record)
        if self.crash is not None and self.crash("stored", effects):
            return self.stop()
        if effects.refused is not None:
            self.refused.append(effects.refused)
        self.closed = effects.closed or self.closed
        for message in effects.messages:
            self.sent.append(message)
            self.sim.send(self, encode_message(message))
        for job in effects.jobs:
            self.sim.at(self.sim.random.randrange(1, 300), self._compute, self.life, job)
        return None

    def _compute(self, life: int, job: PartWanted | SumWanted) -> None:
        if self.round is None or life != self.life:
            return
        if isinstance(job, SumWanted):
            self.apply(self.round.on_sum(self.sim.now, job.proposal, compute_sum(job)))
            return
        values = compute_part(self.sim.terms, self.place, job)
        if self.wrong is True or (self.wrong and job.attempt in self.wrong):
            values = (tuple(_draw(b"wrong", prime) for prime in PRIMES),)
        self.apply(self.round.on_part(self.sim.now, job.proposal, values))

    def hear(self, data: bytes) -> None:
        """As gossip does: judged, and relayed if it is news."""
        if self.round is None:
            return
        judged = self.pool.take(data, CHAIN, self.sim.view)
        if judged.outcome is Outcome.REJECT:
            self.sim.rejected += 1
            return
        if judged.outcome is Outcome.ACCEPT and judged.message is not None:
            self.sim.send(self, data)
            assert not hasattr(judged.message, "miner")
            self.apply(self.round.on_message(self.sim.now, judged.message))  # type: ignore[arg-type]


class Sim:
    def __init__(
        self,
        count: int,
        threshold: int,
        seed: int = 0,
        *,
        drop: float = 0.0,
        twice: float = 0.0,
        step: int = STEP,
    ) -> None:
        self.random = random.Random(seed)
        self.terms = build_terms(count, threshold, step)
        self.judge = SimJudge()
        self.now = Millis(0)
        self.drop, self.twice, self.delay = drop, twice, 100
        self.rejected = 0
        self.expected = count
        self.privates = [bytes([100 + place]) * 32 for place in range(count)]
        self.publics = [get_public_key(private) for private in self.privates]
        self.view = SimView(Committee(CEREMONY, self.terms.members, step))
        self.nodes = [Node(self, place, key) for place, key in enumerate(build_keys(count))]
        self._events: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = itertools.count()
        self.cut: Callable[[Node, Node, bytes], bool] = lambda sender, receiver, data: False

    @property
    def leads(self) -> list[Node]:
        """By rank."""
        return [self.nodes[self.terms.members.index(member)] for member in self.terms.leads]

    def at(self, delay: int, call: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._count), call, arguments))

    def send(self, sender: Node, data: bytes) -> None:
        for other in self.nodes:
            if other is sender or self.cut(sender, other, data):
                continue
            copies = 2 if self.random.random() < self.twice else 1
            for _ in range(copies):
                if self.random.random() >= self.drop:
                    self.at(self.random.randrange(1, self.delay), other.hear, data)

    def start(self, *, dead: tuple[Node, ...] = (), ordered: bool = False) -> None:
        """All but the dead; ready in any order, or by rank, so that the first ranks are the subset."""
        self.expected = len(self.nodes) - len(dead)
        for rank, node in enumerate(self.leads):
            if node not in dead:
                node.start()
                self.at(150 * rank + 10 if ordered else self.random.randrange(2_000), node.check)

    def run(self, until_ms: int = 120_000) -> None:
        """Until that much later, or until everybody who was started has the opening."""
        end = self.now + until_ms
        while self._events and self._events[0][0] <= end:
            when, _, call, arguments = heapq.heappop(self._events)
            self.now = Millis(when)
            call(*arguments)
            if len(self.get_opened()) == self.expected:
                return
        self.now = Millis(end)

    def get_opened(self) -> list[Opened]:
        return [node.round.opened for node in self.nodes if node.round is not None and node.round.opened]

    def get_evidence(self) -> list[Evidence]:
        return [item for node in self.nodes if node.round for item in node.round.tally.evidence.values()]

    def check(self, *, alive: int) -> Opened:
        """All that live have one and the same opening, signed by enough; returns it."""
        found = self.get_opened()
        assert len(found) == alive, [node.round and node.round.closed for node in self.nodes]
        first = found[0]
        assert {(item.hash, item.attempt, item.numbers, item.content) for item in found} == {
            (first.hash, first.attempt, first.numbers, first.content)
        }
        assert all(len(item.cosignatures) >= self.terms.threshold for item in found)
        assert abs(first.numbers[0] - MESSAGE) <= self.terms.threshold * NOISE
        return first

    def sign(self, node: Node, message: RoundMessage) -> bytes:
        return encode_message(sign_message(node.key, CHAIN, replace(message, signature=Signature(b""))))
