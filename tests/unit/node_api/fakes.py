"""An in-memory chain with one task behind the API's ports, built from real consensus values."""

from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from consensus.block import Block, Body, Work
from consensus.ceremonies import (
    CeremonyCommitment,
    CeremonyConfirmation,
    CeremonyRecord,
    CeremonyStatus,
    CreateCeremony,
)
from consensus.codec import CodecError, decode, encode
from consensus.crypto import SigningKey, compute_blob_root, compute_chunk_hash
from consensus.federations import (
    CreateFederation,
    EndedRound,
    FederationRecord,
    FederationStatus,
    Judgement,
    Participant,
    RoundOutcome,
    RoundPhase,
    RoundRecord,
    Submission,
    SumVote,
)
from consensus.genesis import build_genesis_header, build_genesis_state
from consensus.identifiers import (
    compute_block_hash,
    compute_chain_id,
    compute_draft_hash,
    compute_opening_hash,
    compute_task_id,
)
from consensus.jobs import (
    Evaluation,
    EvaluatorRecord,
    JobRecord,
    JobStatus,
    ModelRecord,
    Receipt,
    RegisterModel,
    RequestInference,
)
from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.payload import Payload, Verdict
from consensus.records import ContributionRecord, DraftRecord, Settled, TaskState, TaskStatus
from consensus.state import State
from consensus.task import (
    Batch,
    BlobRef,
    Claim,
    Contribute,
    Credit,
    Draft,
    Milestone,
    OpenGradient,
    OpenLoss,
    Optimizer,
    PublishTask,
)
from consensus.transaction import SignedTransaction, compute_transaction_id, sign_transaction
from consensus.types import ZERO_HASH, Address, Amount, Hash32, Height, Millis, Signature
from consensus.vote import Checkpoint
from node.api.view import (
    BlobInfo,
    BlockRecord,
    HeadRecord,
    MilestoneRecord,
    NodeInfo,
    OpeningRecord,
    PeerRecord,
    PrivacyLoss,
    Readiness,
    RefusedTransaction,
    TransactionRecord,
    VerdictRecord,
    ViewError,
)
from node.events import EventBus
from node.sync.ports import SyncProgress
from node.voting import VotingState, VotingStatus

START = Millis(1_700_000_000_000)
CUSTODY = SigningKey(bytes([1]) * 32)
MINER = SigningKey(bytes([2]) * 32)
BLOB = BlobRef(Hash32(bytes([9]) * 32), 1000)
DRAFT = Draft(
    kind="fusion-training",
    title="MRI and CT",
    salt=bytes(16),
    preset="ckks-16384-60x5",
    model=b"\x93\x01\x02\x03",
    parameters=3,
    weight_box=2**30,
    public_key=BLOB,
    relin_keys=BLOB,
    clipping="per-patch",
    gradient_scale_bits=20,
    gradient_clip=1 << 20,
    gradient_noise=100,
    loss_scale_bits=10,
    loss_clip=1 << 12,
    loss_noise=3,
    max_gradient_openings=8,
    max_loss_openings=4,
    privacy="per patch",
    ceremony=ZERO_HASH,
)
CONTRIBUTION = Contribute(ZERO_HASH, (Batch(BLOB, 800), Batch(BLOB, 700)), (Batch(BLOB, 300),), ())


def build_genesis() -> Genesis:
    return Genesis(
        name="test",
        time=START,
        params=ChainParams(),
        accounts=(
            GenesisAccount(CUSTODY.address, Amount(1_000_000), "custody-org"),
            GenesisAccount(MINER.address, Amount(1_000), "hospital-1"),
        ),
        validators=(Validator(CUSTODY.address, 100), Validator(MINER.address, 100)),
        mining_organisations=("hospital-1",),
    )


def _build_loss(task: Hash32) -> OpenLoss:
    return OpenLoss(task, 0, ZERO_HASH, ZERO_HASH, ZERO_HASH, 1536, 1, ())


class FakeNode:
    """Implements `NodeView` and `OperatorView`; blocks are stored, never validated."""

    def __init__(self, directory: Path, blocks: int = 5) -> None:
        genesis = build_genesis()
        self.params = genesis.params
        self.events = EventBus(history=32, start_ms=START)
        self.revision: int | None = None
        self.ready = Readiness(True)
        self.chain_id = compute_chain_id(genesis)
        self.state: State = build_genesis_state(genesis)
        self.directory = directory
        self.blobs: dict[Hash32, Path] = {}
        self.signed: list[Payload] = []
        self.mempool: dict[Hash32, SignedTransaction] = {}
        self.records: list[BlockRecord] = []
        self.openings: list[OpeningRecord] = []
        self.milestones: list[MilestoneRecord] = []
        self.verdicts: list[VerdictRecord] = []
        self.model, self.job = Hash32(bytes([5]) * 32), Hash32(bytes([6]) * 32)
        self.federation = Hash32(bytes([4]) * 32)
        self.ceremony = Hash32(bytes([10]) * 32)
        self.joinable = [CUSTODY.address]
        self.joined: list[Hash32] = []
        self._add(Block(build_genesis_header(genesis, self.state), Signature(b""), Body((), None, ())))
        self.task = self._publish()
        for _ in range(blocks - 1):
            self.grow()

    @property
    def info(self) -> NodeInfo:
        return NodeInfo(
            "node1",
            "0.1.0",
            "test",
            self.chain_id,
            CUSTODY.address,
            "custody-org",
            ("custody",),
            "127.0.0.1:1",
            START,
        )

    def _add(self, block: Block) -> BlockRecord:
        record = BlockRecord(compute_block_hash(block.header), block, len(encode(block)))
        self.records.append(record)
        return record

    def grow(self, transactions: Sequence[SignedTransaction] = (), work: Work | None = None) -> BlockRecord:
        """One more block at the head."""
        parent = self.records[-1]
        header = replace(
            parent.block.header,
            height=Height(parent.block.header.height + 1),
            parent=parent.hash,
            time=Millis(parent.block.header.time + 2000),
            proposer=MINER.address,
            state_root=self.state.root,
        )
        return self._add(Block(header, Signature(bytes(64)), Body(tuple(transactions), work, ())))

    def _publish(self) -> Hash32:
        draft = compute_draft_hash(self.chain_id, DRAFT)
        contribution = Hash32(bytes([7]) * 32)
        publication = PublishTask(
            draft=draft,
            contributions=(contribution,),
            order=(0, 1),
            batches_per_step=2,
            initial_weights=(1, 2, 3),
            optimizer=Optimizer(10, (5,) * 8),
            loss_schedule=(0, 2),
            ladder=(Milestone(2048, Amount(50)), Milestone(1024, Amount(60))),
            batch_fee=Amount(1),
            bond=Amount(10),
            deadline=Millis(START + 10_000_000),
        )
        task = compute_task_id(publication)
        self.state = (
            self.state.with_draft(draft, DraftRecord(DRAFT, CUSTODY.address, True))
            .with_contribution(contribution, ContributionRecord(CONTRIBUTION, MINER.address, True))
            .with_publication(task, publication)
            .with_task(task, self._build_task(task))
        )
        self._open(task)
        self._request()
        self._federate()
        self._gather()
        return task

    def _request(self) -> None:
        """A settled job of encrypted inference; one of three organisations was wrong."""
        register = RegisterModel(
            "diagnosis", "pneumonia", "public images", ZERO_HASH, BLOB, None, 1000, 1000, 1000, Amount(1),
            Millis(START + 10_000_000),
        )  # fmt: skip
        request = RequestInference(
            self.model, BLOB, BLOB, Amount(10), Millis(START + 1_000), Millis(START + 9_000)
        )
        right, wrong = Hash32(bytes([9]) * 32), Hash32(bytes([8]) * 32)
        evaluations = (
            Evaluation(MINER.address, "hospital-1", ZERO_HASH, right),
            Evaluation(CUSTODY.address, "custody-org", ZERO_HASH, wrong),
        )
        record = JobRecord(
            request, MINER.address, Height(2), JobStatus.SETTLED, evaluations, right, Height(3), Amount(0)
        )
        receipt = Receipt(
            self.job, self.model, MINER.address, BLOB, BLOB, BLOB, (MINER.address,), (CUSTODY.address,), (),
            Height(3), START,
        )  # fmt: skip
        self.state = (
            self.state.with_new_model(self.model, ModelRecord(register, CUSTODY.address, Height(1), False))
            .with_new_job(self.job, record)
            .with_receipt(self.job, receipt)
            .with_evaluator("hospital-1", EvaluatorRecord(1, 0, 0))
        )

    def _gather(self) -> None:
        """A ceremony of two: the first round is over, of the second one commitment is there."""
        members = tuple(sorted((CUSTODY.address, MINER.address)))
        create = CreateCeremony(
            "cardiac", "ckks-16384-60x5", members, 2, Millis(START + 10_000_000), ZERO_HASH
        )
        record = CeremonyRecord(
            create, Height(1), CeremonyStatus.RUNNING, 1, (CeremonyCommitment(CUSTODY.address, ZERO_HASH),),
            Height(0), (), ((BLOB, BLOB),), (), None, ZERO_HASH,
        )  # fmt: skip
        self.state = self.state.with_new_ceremony(self.ceremony, record)

    def finish_ceremony(self) -> None:
        """All have confirmed its keys, and then shared them anew."""
        record = self.state.get_ceremony(self.ceremony)
        assert record is not None
        renewal = Hash32(bytes([11]) * 32)
        confirmations = tuple(
            CeremonyConfirmation(member, BLOB, BLOB, Hash32(bytes([place + 1]) * 32))
            for place, member in enumerate(record.create.members)
        )
        done = replace(
            record,
            status=CeremonyStatus.READY,
            round=5,
            commitments=(),
            contributions=((BLOB, BLOB),) * 5,
            confirmations=confirmations,
        )
        create = replace(record.create, title="cardiac, anew", renews=self.ceremony)
        self.state = self.state.with_ceremony(self.ceremony, replace(done, renewed_by=renewal))
        renewed = replace(
            done, create=create, contributions=((BLOB, BLOB), (), (), (BLOB, BLOB), (BLOB, BLOB))
        )
        self.state = self.state.with_new_ceremony(renewal, renewed)

    def _federate(self) -> None:
        """A federation whose first round was accepted and whose second takes updates."""
        members = (Participant(CUSTODY.address, 1), Participant(MINER.address, 3))
        members = tuple(sorted(members, key=lambda item: item.address))
        create = CreateFederation(
            "lungs", "two hospitals", BLOB, BLOB, 3, BLOB, 1000, members, 2, 4, 3, Millis(1_000),
            Millis(2_000), Millis(3_000), 100, 5, 10, (Milestone(500, Amount(50)),),
            Millis(START + 10_000_000),
        )  # fmt: skip
        addresses = tuple(item.address for item in members)
        submissions = tuple(Submission(address, BLOB, addresses) for address in addresses)
        first = RoundRecord(
            0, RoundPhase.OPENED, START, None, submissions, addresses, Height(2), START,
            (SumVote(CUSTODY.address, ZERO_HASH),), ZERO_HASH, BLOB, BLOB, START,
            (Judgement(MINER.address, 600, 450),),
        )  # fmt: skip
        second = RoundRecord(
            1, RoundPhase.TRAINING, START, None, submissions[:1], (), Height(0), Millis(0), (), None, None,
            None, Millis(0), (),
        )  # fmt: skip
        ended = EndedRound(first, RoundOutcome.ACCEPTED, START, Height(4), (0,))
        record = FederationRecord(
            create,
            CUSTODY.address,
            Height(1),
            FederationStatus.RUNNING,
            second,
            BLOB,
            1,
            1,
            1,
            (),
            (),
            (),
            Amount(0),
        )
        self.state = self.state.with_new_federation(self.federation, record).with_ended_round(
            self.federation, ended
        )

    @staticmethod
    def _build_task(task: Hash32) -> TaskState:
        return TaskState(
            status=TaskStatus.OPEN,
            custody=CUSTODY.address,
            published_height=Height(1),
            available=(CUSTODY.address,),
            available_stake=200,
            step=1,
            weights=(4, 5, 6),
            momentum=(0, 0, 0),
            previous=ZERO_HASH,
            loss_opened=False,
            last_loss=1536,
            gradient_openings=1,
            loss_openings=1,
            interval_credits=(),
            qualified=(),
            next_rung=1,
            next_taken_rung=1,
            unsettled=(),
            settled=Settled(0, 0, 1536, ZERO_HASH),
            judged=(compute_opening_hash(_build_loss(task)),),
            escrow=Amount(500),
            bond=Amount(10),
        )

    def _open(self, task: Hash32) -> None:
        claims = tuple(Claim(task, 0, batch, BLOB, MINER.address, Signature(bytes(64))) for batch in (0, 1))
        loss = _build_loss(task)
        gradient = OpenGradient(task, 0, compute_opening_hash(loss), ZERO_HASH, claims, (), (1, -2, 3), 1, ())
        for opening in (loss, gradient):
            transaction = sign_transaction(CUSTODY, self.chain_id, 0, opening)
            record = self.grow([transaction])
            self.openings.append(
                OpeningRecord(
                    compute_opening_hash(opening),
                    opening,
                    compute_transaction_id(transaction),
                    record.hash,
                    record.block.header.height,
                    record.block.header.time,
                )
            )
        credits = (Credit(MINER.address, 2),)
        work = Work(task, 0, 0, 0, compute_opening_hash(loss), 1536, ZERO_HASH, (1, 2, 3), credits)
        header = self.grow(work=work)
        self.milestones.append(
            MilestoneRecord(
                work, header.hash, header.block.header.height, header.block.header.time, MINER.address
            )
        )
        verdict = Verdict(task, compute_opening_hash(loss), True, 2048, 1024)
        self.verdicts.append(VerdictRecord(verdict, CUSTODY.address, ZERO_HASH, Height(5)))

    # --- NodeView -----------------------------------------------------------------------------

    def get_readiness(self) -> Readiness:
        return self.ready

    def get_head(self) -> HeadRecord:
        return HeadRecord(self.records[-1].hash, self.records[-1].block.header)

    def get_justified(self) -> Checkpoint:
        return self.state.get_finality().justified

    def get_finalized(self) -> Checkpoint:
        return self.state.get_finality().finalized

    def get_voting(self) -> VotingStatus:
        return VotingStatus(VotingState.VOTING)

    def get_state(self) -> State:
        return self.state

    def get_sync_target(self) -> Height:
        return self.records[-1].block.header.height

    def get_sync_progress(self) -> SyncProgress | None:
        return None

    def get_revision(self) -> Hashable:
        return self.revision

    def get_base(self) -> Height:
        return Height(0)

    def get_block(self, block: Hash32) -> BlockRecord | None:
        return next((record for record in self.records if record.hash == block), None)

    def get_block_hash(self, height: Height) -> Hash32 | None:
        return self.records[height].hash if height < len(self.records) else None

    def get_transaction(self, transaction: Hash32) -> TransactionRecord | None:
        if transaction in self.mempool:
            return TransactionRecord(transaction, self.mempool[transaction])
        for record in self.records:
            for index, included in enumerate(record.block.body.transactions):
                if compute_transaction_id(included) == transaction:
                    height = record.block.header.height
                    return TransactionRecord(transaction, included, record.hash, height, index)
        return None

    def get_mempool(self) -> Sequence[TransactionRecord]:
        return [TransactionRecord(key, value) for key, value in self.mempool.items()]

    def get_openings(self, task: Hash32) -> Sequence[OpeningRecord]:
        return self.openings

    def get_verdicts(self, task: Hash32) -> Sequence[VerdictRecord]:
        return [record for record in self.verdicts if record.verdict.task == task]

    def get_milestones(self, task: Hash32) -> Sequence[MilestoneRecord]:
        return self.milestones

    def get_privacy(self, task: Hash32) -> PrivacyLoss | None:
        return PrivacyLoss(3.5, 1e-5, "patch", "per patch only")

    def get_peers(self) -> Sequence[PeerRecord]:
        head = self.get_head()
        height = head.header.height
        return [
            PeerRecord("127.0.0.1:2", "node2", "hospital-1", True, height, head.hash, 1.5, {"block": 10}, {})
        ]

    def get_blob(self, root: Hash32) -> BlobInfo | None:
        path = self.blobs.get(root)
        return (
            None if path is None else BlobInfo(BlobRef(root, path.stat().st_size), True, path.stat().st_size)
        )

    async def submit_transaction(self, data: bytes) -> Hash32:
        try:
            transaction = decode(SignedTransaction, data)
        except CodecError as error:
            raise RefusedTransaction("TX_MALFORMED", str(error)) from error
        if transaction.sender == Address(bytes(32)):
            raise RefusedTransaction("MEMPOOL_FULL", "the pool is full", "Wait")
        identifier = compute_transaction_id(transaction)
        self.mempool[identifier] = transaction
        return identifier

    # --- OperatorView -------------------------------------------------------------------------

    async def sign_and_submit(self, payload: Payload) -> Hash32:
        self.signed.append(payload)
        return await self.submit_transaction(encode(sign_transaction(CUSTODY, self.chain_id, 0, payload)))

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> BlobRef:
        data = b"".join([chunk async for chunk in chunks])
        hashes = [compute_chunk_hash(data[i : i + 2**20]) for i in range(0, len(data), 2**20)]
        ref = BlobRef(compute_blob_root(len(data), hashes), len(data))
        self.blobs[ref.root] = self.directory / ref.root.hex()
        self.blobs[ref.root].write_bytes(data)
        return ref

    def get_blob_path(self, root: Hash32) -> Path | None:
        return self.blobs.get(root)

    def build_ledger_snapshot(self, height: int | None) -> Iterator[bytes]:
        if height is not None:
            raise ViewError("no block near that height is proved final", "Ask for another height")
        yield from (b"bmif ", b"snapshot")

    def join_ceremony(self, ceremony: Hash32) -> None:
        if CUSTODY.address not in self.joinable:
            raise ViewError("this node's account is no member of it", "See `bmif custody status`")
        self.joined.append(ceremony)

    async def fetch_blob(self, ref: BlobRef) -> Path:
        raise ViewError("no peer has it", "Ask the contributor")
