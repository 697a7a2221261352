"""A small chain driven block by block through the real rules, and tools to forge what it would refuse."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from consensus.block import Block, Body, Header, Work
from consensus.claims import sign_claim
from consensus.context import BlockContext
from consensus.crypto import SigningKey, hash_domain
from consensus.genesis import build_genesis_header, build_genesis_state
from consensus.identifiers import (
    compute_block_hash,
    compute_chain_id,
    compute_draft_hash,
    compute_task_id,
    compute_transactions_root,
    compute_votes_root,
    compute_weights_digest,
    compute_work_root,
)
from consensus.inference import compute_commitment
from consensus.jobs import (
    CloseCommits,
    CommitResult,
    JobRecord,
    RegisterModel,
    RequestInference,
    RevealResult,
)
from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.payload import Payload, Verdict
from consensus.proposal import (
    build_proposal,
    build_work,
    get_carrier_proposer,
    get_work_entitled_time,
)
from consensus.publication import get_step_batches
from consensus.state import State, TaskState
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
from consensus.transaction import SignedTransaction, compute_transaction_id, sign_transaction, uses_nonce
from consensus.types import ZERO_HASH, Address, Amount, Hash32, Height, Millis
from consensus.upgrade import build_context
from consensus.validation import validate_block
from consensus.vote import Checkpoint, Vote, sign_vote
from consensus.work import NoProofVerifier, WorkVerifier

CUSTODY = SigningKey(b"c" * 32)
COLLEAGUE = SigningKey(b"C" * 32)
"""Of the custody's organisation."""
MINER_A = SigningKey(b"a" * 32)
MINER_B = SigningKey(b"b" * 32)
OUTSIDER = SigningKey(b"o" * 32)
"""Holds money, belongs to no organisation."""
VALIDATORS = (CUSTODY, COLLEAGUE, MINER_A, MINER_B)
KEYS = (CUSTODY, COLLEAGUE, MINER_A, MINER_B, OUTSIDER)
BY_ADDRESS = {key.address: key for key in KEYS}
ORGANISATIONS = {CUSTODY: "hospital", COLLEAGUE: "hospital", MINER_A: "lab-a", MINER_B: "lab-b", OUTSIDER: ""}

CIPHERTEXT = hash_domain("test", b"loss ciphertext")
VERIFIER = NoProofVerifier(CIPHERTEXT)
PARAMS = ChainParams(max_body_bytes=16_384, max_transactions=40, verdict_ms=30_000, evidence_ms=600_000)
START = Millis(1_700_000_000_000)


def build_genesis(params: ChainParams = PARAMS, name: str = "test") -> Genesis:
    return Genesis(
        name=name,
        time=START,
        params=params,
        accounts=tuple(GenesisAccount(k.address, Amount(1_000_000), ORGANISATIONS[k]) for k in KEYS),
        validators=tuple(Validator(k.address, 10) for k in VALIDATORS),
        mining_organisations=("lab-a", "lab-b", "hospital"),
    )


def build_blob(name: str, length: int = 100) -> BlobRef:
    return BlobRef(hash_domain("test", name.encode()), length)


def build_draft(**changes: object) -> Draft:
    draft = Draft(
        kind="fusion-training",
        title="a task",
        salt=bytes(16),
        preset="ckks-16384-60x5",
        model=b"model",
        parameters=3,
        weight_box=1_000,
        public_key=build_blob("public key"),
        relin_keys=build_blob("relin keys"),
        clipping="per-patch",
        gradient_scale_bits=20,
        gradient_clip=1_000,
        gradient_noise=1,
        loss_scale_bits=20,
        loss_clip=1_000,
        loss_noise=1,
        max_gradient_openings=6,
        max_loss_openings=5,
        privacy="none",
        ceremony=ZERO_HASH,
    )
    return replace(draft, **changes)


def build_contribution(draft: Hash32, **changes: object) -> Contribute:
    contribution = Contribute(
        draft=draft,
        training=tuple(Batch(build_blob(f"training {i}"), 8) for i in range(3)),
        validation=(Batch(build_blob("validation"), 4),),
        patients=(
            PatientRange(1, False, 0, 0, 8),
            PatientRange(1, False, 1, 0, 5),
            PatientRange(2, False, 1, 5, 8),
            PatientRange(2, False, 2, 0, 8),
            PatientRange(3, True, 0, 0, 4),
        ),
    )
    return replace(contribution, **changes)


def build_publication(draft: Hash32, contributions: tuple[Hash32, ...], **changes: object) -> PublishTask:
    publication = PublishTask(
        draft=draft,
        contributions=contributions,
        order=(2, 0, 1),
        batches_per_step=2,
        initial_weights=(10, -20, 30),
        optimizer=Optimizer(4, (8,) * 6),
        loss_schedule=(0, 2, 4, 6),
        ladder=(Milestone(100, Amount(1_000)), Milestone(50, Amount(500)), Milestone(20, Amount(301))),
        batch_fee=Amount(7),
        bond=Amount(5_000),
        deadline=Millis(START + 1_000_000),
    )
    return replace(publication, **changes)


def build_model(**changes: object) -> RegisterModel:
    """Clear weights, at a price of 7."""
    model = RegisterModel(
        workload="diagnosis",
        label="pneumonia 28x28",
        provenance="trained on public images",
        evidence=hash_domain("test", b"report"),
        model=build_blob("model"),
        keys=None,
        keys_bytes=400,
        request_bytes=300,
        result_bytes=50,
        price=Amount(7),
        expires=Millis(START + 10_000_000),
    )
    return replace(model, **changes)


@dataclass
class World:
    """Header and state at the head; every method that adds a block validates it as any node would."""

    genesis: Genesis = field(default_factory=build_genesis)
    header: Header = field(init=False)
    state: State = field(init=False)
    chain_id: Hash32 = field(init=False)
    draft: Hash32 = field(init=False)
    task: Hash32 = field(init=False)
    weights: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Weights by step."""
    model: Hash32 = field(init=False)
    job: Hash32 = field(init=False)

    def __post_init__(self) -> None:
        self.state = build_genesis_state(self.genesis)
        self.header = build_genesis_header(self.genesis, self.state)
        self.chain_id = compute_chain_id(self.genesis)

    @property
    def params(self) -> ChainParams:
        return self.genesis.params

    @property
    def task_state(self) -> TaskState:
        task_state = self.state.get_task(self.task)
        assert task_state is not None
        return task_state

    def get_context(self, after: int = 2_000) -> BlockContext:
        height, time = Height(self.header.height + 1), Millis(self.header.time + after)
        return build_context(self.state, height, time, self.params, self.chain_id)

    # --- blocks -------------------------------------------------------------------------------

    def sign(self, key: SigningKey, payload: Payload, nonce: int | None = None) -> SignedTransaction:
        if nonce is None:
            nonce = self.state.get_account(key.address).nonce if uses_nonce(payload) else 0
        return sign_transaction(key, self.chain_id, nonce, payload)

    def get_turn(self, after: int) -> SigningKey:
        """Whose carrier's turn it is so long after the head."""
        turn = self.header.height + 1 + (after - self.params.idle_ms) // self.params.slot_ms
        return BY_ADDRESS[self.genesis.validators[turn % 4].address]

    @property
    def head(self) -> Checkpoint:
        return Checkpoint(self.header.height, compute_block_hash(self.header))

    def build_votes(self, voters: Sequence[SigningKey] | None = None) -> tuple[Vote, ...]:
        """What honest validators sign for the head; of all four by default."""
        source = self.state.get_finality().justified
        if self.header.height <= source.height:
            return ()
        keys = VALIDATORS if voters is None else voters
        return tuple(sign_vote(key, self.chain_id, source, self.head) for key in keys)

    def build_carrier(
        self, *transactions: SignedTransaction, after: int = 2_000, votes: Sequence[Vote] | None = None
    ) -> Block:
        """A valid carrier block on the head with all of the transactions, and by default everyone's votes."""
        proposal = build_proposal(
            self.header,
            self.state,
            transactions,
            None,
            Millis(self.header.time + after),
            self.get_turn(after),
            self.params,
            self.chain_id,
            self.build_votes() if votes is None else votes,
        )
        assert not proposal.refused, proposal.refused
        assert not proposal.premature, proposal.premature
        return proposal.block

    def validate(self, block: Block | bytes, verifier: WorkVerifier = VERIFIER) -> State:
        return validate_block(self.header, self.state, block, self.params, self.chain_id, verifier)

    def add(self, block: Block) -> None:
        self.state = self.validate(block)
        self.header = block.header

    def carry(
        self, *transactions: SignedTransaction, after: int = 2_000, votes: Sequence[Vote] | None = None
    ) -> None:
        self.add(self.build_carrier(*transactions, after=after, votes=votes))

    def carry_by_turn(
        self, *transactions: SignedTransaction, after: int = 2_000, votes: Sequence[Vote] | None = None
    ) -> None:
        """Like `carry` where the validator set is no longer that of genesis."""
        time = Millis(self.header.time + after)
        turn = get_carrier_proposer(self.state, self.params, self.header, time)
        assert turn is not None
        proposal = build_proposal(
            self.header,
            self.state,
            transactions,
            None,
            time,
            BY_ADDRESS[turn],
            self.params,
            self.chain_id,
            self.build_votes(self._get_voters()) if votes is None else votes,
        )
        assert not proposal.refused, proposal.refused
        assert not proposal.premature, proposal.premature
        self.add(proposal.block)

    def _get_voters(self) -> list[SigningKey]:
        """Everyone of the active set and of those before it who is not in jail."""
        jailed = self.state.get_jailed()
        return [key for key in KEYS if key.address not in jailed]

    def build_work(self) -> Work:
        return build_work(self.state, self.task, self.weights[self.task_state.qualified[0].step])

    def build_work_block(self, key: SigningKey, *transactions: SignedTransaction) -> Block:
        """A valid block with the next milestone, at the first time this key may propose it."""
        time = get_work_entitled_time(
            self.state, self.task, key.address, self.header, self.params, self.header.time
        )
        assert time is not None
        return build_proposal(
            self.header,
            self.state,
            transactions,
            self.build_work(),
            time,
            key,
            self.params,
            self.chain_id,
            self.build_votes(),
        ).block

    def forge(
        self, block: Block, key: SigningKey | None = None, body: Body | None = None, **header: object
    ) -> Block:
        """The block with another body or header fields, its roots made to fit and signed again."""
        body = body or block.body
        fields = {
            "transactions_root": compute_transactions_root(body.transactions),
            "work_root": compute_work_root(body.work),
            "votes_root": compute_votes_root(body.votes),
        }
        if key is not None:
            fields["proposer"] = key.address
        forged = replace(block.header, **(fields | header))
        signer = key or BY_ADDRESS[forged.proposer]
        return Block(forged, signer.sign("block", compute_block_hash(forged)), body)

    def forge_work(self, block: Block, **changes: object) -> Block:
        work = replace(block.body.work, **changes)
        return self.forge(block, body=replace(block.body, work=work))

    # --- a task -------------------------------------------------------------------------------

    def publish(self, draft: Draft | None = None, **changes: object) -> PublishTask:
        """Three blocks: draft, contribution, publication."""
        draft = draft or build_draft()
        self.carry(self.sign(CUSTODY, DraftTask(draft)))
        self.draft = compute_draft_hash(self.chain_id, draft)
        contribution = self.sign(OUTSIDER, build_contribution(self.draft))
        self.carry(contribution)
        publication = build_publication(self.draft, (compute_transaction_id(contribution),), **changes)
        self.carry(self.sign(CUSTODY, publication))
        self.task = compute_task_id(publication)
        self.weights[0] = publication.initial_weights
        return publication

    def open(self, **changes: object) -> None:
        """A published task held by three of four validators."""
        self.publish(**changes)
        self.carry(*(self.sign(key, Available(self.task)) for key in (CUSTODY, MINER_A, MINER_B)))

    def build_claims(self, step: int, miners: Sequence[SigningKey] = (MINER_A, MINER_B)) -> tuple[Claim, ...]:
        publication = self.state.get_publication(self.task)
        assert publication is not None
        return tuple(
            sign_claim(
                miners[i % len(miners)], self.chain_id, self.task, step, batch, build_blob(f"bundle {batch}")
            )
            for i, batch in enumerate(get_step_batches(publication, step))
        )

    def build_gradient(self, gradient: tuple[int, ...] = (5, 6, -7), **changes: object) -> OpenGradient:
        """A valid opening of the current step; batches go to both miners in turn."""
        task = self.task_state
        opening = OpenGradient(
            task=self.task,
            step=task.step,
            previous=task.previous,
            weights=compute_weights_digest(task.weights),
            claims=self.build_claims(task.step),
            confirmations=(),
            gradient=gradient,
            attempt=1,
            cosignatures=(),
        )
        return replace(opening, **changes)

    def build_loss(self, loss: int, **changes: object) -> OpenLoss:
        task = self.task_state
        opening = OpenLoss(
            task=self.task,
            step=task.step,
            previous=task.previous,
            weights=compute_weights_digest(task.weights),
            ciphertext=CIPHERTEXT,
            loss=loss,
            attempt=1,
            cosignatures=(),
        )
        return replace(opening, **changes)

    def open_gradient(self, miners: Sequence[SigningKey] = (MINER_A, MINER_B)) -> None:
        claims = self.build_claims(self.task_state.step, miners)
        self.carry(self.sign(CUSTODY, self.build_gradient(claims=claims)))
        self.weights[self.task_state.step] = self.task_state.weights

    def open_loss(self, loss: int) -> None:
        self.carry(self.sign(CUSTODY, self.build_loss(loss)))

    def build_verdict(self, accept: bool = True, at: int = 0) -> Verdict:
        """On one of the unsettled milestones."""
        return Verdict(self.task, self.task_state.unsettled[at].milestone.loss_opening, accept, 900, 800)

    def settle(self) -> None:
        """Three of four validators accept the first unsettled milestone."""
        self.carry(*(self.sign(key, self.build_verdict()) for key in (COLLEAGUE, MINER_A, MINER_B)))

    # --- a job --------------------------------------------------------------------------------

    def register(self, **changes: object) -> None:
        """The outsider's model, in a block."""
        transaction = self.sign(OUTSIDER, build_model(**changes))
        self.carry(transaction)
        self.model = compute_transaction_id(transaction)

    def build_request(self, **changes: object) -> RequestInference:
        request = RequestInference(
            model=self.model,
            request=build_blob("request", 300),
            keys=build_blob("keys", 400),
            fee=Amount(100),
            commit_until=Millis(self.header.time + 60_000),
            deadline=Millis(self.header.time + 300_000),
        )
        return replace(request, **changes)

    def request(self, **changes: object) -> None:
        """The colleague's job with the model, in a block."""
        transaction = self.sign(COLLEAGUE, self.build_request(**changes))
        self.carry(transaction)
        self.job = compute_transaction_id(transaction)

    @property
    def job_record(self) -> JobRecord:
        record = self.state.get_job(self.job)
        assert record is not None
        return record

    def build_commit(self, key: SigningKey, result: str = "result") -> SignedTransaction:
        root = build_blob(result).root
        return self.sign(key, CommitResult(self.job, compute_commitment(self.job, root, key.address)))

    def close_commits(self, after: int = 70_000) -> None:
        """By anyone, in a block after the window."""
        self.carry(self.sign(OUTSIDER, CloseCommits(self.job)), after=after)

    def build_reveal(self, key: SigningKey, result: str = "result") -> SignedTransaction:
        return self.sign(key, RevealResult(self.job, build_blob(result).root))

    def transfer(
        self, key: SigningKey, to: SigningKey, amount: int, nonce: int | None = None
    ) -> SignedTransaction:
        return self.sign(key, Transfer(to.address, Amount(amount)), nonce)

    # --- money --------------------------------------------------------------------------------

    def count_money(self) -> int:
        """Everything that exists: balances, stakes, deposits, locks, treasury, escrows, bonds."""
        return count_money(self.state, [key.address for key in KEYS])


def count_money(state: State, addresses: Sequence[Address]) -> int:
    """All money of a state in which only these accounts have ever held any: all escrows too."""
    jailed = state.get_jailed()
    pending = state.get_pending_set()
    total = sum(state.get_account(address).balance for address in addresses)
    total += sum(member.stake for member in state.get_validators() if member.address not in jailed)
    total += sum(member.stake for member in pending.deposits) if pending else 0
    total += sum(lock.amount for lock in state.get_locks()) + state.get_charter().treasury
    for task in state.get_tasks():
        task_state = state.get_task(task)
        assert task_state is not None
        total += task_state.escrow + task_state.bond
    for number in range(state.get_job_count()):
        job = state.get_job_id(number)
        record = None if job is None else state.get_job(job)
        assert record is not None
        total += record.escrow
    for number in range(state.get_federation_count()):
        federation = state.get_federation_id(number)
        found = None if federation is None else state.get_federation(federation)
        assert found is not None
        total += found.escrow
    return total


def build_milestone_world(miners: Sequence[SigningKey] = (MINER_A, MINER_A, MINER_B)) -> World:
    """Rung 0 is met by the loss at step 2 and pending; two steps of two batches are credited.

    By default miner A has three batches and miner B one.
    """
    world = World()
    world.open()
    world.open_loss(900)
    world.open_gradient((miners[0], miners[1]))
    world.open_gradient((miners[0], miners[2]))
    world.open_loss(60)
    assert len(world.task_state.qualified) == 1
    return world
