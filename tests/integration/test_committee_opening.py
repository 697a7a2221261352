"""Members with real shares of a ceremony's key open the gradient and the loss of a real batch, by workers."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import pytest

from consensus.claims import sign_claim, sign_sealed_claim
from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain
from consensus.task import BlobRef, Claim, Cosignature, SealedClaim
from consensus.types import Hash32, Millis
from he.context import PublicContext
from he.gradient import compute_gradient_bundle, compute_loss_ciphertext
from he.keys import PublicKey, RelinKeys
from he.packing import encrypt_batch
from he.params import get_params
from he.plan import build_plan
from node.committee.boxes import get_public_key
from node.committee.choice import Suspects
from node.committee.confirmation import Confirmations, Stakes, check_gradient
from node.committee.member import MemberSealer, OpeningMember, must_recompute
from node.committee.messages import (
    Content,
    GradientContent,
    LossContent,
    OpeningKind,
    RoundMessage,
    TellRoot,
    decode_message,
    encode_message,
    open_told,
    tell_root,
    verify_message,
)
from node.committee.ports import Opened, PartWanted, SumWanted
from node.committee.terms import Terms, Waits
from node.work import WorkerPool
from tests.he.ceremony import Ceremony
from tests.he.reference import compute_gradients, compute_losses, compute_target, make_problem, make_weights
from workloads.base import WorkloadError
from workloads.box import compute_gradient_bound, compute_loss_bound
from workloads.committee_opener import (
    CommitteeOpener,
    OpeningJob,
    SumJob,
    get_moduli,
    read_question,
    run_sum,
)
from workloads.fusion import FusionSpec, FusionTraining

PRESET = "test-4096-60x5"
WORKLOAD = FusionTraining(allow_insecure=True)
SPEC = FusionSpec()
PATCHES = 1500
CHAIN, TASK, PREVIOUS, DIGEST = (Hash32(bytes([number]) * 32) for number in range(1, 5))
NOISE, BITS = (1, 1000), 20
STEP = 3


@dataclass(frozen=True, slots=True)
class OpenedContent:
    """As the chain will have it: a gradient with everything that members sign."""

    content: GradientContent
    numbers: tuple[int, ...]
    attempt: int
    cosignatures: tuple[Cosignature, ...]


@dataclass(frozen=True, slots=True)
class OpenedLoss:
    content: LossContent
    numbers: tuple[int, ...]
    attempt: int


class World:
    """A finished ceremony of 2 of 3, and one batch under its key."""

    def __init__(self, folder: Path) -> None:
        self.ceremony = Ceremony(folder / "ceremony", PRESET, 3, 2)
        finished = self.ceremony.finish()[0]
        self.params = get_params(PRESET, allow_insecure=True)
        circuit = SPEC.circuit
        public = PublicContext(
            self.params,
            PublicKey.decode(self.params, finished.public_key.read_bytes()),
            RelinKeys.decode(self.params, finished.relin_keys.read_bytes()),
        )
        self.problem = make_problem(circuit, PATCHES)
        self.weights = make_weights(self.params, circuit)
        target, constant = compute_target(circuit, self.problem)
        batch = encrypt_batch(public, circuit, self.problem.inputs, target, constant)
        self.bundle, self.loss = folder / "bundle", folder / "loss"
        self.bundle.write_bytes(compute_gradient_bundle(public, circuit, self.weights, batch))
        self.loss.write_bytes(compute_loss_ciphertext(public, circuit, self.weights, batch))
        self.keys = sorted((SigningKey(bytes([n + 1]) * 32) for n in range(3)), key=lambda key: key.address)
        self.members = tuple(key.address for key in self.keys)
        self.privates = [bytes([50 + place]) * 32 for place in range(3)]
        self.publics = [get_public_key(private) for private in self.privates]
        self.name = Hash32(self.ceremony.name)

    def get_opener(self, place: int) -> CommitteeOpener:
        return CommitteeOpener(self.ceremony.get_folder(place), WORKLOAD)

    def build_terms(self, kind: OpeningKind) -> Terms:
        moduli = get_moduli(kind.value, PRESET, SPEC.encode(), WORKLOAD)
        waits = Waits(lead=5_000, settle=200, retry=15_000, repeat=1_000)
        return Terms(CHAIN, self.name, TASK, STEP, kind, self.members, 2, moduli, waits)

    def build_job(
        self, kind: str, opening: bytes = bytes(32), subset: tuple[int, ...] = (0, 1), attempt: int = 1
    ) -> OpeningJob:
        file = self.bundle if kind == "gradient" else self.loss
        return OpeningJob(
            kind, PRESET, SPEC.encode(), self.weights, (file,), PATCHES, NOISE, BITS, subset, attempt, opening
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("committee"))


@dataclass
class PoolWorkers:
    """Worker processes: paths go in, residues come out."""

    world: World
    place: int
    pool: WorkerPool

    async def compute_part(self, wanted: PartWanted, opening: Hash32) -> tuple[tuple[int, ...], ...]:
        job = self._build(wanted, opening)
        return await self.pool.run(self.world.get_opener(self.place).run_part, job)

    async def compute_sum(self, wanted: SumWanted) -> tuple[int, ...] | None:
        return await self.pool.run(run_sum, SumJob(self._build(wanted, bytes(32)), wanted.parts), WORKLOAD)

    def _build(self, wanted: PartWanted | SumWanted, opening: bytes) -> OpeningJob:
        kind = "gradient" if isinstance(wanted.content, GradientContent) else "loss"
        return self.world.build_job(kind, opening, wanted.subset, wanted.attempt)


@dataclass
class Judge:
    bundles: Mapping[int, BlobRef]
    stakes: Stakes

    def check_content(self, content: Content) -> None:
        if isinstance(content, GradientContent):
            check_gradient(content, CHAIN, TASK, STEP, self.bundles, self.stakes)

    def has_budget(self, kind: OpeningKind, attempt: int) -> bool:
        return attempt <= 2

    def compute_opened(self, content: Content, attempt: int, numbers: tuple[int, ...]) -> Hash32:
        if isinstance(content, GradientContent):
            return hash_domain("opening", encode(OpenedContent(content, numbers, attempt, ())))
        return hash_domain("opening", encode(OpenedLoss(content, numbers, attempt)))


@dataclass
class MemoryRecords:
    rows: dict[bytes, bytes] = field(default_factory=dict)

    def put_records(self, records: Mapping[bytes, bytes], deletes: Sequence[bytes] = ()) -> None:
        self.rows.update(records)
        for key in deletes:
            del self.rows[key]

    def iterate_records(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from [(key, value) for key, value in sorted(self.rows.items()) if key.startswith(prefix)]


async def open_all(
    world: World, kind: OpeningKind, contents: Mapping[int, Content], judge: Judge, pool: WorkerPool
) -> dict[int, Opened]:
    """Those members whose content is given, on one clock; messages arrive as bytes, at once."""
    terms, now, queue = world.build_terms(kind), [0], list[tuple[int, RoundMessage]]()
    members: dict[int, OpeningMember] = {}
    for place in contents:
        key = world.keys[place]
        sealer = MemberSealer(terms, key, world.privates[place], world.publics)
        members[place] = OpeningMember(
            terms,
            key,
            sealer,
            judge,
            MemoryRecords(),
            PoolWorkers(world, place, pool),
            lambda message, place=place: queue.append((place, message)),  # type: ignore[misc]
            lambda: Millis(now[0]),
            Suspects(),
        )
    for place, content in contents.items():
        members[place].check(content)
    while now[0] < 60_000 and not all(member.opened.done() for member in members.values()):
        while queue:
            sender, message = queue.pop(0)
            read = decode_message(encode_message(message))
            assert verify_message(CHAIN, read)
            assert not isinstance(read, TellRoot)
            for place, member in members.items():
                if place != sender:
                    member.take(read)
        await asyncio.gather(*(member.drain() for member in members.values()))
        now[0] += 100
        for member in members.values():
            member.tick()
    for member in members.values():
        await member.close()
    return {place: member.opened.result() for place, member in members.items() if member.opened.done()}


class Miners:
    """Three organisations with equal stake, each with one miner that has the same bundle."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.keys = [SigningKey(bytes([80 + number]) * 32) for number in range(3)]
        names = {key.address: f"hospital-{number}" for number, key in enumerate(self.keys)}
        self.stakes = Stakes(names, dict.fromkeys(names.values(), 10), 30)
        self.bundle = BlobRef(
            hash_domain("test-root", world.bundle.read_bytes()), world.bundle.stat().st_size
        )

    def seal(self, number: int) -> SealedClaim:
        return sign_sealed_claim(self.keys[number], CHAIN, TASK, STEP, 0, self.bundle.root)

    def claim(self, number: int) -> Claim:
        return sign_claim(self.keys[number], CHAIN, TASK, STEP, 0, self.bundle)


async def test_a_gradient_and_a_loss_are_opened_by_two_of_three(world: World) -> None:
    """From sealed claims on: told in boxes, confirmed, opened by workers, signed; one member never starts."""
    miners = Miners(world)
    contents: dict[int, Content] = {}
    for place in (0, 1):
        heard = Confirmations(CHAIN, TASK, STEP, (0,), miners.bundle.length)
        for number in (0, 1):
            assert heard.add_seal(miners.seal(number), miners.stakes)
        told = tell_root(
            miners.keys[0], CHAIN, world.name, miners.claim(0), world.members[place], world.publics[place]
        )
        assert heard.build_content(PREVIOUS, DIGEST, miners.stakes) is None
        assert heard.add_told(open_told(world.privates[place], CHAIN, told), miners.stakes)
        content = heard.build_content(PREVIOUS, DIGEST, miners.stakes)
        assert content is not None
        contents[place] = content
    judge = Judge({0: miners.bundle}, miners.stakes)
    pool = WorkerPool(1)
    try:
        opened = await open_all(world, OpeningKind.GRADIENT, contents, judge, pool)
        loss = LossContent(PREVIOUS, DIGEST, hash_domain("test-loss", world.loss.read_bytes()))
        losses = await open_all(world, OpeningKind.LOSS, {0: loss, 1: loss}, judge, pool)
    finally:
        pool.close()
    assert len(opened) == len(losses) == 2
    assert len({item.hash for item in opened.values()}) == len({item.hash for item in losses.values()}) == 1
    params, circuit = world.params, SPEC.circuit
    clear = compute_losses(params, circuit, world.weights, world.problem).sum()
    [number] = losses[0].numbers
    multiplier = Fraction(*NOISE)
    change = compute_loss_bound(circuit, world.weights).compute_sensitivity(BITS)
    assert abs(number - clear / PATCHES * 2**BITS) < 12 * 2 * multiplier * change / PATCHES + 2
    sums = compute_gradients(params, circuit, world.weights, world.problem).sum(axis=0)
    noise = compute_gradient_bound(circuit, world.weights).share_noise(multiplier, BITS).w
    # Entries of the first layer take no part in folding the output's bias.
    first = circuit.first_weights
    for value, exact in zip(opened[0].numbers[:first], sums[:first], strict=True):
        assert abs(value - exact * 2**BITS) < 12 * 2 * noise
    assert any(value != round(exact * 2**BITS) for value, exact in zip(opened[0].numbers, sums, strict=False))
    assert len(build_plan(params, circuit).get_gradient_forms()) == len(
        world.build_terms(OpeningKind.GRADIENT).moduli
    )


def test_parts_repeat_and_differ_by_attempt_and_subset(world: World) -> None:
    """The same question has the same answer, another one independent residues."""
    opener, job = world.get_opener(0), world.build_job("gradient")
    first = opener.run_part(job)
    assert opener.run_part(job) == first
    others = [replace(job, attempt=2), replace(job, subset=(0, 2)), replace(job, opening=bytes([1]) * 32)]
    for other in others:
        different = sum(a != b for a, b in zip(opener.run_part(other), first, strict=True))
        assert different == len(first)
    with pytest.raises(WorkloadError, match="ascending places"):
        opener.run_part(replace(job, subset=(1, 2)))


def test_a_wrong_share_is_implausible(world: World, tmp_path: Path) -> None:
    """A share of another ceremony, or a part of another attempt, gives numbers that nobody signs."""
    other = Ceremony(tmp_path, PRESET, 3, 2, name=bytes(32))
    other.finish()
    for kind in ("gradient", "loss"):
        job = world.build_job(kind)
        good = [world.get_opener(place).run_part(job) for place in (0, 1)]
        assert run_sum(SumJob(job, tuple(good)), WORKLOAD) is not None
        wrong = CommitteeOpener(other.get_folder(1), WORKLOAD).run_part(job)
        assert run_sum(SumJob(job, (good[0], wrong)), WORKLOAD) is None
        replayed = world.get_opener(1).run_part(replace(job, attempt=2))
        assert run_sum(SumJob(job, (good[0], replayed)), WORKLOAD) is None
        for few in ((good[0],), (good[0], good[1][:-1])):
            with pytest.raises(WorkloadError, match="a part of each"):
                run_sum(SumJob(job, few), WORKLOAD)


def test_a_damaged_bundle_is_opened_by_nobody(world: World, tmp_path: Path) -> None:
    data = bytearray(world.bundle.read_bytes())
    data[-8:] = b"\xff" * 8
    bad = tmp_path / "bad"
    bad.write_bytes(data)
    with pytest.raises(WorkloadError, match="not below its prime"):
        world.get_opener(0).run_part(replace(world.build_job("gradient"), files=(bad,)))


def test_a_question_is_read_once_but_a_changed_file_anew(world: World, tmp_path: Path) -> None:
    """Part and sum share one reading; whatever is written to the file afterwards passes the gate again."""
    file, plan = tmp_path / "bundle", build_plan(world.params, SPEC.circuit)
    data = world.bundle.read_bytes()
    file.write_bytes(data)
    job = replace(world.build_job("gradient"), files=(file,))
    question = read_question(plan, job)
    assert read_question(plan, replace(job, subset=(0, 2), attempt=2)) is question
    assert read_question(plan, world.build_job("loss")).digest != question.digest
    assert read_question(plan, job).digest == question.digest
    file.write_bytes(data[:-8] + b"\xff" * 8)
    with pytest.raises(WorkloadError, match="not below its prime"):
        world.get_opener(0).run_part(job)


def test_draws_to_recompute() -> None:
    """As often as the rate says, all at a rate of one, and known to the member alone."""
    drawn = [must_recompute(bytes(32), TASK, batch, 2_500) for batch in range(2_000)]
    assert 400 < sum(drawn) < 600
    assert drawn == [must_recompute(bytes(32), TASK, batch, 2_500) for batch in range(2_000)]
    assert drawn != [must_recompute(bytes([1]) * 32, TASK, batch, 2_500) for batch in range(2_000)]
    assert all(must_recompute(bytes(32), TASK, batch, 10_000) for batch in range(100))
    assert not any(must_recompute(bytes(32), TASK, batch, 0) for batch in range(100))
