"""Federations as a node's services see them: those that run, what of them is final, their blobs and terms."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.federations import CreateFederation, FederationRecord, FederationStatus, RoundRecord
from consensus.payload import Payload
from consensus.task import BlobRef
from consensus.transaction import compute_transaction_id
from consensus.types import Address, Hash32
from node.core import Core
from node.federated_work import FederatedWork, PatientPool, Terms
from node.gossip.messages import Kind
from node.jobs import note_held, note_made

logger = logging.getLogger(__name__)

REPEAT_S = 5.0
RETRY_S = 20.0
"""Before blobs that could not be had, and transactions that were refused, are tried again."""
PATIENCE_S = 60.0
"""How long a blob may be on its way without a new chunk."""


class LivingFederations:
    """The federations of the head's state that have not ended; each look costs only what is new."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._head: Hash32 | None = None
        self._height = 0
        self._scanned = 0
        self._living: dict[Hash32, FederationRecord] = {}

    def get(self) -> list[tuple[Hash32, FederationRecord]]:
        """Oldest first."""
        chain = self._core.chain
        if self._head != chain.head_hash:
            self._refresh()
        return list(self._living.items())

    def _refresh(self) -> None:
        chain = self._core.chain
        if self._head is None or chain.get_hash_by_height(self._height) != self._head:
            # Another branch may number its federations in another way.
            self._living, self._scanned = {}, 0
        state = chain.head_state
        candidates = list(self._living)
        for number in range(self._scanned, state.get_federation_count()):
            found = state.get_federation_id(number)
            if found is not None:
                candidates.append(found)
        records = ((identifier, state.get_federation(identifier)) for identifier in candidates)
        self._living = {
            identifier: record
            for identifier, record in records
            if record is not None and record.status is FederationStatus.RUNNING
        }
        self._scanned = state.get_federation_count()
        self._head, self._height = chain.head_hash, chain.head.height


@dataclass(frozen=True, slots=True)
class ClosedList:
    """A round's list as a final block has it: nobody can change it any more."""

    federation: Hash32
    round: int
    participants: tuple[Address, ...]
    updates: tuple[BlobRef, ...]
    weights: int
    """Sum of theirs."""

    @property
    def digest(self) -> Hash32:
        """Of who is listed with which bytes."""
        listed = b"".join(
            address + encode(update) for address, update in zip(self.participants, self.updates, strict=True)
        )
        return hash_domain("federation-list", self.federation + self.round.to_bytes(8, "big") + listed)


def get_final_list(core: Core, federation: Hash32) -> ClosedList | None:
    """The current round's list, read from the state after the last final block; None before it is there.

    Never from the head's: a list that a fork can still exchange is no list.
    """
    chain = core.chain
    if not chain.has_state(chain.finalized.hash):
        return None
    record = chain.get_state(chain.finalized.hash).get_federation(federation)
    if record is None or record.status is not FederationStatus.RUNNING or not record.round.listed:
        return None
    return build_list(federation, record)


def build_list(federation: Hash32, record: FederationRecord) -> ClosedList:
    """Who is listed in the record's round, in its order."""
    updates = {item.participant: item.update for item in record.round.submissions}
    weights = {item.address: item.weight for item in record.create.participants}
    listed = record.round.listed
    return ClosedList(
        federation,
        record.round.number,
        listed,
        tuple(updates[address] for address in listed),
        sum(weights[address] for address in listed),
    )


class Sender:
    """Sends each transaction once. One that waits long is announced again, for links may have been down; one
    that is refused is tried again after a while."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._not_before: dict[bytes, float] = {}

    def send(self, payload: Payload) -> None:
        core, key, now = self._core, encode(payload), self._core.clock.monotonic()
        if self._not_before.get(key, 0.0) > now:
            return
        transaction = core.sign(payload)
        self._not_before[key] = now + REPEAT_S
        if core.is_pending(transaction):
            core.announce(Kind.TRANSACTION, compute_transaction_id(transaction), encode(transaction))
            return
        admission = core.admit(transaction)
        if not admission.accepted and not admission.known:
            self._not_before[key] = now + RETRY_S
            logger.warning("%s refused: %s %s", type(payload).__name__, admission.reason, admission.detail)

    def forget(self) -> None:
        """Nothing that was sent matters any more."""
        self._not_before.clear()


# --- blobs --------------------------------------------------------------------------------------


def compute_round_owner(federation: Hash32, number: int) -> Hash32:
    """Under which the blobs of one round are held: they go before the federation's own."""
    return hash_domain("federation-round", federation + number.to_bytes(8, "big"))


def iterate_federation_roots(record: FederationRecord) -> Iterator[Hash32]:
    """What all rounds need, and the model that stands."""
    create = record.create
    yield from (create.network.root, create.keys.root, create.model.root, record.model.root)


def iterate_round_roots(record: RoundRecord) -> Iterator[Hash32]:
    """Every blob that a round names: updates, their sum, what was opened, the model made of it."""
    for item in record.submissions:
        yield item.update.root
    for vote in record.sums:
        yield vote.total
    for ref in (record.opened, record.model):
        if ref is not None:
            yield ref.root


async def fetch_held(core: Core, owner: Hash32, ref: BlobRef) -> Path:
    """The blob's file, held for this federation or round. Raises: BlobError."""
    note_held(core, owner, ref.root)
    return await core.fetcher.fetch(ref, patience_s=PATIENCE_S)


async def put_made(core: Core, owner: Hash32, path: Path) -> BlobRef:
    """The file as a blob of this node, made for this federation or round; the file is gone."""
    ref = await core.blobs.put_file(path, move=True)
    note_made(core, owner, ref.root)
    return ref


async def fetch_terms(core: Core, federation: Hash32, create: CreateFederation) -> Terms:
    """Raises: BlobError."""
    return Terms(
        network=await fetch_held(core, federation, create.network),
        keys=await fetch_held(core, federation, create.keys),
        parameters=create.parameters,
        weights=sum(item.weight for item in create.participants),
        clip=create.clip,
        noise_std=create.noise_std,
        update_bytes=create.update_bytes,
    )


async def add_listed(
    core: Core, pool: PatientPool, work: FederatedWork, terms: Terms, closed: ClosedList, scratch: Path
) -> BlobRef:
    """The sum of the listed updates as a blob of this node; every one is checked as it is added.

    Raises: BlobError, WorkloadError.
    """
    owner = compute_round_owner(closed.federation, closed.round)
    paths = []
    for update in closed.updates:
        paths.append(await fetch_held(core, owner, update))
    output = scratch / f"{closed.digest.hex()}.sum"
    try:
        await pool.run(work.add_updates, terms, tuple(paths), output)
        return await put_made(core, owner, output)
    finally:
        output.unlink(missing_ok=True)


def get_federation_keys(data_dir: Path, public_key: Hash32) -> Path:
    """Where the custody keeps a federation's secret: named by the root of the public key it belongs to."""
    return data_dir / "federations" / public_key.hex()
