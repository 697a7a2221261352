"""A chain as proposers would make it, as fast as the machine can: real rules, real ledger, own clock."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from consensus.claims import sign_claim
from consensus.codec import encode
from consensus.crypto import SigningKey, hash_domain
from consensus.identifiers import compute_draft_hash, compute_task_id, compute_weights_digest
from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.payload import Payload
from consensus.proposal import build_proposal, build_work, get_work_entitled_time
from consensus.publication import get_step_batches
from consensus.state import TaskState
from consensus.task import (
    Available,
    Batch,
    BlobRef,
    Claim,
    Contribute,
    Draft,
    DraftTask,
    Milestone,
    OpenGradient,
    OpenLoss,
    Optimizer,
    PatientRange,
    PublishTask,
    Transfer,
)
from consensus.transaction import SignedTransaction, compute_transaction_id, sign_transaction
from consensus.turns import get_carrier_proposer
from consensus.types import ZERO_HASH, Address, Amount, Hash32, Millis
from consensus.vote import Checkpoint, Vote, sign_vote
from node.announcer import EventAnnouncer
from node.blobs import BlobStore
from node.chain import Chain, ImportStatus
from node.clock import Clock, ManualClock
from node.core import Core
from node.events import EventBus
from node.history import WeightHistory
from node.ledger.level import LevelStore
from node.ledger.store import KeyValueStore
from node.mempool import Mempool
from node.recomputer import Recomputer
from node.work import VerdictBook, WorkService
from workloads.fusion import WORKLOAD, FusionSpec

PRESET = "ckks-16384-60x5"
MODEL = FusionSpec()
"""The default network: 6x6 patches, 4 channels, hence 112 weights."""
SIZES = WORKLOAD.get_sizes(PRESET, MODEL.encode())
SLOTS = WORKLOAD.get_slots(PRESET)
START = Millis(1_700_000_000_000)

CUSTODY = SigningKey(b"c" * 32)
MINERS = tuple(SigningKey(bytes([number]) * 32) for number in range(1, 5))
PAYERS = tuple(SigningKey(bytes([100 + number]) * 32) for number in range(20))
KEYS = {key.address: key for key in (CUSTODY, *MINERS, *PAYERS)}


class SourceError(Exception):
    """A chain could not be made as planned; the text says where."""


def build_genesis(params: ChainParams | None = None) -> Genesis:
    """A custody and four miners, all validators of equal stake, and accounts that pay each other."""
    validators = (CUSTODY, *MINERS)
    names = ["custody-org", *(f"hospital-{number}" for number in range(1, 5))]
    accounts = [
        GenesisAccount(key.address, Amount(10**12), name) for key, name in zip(validators, names, strict=True)
    ]
    accounts += [GenesisAccount(key.address, Amount(10**12), "bank") for key in PAYERS]
    return Genesis(
        "bench",
        START,
        params or ChainParams(),
        tuple(accounts),
        tuple(Validator(key.address, 100) for key in validators),
        tuple(names[1:]),
    )


WorkFactory = Callable[[BlobStore, VerdictBook, int], WorkService]


def build_core(
    genesis: Genesis,
    store: KeyValueStore,
    key: SigningKey,
    clock: Clock,
    directory: Path,
    build_work_service: WorkFactory = WorkService,
) -> Core:
    """A node's core with every listener that a running node has, without its network."""
    blobs, verdicts = BlobStore(directory / "blobs"), VerdictBook()
    chain = Chain(genesis, store, clock, verdicts)
    verdicts.open(chain.ledger)
    work = build_work_service(blobs, verdicts, 1)
    events = EventBus(10_000, clock.now_ms())
    core = Core(chain, Mempool(), blobs, work, WeightHistory(chain.ledger), events, clock, key)
    chain.on_head_change(core.on_head_change)
    Recomputer(core)
    EventAnnouncer(chain, events, clock)
    return core


@contextmanager
def open_core(genesis: Genesis, key: SigningKey, clock: Clock, directory: Path) -> Iterator[Core]:
    """A core over a LevelDB in `directory`, closed at the end."""
    store = LevelStore(directory / "ledger")
    try:
        yield build_core(genesis, store, key, clock, directory)
    finally:
        store.close()


class Transfers:
    """Signed transfers between paying accounts, each payer's nonces in order."""

    def __init__(self, chain_id: Hash32, payers: Sequence[SigningKey]) -> None:
        self._chain_id = chain_id
        self._payers = payers
        self._numbers = count()

    def take(self, number: int) -> list[SignedTransaction]:
        """The next so many."""
        return [self._sign(next(self._numbers)) for _ in range(number)]

    def _sign(self, number: int) -> SignedTransaction:
        nonce, at = divmod(number, len(self._payers))
        receiver = self._payers[(at + 1) % len(self._payers)].address
        payload = Transfer(receiver, Amount(1 + number))
        return sign_transaction(self._payers[at], self._chain_id, nonce, payload)


class Source:
    """Makes one valid block after another and stores it; time jumps to where the next one is allowed."""

    def __init__(self, core: Core, clock: ManualClock, keys: dict[Address, SigningKey]) -> None:
        self.core = core
        self._clock = clock
        self._keys = keys
        self._nonces: dict[Address, int] = {}

    @property
    def chain(self) -> Chain:
        return self.core.chain

    def sign(self, key: SigningKey, payload: Payload, *, counted: bool = True) -> SignedTransaction:
        nonce = self._nonces.get(key.address, 0) if counted else 0
        if counted:
            self._nonces[key.address] = nonce + 1
        return sign_transaction(key, self.chain.chain_id, nonce, payload)

    def build_votes(self) -> tuple[Vote, ...]:
        """What every validator of this chain votes for its head."""
        chain = self.chain
        source, head = (
            chain.head_state.get_finality().justified,
            Checkpoint(chain.head.height, chain.head_hash),
        )
        if head.height <= source.height:
            return ()
        voters = [self._keys[v.address] for v in chain.head_state.get_validators() if v.address in self._keys]
        return tuple(sign_vote(key, chain.chain_id, source, head) for key in voters)

    def carry(self, transactions: Sequence[SignedTransaction]) -> bytes:
        """A carrier block with all of them and everyone's votes, by whoever's turn it is; its bytes."""
        chain = self.chain
        time = Millis(chain.head.time + chain.params.idle_ms)
        proposer = get_carrier_proposer(chain.head_state, chain.params, chain.head, time)
        if proposer is None:
            raise SourceError("nobody may propose")
        proposal = build_proposal(
            chain.head, chain.head_state, transactions, None, time,
            self._keys[proposer], chain.params, chain.chain_id, self.build_votes(),
        )  # fmt: skip
        if len(proposal.block.body.transactions) != len(transactions):
            raise SourceError(f"refused: {proposal.refused} {proposal.premature}")
        return self._store(encode(proposal.block), time)

    def take_milestone(self, task: Hash32, weights: tuple[int, ...], proposer: SigningKey) -> bytes:
        """The work block of the task's first pending milestone; its bytes."""
        chain = self.chain
        time = get_work_entitled_time(
            chain.head_state, task, proposer.address, chain.head, chain.params, chain.head.time
        )
        if time is None:
            raise SourceError("no milestone for this proposer")
        proposal = build_proposal(
            chain.head, chain.head_state, (), build_work(chain.head_state, task, weights), time,
            proposer, chain.params, chain.chain_id, self.build_votes(),
        )  # fmt: skip
        return self._store(encode(proposal.block), time)

    def _store(self, data: bytes, time: Millis) -> bytes:
        self._clock.advance(max(0.0, (time - self._clock.now_ms()) / 1000))
        outcome = self.core.take_block(data)
        if outcome.status is not ImportStatus.ACCEPTED:
            raise SourceError(f"own block: {outcome.status} {outcome.reason} {outcome.detail}")
        return data


# --- a task -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """A task of the default network's size without any ciphertext: blobs are named, not stored."""

    steps: int
    batches: int
    batches_per_step: int
    rungs: int
    """Step s + 1 is to meet rung s."""


def build_blob(name: str, length: int) -> BlobRef:
    return BlobRef(hash_domain("bench", name.encode()), length)


def build_draft(plan: TaskPlan, statement: str = "none") -> Draft:
    return Draft(
        kind="fusion-training",
        title="bench",
        salt=bytes(16),
        preset=PRESET,
        model=MODEL.encode(),
        parameters=MODEL.parameters,
        weight_box=4 << 20,
        public_key=build_blob("public key", SIZES.public_key),
        relin_keys=build_blob("relin keys", SIZES.relin_keys),
        clipping="per-patch",
        gradient_scale_bits=20,
        gradient_clip=2**19,
        gradient_noise=2**24,
        loss_scale_bits=20,
        loss_clip=2**17,
        loss_noise=2**20,
        max_gradient_openings=plan.steps,
        max_loss_openings=plan.steps + 1,
        privacy=statement,
        ceremony=ZERO_HASH,
    )


def publish_task(source: Source, plan: TaskPlan) -> tuple[Hash32, list[bytes]]:
    """Draft, contribution, publication and promises; the task's id and the blocks."""
    draft = build_draft(plan)
    blocks = [source.carry([source.sign(CUSTODY, DraftTask(draft))])]
    name = compute_draft_hash(source.chain.chain_id, draft)
    patients = [PatientRange(number, False, number, 0, SLOTS) for number in range(plan.batches)]
    contribution = source.sign(
        MINERS[0],
        Contribute(
            name,
            tuple(
                Batch(build_blob(f"training {number}", SIZES.training_batch), SLOTS)
                for number in range(plan.batches)
            ),
            (Batch(build_blob("validation", SIZES.validation_batch), SLOTS),),
            (*patients, PatientRange(plan.batches, True, 0, 0, SLOTS)),
        ),
    )
    blocks.append(source.carry([contribution]))
    publication = PublishTask(
        draft=name,
        contributions=(compute_transaction_id(contribution),),
        order=tuple(range(plan.batches)),
        batches_per_step=plan.batches_per_step,
        initial_weights=tuple(1_000 * number - 50_000 for number in range(MODEL.parameters)),
        optimizer=Optimizer(40, (2**26,) * plan.steps),
        loss_schedule=tuple(range(plan.steps + 1)),
        ladder=tuple(Milestone(get_target(rung), Amount(1_000)) for rung in range(plan.rungs)),
        batch_fee=Amount(1),
        bond=Amount(1_000),
        deadline=Millis(START + 10**9),
    )
    blocks.append(source.carry([source.sign(CUSTODY, publication)]))
    task = compute_task_id(publication)
    promises = [source.sign(key, Available(task), counted=False) for key in (CUSTODY, *MINERS)]
    blocks.append(source.carry(promises))
    return task, blocks


def get_target(rung: int) -> int:
    """The loss that meets this rung and no further one."""
    return 10**6 - 1_000 * rung


def require_task(core: Core, task: Hash32) -> TaskState:
    """The head's state of a task. Raises: SourceError."""
    state = core.chain.head_state.get_task(task)
    if state is None:
        raise SourceError(f"no task {task.hex()}")
    return state


def build_claims(chain_id: Hash32, task: Hash32, step: int, publication: PublishTask) -> tuple[Claim, ...]:
    """One claim for each batch of the step, miners taking turns."""
    return tuple(
        sign_claim(
            MINERS[at % len(MINERS)],
            chain_id,
            task,
            step,
            batch,
            build_blob(f"bundle {step} {batch}", SIZES.bundle),
        )
        for at, batch in enumerate(get_step_batches(publication, step))
    )


def build_gradient(task: Hash32, state: TaskState, claims: tuple[Claim, ...]) -> OpenGradient:
    """An opening of the right size for the task's current step."""
    numbers = tuple((-1) ** number * (10_000_000 + 7 * number) for number in range(MODEL.parameters))
    return OpenGradient(
        task, state.step, state.previous, compute_weights_digest(state.weights), claims, (), numbers, 1, ()
    )


def build_loss(task: Hash32, state: TaskState, loss: int, ciphertext: Hash32) -> OpenLoss:
    digest = compute_weights_digest(state.weights)
    return OpenLoss(task, state.step, state.previous, digest, ciphertext, loss, 1, ())
