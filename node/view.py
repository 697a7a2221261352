"""What the REST API and the operator see of a running node: `NodeView` and `OperatorView` over the core."""

from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from consensus.codec import CodecError, decode, encode
from consensus.identifiers import compute_opening_hash
from consensus.params import ChainParams
from consensus.payload import Payload, Verdict
from consensus.state import State
from consensus.task import (
    BlobRef,
    OpenGradient,
    OpenLoss,
)
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import Hash32, Height
from consensus.vote import Checkpoint
from node.admission import Admission
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
from node.blobs import BlobError
from node.ceremonies import CeremonyError, join_ceremony
from node.config import NodeConfig
from node.core import Core
from node.events import EventBus
from node.gossip.http import PeerNetwork
from node.ledger.portable import SnapshotError
from node.ledger.schema import WORK_POSITION
from node.privacy import compute_privacy
from node.readiness import Links, ReadinessJudge
from node.snapshots import build_snapshot
from node.sync.ports import SyncProgress
from node.sync.serving import FinalityProver
from node.voting import VotingStatus

MAX_OPENINGS_KEPT = 4_096


class CoreView:
    """Reads of the core; every answer is of the moment it is asked."""

    def __init__(
        self,
        core: Core,
        network: PeerNetwork,
        info: NodeInfo,
        get_sync_progress: Callable[[], SyncProgress] | None = None,
        settings: NodeConfig | None = None,
    ) -> None:
        self._readiness = ReadinessJudge(core, None if settings is None else settings.ready)
        self._configured = 0 if settings is None else len({*settings.peer.peers, *settings.peer.seeds})
        self._get_sync_progress = get_sync_progress
        self._core = core
        self._network = network
        self._info = info
        self._openings: dict[tuple[Hash32, int], OpeningRecord | None] = {}

    @property
    def info(self) -> NodeInfo:
        return self._info

    @property
    def params(self) -> ChainParams:
        return self._core.chain.params

    @property
    def events(self) -> EventBus:
        return self._core.events

    def get_readiness(self) -> Readiness:
        connected = sum(peer.connected for peer in self._network.peers())
        links = Links(self._configured, connected, self.get_sync_target())
        return self._readiness.judge(links, self.get_sync_progress())

    def get_head(self) -> HeadRecord:
        return HeadRecord(self._core.chain.head_hash, self._core.chain.head)

    def get_justified(self) -> Checkpoint:
        return self._core.chain.justified

    def get_finalized(self) -> Checkpoint:
        return self._core.chain.finalized

    def get_voting(self) -> VotingStatus:
        return self._core.voting

    def get_state(self) -> State:
        return self._core.chain.head_state

    def get_sync_target(self) -> Height:
        peers = [peer for peer in self._network.peers() if peer.connected]
        heights = [peer.height for peer in peers if peer.height is not None]
        return Height(max([self._core.chain.head.height, *heights]))

    def get_sync_progress(self) -> SyncProgress | None:
        return None if self._get_sync_progress is None else self._get_sync_progress()

    def get_revision(self) -> Hashable:
        # Peers and workers change without a beat of the pulse.
        return self._core.pulse.version, int(10 * self._core.clock.monotonic())

    def get_base(self) -> Height:
        return self._core.chain.ledger.base

    def get_block(self, block: Hash32) -> BlockRecord | None:
        found = self._core.chain.get_block(block)
        return None if found is None else BlockRecord(block, found, len(encode(found)))

    def get_block_hash(self, height: Height) -> Hash32 | None:
        return self._core.chain.get_hash_by_height(height)

    def get_transaction(self, transaction: Hash32) -> TransactionRecord | None:
        core = self._core
        pending = core.mempool.get(transaction)
        if pending is not None:
            return TransactionRecord(transaction, pending)
        location = core.chain.ledger.find_transaction(transaction)
        if location is None:
            return None
        record = self.get_block(location.block)
        if record is None:
            return None
        found = record.block.body.transactions[location.position]
        return TransactionRecord(
            transaction, found, location.block, Height(location.height), location.position
        )

    def get_mempool(self) -> Sequence[TransactionRecord]:
        return [TransactionRecord(p.id, p.transaction) for p in self._core.mempool.get_all()]

    def get_openings(self, task: Hash32) -> Sequence[OpeningRecord]:
        return [
            replace(record, recomputed=self._get_recomputed(record.opening))
            for location in self._core.chain.ledger.iterate_subject(task)
            if location.position != WORK_POSITION
            and (record := self._load_opening(location.block, location.position)) is not None
        ]

    def _load_opening(self, block: Hash32, position: int) -> OpeningRecord | None:
        """The opening at a place in a block; kept, since clients ask for them again and again."""
        key = block, position
        if key not in self._openings:
            self._openings[key] = self._read_opening(block, position)
            while len(self._openings) > MAX_OPENINGS_KEPT:
                del self._openings[next(iter(self._openings))]
        return self._openings[key]

    def _read_opening(self, block: Hash32, position: int) -> OpeningRecord | None:
        found = self._core.chain.get_block(block)
        if found is None:
            return None
        transaction = found.body.transactions[position]
        opening = transaction.payload
        if not isinstance(opening, OpenGradient | OpenLoss):
            return None
        return OpeningRecord(
            compute_opening_hash(opening),
            opening,
            compute_transaction_id(transaction),
            block,
            found.header.height,
            found.header.time,
        )

    def _get_recomputed(self, opening: OpenGradient | OpenLoss) -> bool | None:
        if not isinstance(opening, OpenLoss):
            return None
        found = self._core.work.verdicts.find(opening.task, opening.step, opening.weights)
        return None if found is None else found == opening.ciphertext

    def get_milestones(self, task: Hash32) -> Sequence[MilestoneRecord]:
        records = []
        for location in self._core.chain.ledger.iterate_subject(task):
            if location.position != WORK_POSITION:
                continue
            record = self.get_block(location.block)
            if record is None or record.block.body.work is None:
                continue
            header = record.block.header
            records.append(
                MilestoneRecord(
                    record.block.body.work, location.block, header.height, header.time, header.proposer
                )
            )
        return records

    def get_verdicts(self, task: Hash32) -> Sequence[VerdictRecord]:
        records = []
        for location in self._core.chain.ledger.iterate_subject(task):
            if location.position == WORK_POSITION:
                continue
            found = self._core.chain.get_block(location.block)
            if found is None:
                continue
            transaction = found.body.transactions[location.position]
            if isinstance(transaction.payload, Verdict):
                identifier = compute_transaction_id(transaction)
                height = found.header.height
                records.append(VerdictRecord(transaction.payload, transaction.sender, identifier, height))
        return records

    def get_privacy(self, task: Hash32) -> PrivacyLoss | None:
        definition = self._core.get_definition(task)
        state = self._core.chain.head_state.get_task(task)
        return None if definition is None or state is None else compute_privacy(definition, state)

    def get_peers(self) -> Sequence[PeerRecord]:
        return [
            PeerRecord(
                peer.address,
                peer.node_id,
                peer.organisation,
                peer.connected,
                None if peer.height is None else Height(peer.height),
                peer.head,
                peer.latency_ms,
                peer.received_bytes,
                peer.sent_bytes,
            )
            for peer in self._network.peers()
        ]

    def get_blob(self, root: Hash32) -> BlobInfo | None:
        info = self._core.blobs.get_info(root)
        return None if info is None else BlobInfo(info.ref, info.complete, info.held_bytes)

    def get_blob_path(self, root: Hash32) -> Path | None:
        return self._core.blobs.get_path(root)

    async def submit_transaction(self, data: bytes) -> Hash32:
        try:
            transaction = decode(SignedTransaction, data)
        except CodecError as error:
            raise RefusedTransaction(
                "TX_MALFORMED", str(error), "Send the canonical msgpack bytes of a signed transaction"
            ) from error
        return _require(self._core.admit(transaction))


class CoreOperator:
    """What the operator may do: sign with the node's key, put and fetch blobs."""

    def __init__(self, core: Core, *, is_custody: bool = False) -> None:
        self._core = core
        self._is_custody = is_custody

    async def sign_and_submit(self, payload: Payload) -> Hash32:
        return _require(self._core.admit(self._core.sign(payload)))

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> BlobRef:
        try:
            return await self._core.blobs.put_stream(chunks)
        except BlobError as error:
            remedy = "Free room in the blob store or raise limits.blob_quota_bytes"
            raise ViewError(str(error), remedy) from error

    def get_blob_path(self, root: Hash32) -> Path | None:
        return self._core.blobs.get_path(root)

    def build_ledger_snapshot(self, height: int | None) -> Iterator[bytes]:
        try:
            yield from build_snapshot(self._core.chain, FinalityProver(self._core.chain), height)[1]
        except SnapshotError as error:
            raise ViewError(str(error), "Ask for another height, or another node") from error

    def join_ceremony(self, ceremony: Hash32) -> None:
        if not self._is_custody:
            remedy = "Add the role `custody` to its settings and restart it"
            raise ViewError("this node is no custody", remedy)
        try:
            join_ceremony(self._core, ceremony)
        except CeremonyError as error:
            raise ViewError(str(error), "See `bmif custody status`") from error

    async def fetch_blob(self, ref: BlobRef) -> Path:
        try:
            return await self._core.fetcher.fetch(ref)
        except BlobError as error:
            raise ViewError(str(error), "Wait until a peer that has the blob is connected") from error


def _require(admission: Admission) -> Hash32:
    if not admission.accepted:
        raise RefusedTransaction(admission.reason, admission.detail)
    return admission.id
