"""The custody of federations: one sum a round, of the list that a final block fixed, and nothing else.

There is no call that takes an update or a list: what is opened follows from the chain alone. Before a sum is
opened a record of it is on disk, and a round with another record is never opened: two different sums of one
round would give away their difference. Noise is a function of the custody's secret and of what is opened, so
an opening that a crash interrupted comes out the same.
"""

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from consensus.codec import decode, encode
from consensus.federation import is_settleable
from consensus.federations import FederationRecord, OpenSum, RoundPhase
from consensus.task import BlobRef
from consensus.types import Hash32
from node.blobs import BlobError
from node.core import Core
from node.custody_keys import CustodyKeys
from node.federated_work import ApplyJob, FederatedWork, OpenJob, PatientPool
from node.federations import (
    RETRY_S,
    ClosedList,
    LivingFederations,
    Sender,
    add_listed,
    compute_round_owner,
    fetch_held,
    fetch_terms,
    get_federation_keys,
    get_final_list,
    put_made,
)
from node.settings import FederationSettings
from node.tasks import get_next_context
from workloads.base import WorkloadError

logger = logging.getLogger(__name__)

POLL_S = 1.0
OPENING_PREFIX = b"federation-opening/"
"""Of the records of what was opened, by round."""


class OpeningRefused(WorkloadError):
    """The sum is not one that may be opened."""


@dataclass(frozen=True, slots=True)
class OpeningRecord:
    """What of a round is opened; there is one, whatever happens."""

    federation: Hash32
    round: int
    digest: Hash32
    """Of the list."""
    total: Hash32
    opened: BlobRef | None
    """The result, once it is there."""
    model: BlobRef | None


class FederationCustody:
    """Serves every federation of this node's account."""

    def __init__(
        self,
        core: Core,
        data_dir: Path,
        settings: FederationSettings,
        work: FederatedWork,
        keys_dir: Path | None = None,
        keys: CustodyKeys | None = None,
    ) -> None:
        """`keys_dir` holds the federations' keys, `data_dir` if none is named; `keys` opens sealed ones."""
        self._core = core
        self._keys_dir = keys_dir or data_dir
        self._keys = keys or CustodyKeys(self._keys_dir)
        self._scratch = data_dir / "federations" / "scratch"
        self._work = work
        self._federations = LivingFederations(core)
        self._sums = PatientPool(settings.max_seconds, core.work.observer)
        # Its own process: nothing else is in the one that holds the secret key.
        self._opener = PatientPool(settings.max_seconds, core.work.observer)
        self._sender = Sender(core)
        self._turn = asyncio.Lock()
        self._running: dict[Hash32, asyncio.Task[None]] = {}
        core.drain.watch("sums to open", lambda: len(self._running))
        self._not_before: dict[Hash32, float] = {}
        self._refused: set[bytes] = set()

    @property
    def is_computing(self) -> bool:
        """Whether a worker process adds or opens."""
        return self._sums.is_busy or self._opener.is_busy

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        try:
            while True:
                for federation, record in self._federations.get():
                    if record.custody == self._core.address:
                        self._consider(federation, record)
                seen = await self._core.pulse.wait(seen, POLL_S)
        finally:
            for task in self._running.values():
                task.cancel()
            self._sums.close()
            self._opener.close()

    def _consider(self, federation: Hash32, record: FederationRecord) -> None:
        core, current = self._core, record.round
        if current.phase is not RoundPhase.SUMMING or current.total is None:
            return
        context = get_next_context(core.chain, core.clock.now_ms())
        is_over = is_settleable(core.chain.head_state, record, context)
        is_waiting = self._not_before.get(federation, 0.0) > core.clock.monotonic()
        if is_over or is_waiting or federation in self._running or core.drain.is_draining:
            return
        if compute_round_owner(federation, current.number) + current.total not in self._refused:
            self._running[federation] = asyncio.create_task(self._serve(federation, current.total))
            self._running[federation].add_done_callback(lambda _: self._running.pop(federation, None))

    async def _serve(self, federation: Hash32, total: Hash32) -> None:
        core = self._core
        try:
            opening = await self.open(federation)
        except BlobError as error:
            self._not_before[federation] = core.clock.monotonic() + RETRY_S
            logger.warning("a sum waits for its blobs: %s", error)
            return
        except (WorkloadError, OSError) as error:
            closed = get_final_list(core, federation)
            if closed is not None:
                self._refused.add(compute_round_owner(federation, closed.round) + total)
            logger.error("federation %s: nothing is opened: %s", federation.hex()[:12], error)
            return
        if opening is not None:
            self._sender.send(opening)

    async def open(self, federation: Hash32) -> OpenSum | None:
        """The one opening of the federation's current round; None while its list is not final or its sum is
        not confirmed.

        Raises: BlobError; WorkloadError if it may not be opened.
        """
        async with self._turn:
            return await self._open(federation)

    async def _open(self, federation: Hash32) -> OpenSum | None:
        core = self._core
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        record, closed = core.chain.head_state.get_federation(federation), get_final_list(core, federation)
        if record is None or closed is None or record.round.number != closed.round:
            return None
        total = record.round.total
        if total is None:
            return None
        self._check(record, closed)
        key = OPENING_PREFIX + compute_round_owner(federation, closed.round)
        wanted = OpeningRecord(federation, closed.round, closed.digest, total, None, None)
        found = core.chain.ledger.get_record(key)
        stored = None if found is None else decode(OpeningRecord, found)
        if stored is not None and replace(stored, opened=None, model=None) != wanted:
            raise OpeningRefused(f"another sum of round {closed.round} was opened; there is only one")
        if stored is None:
            await self._check_total(federation, record, closed, total)
            core.chain.ledger.put_record(key, encode(wanted))
        if stored is None or stored.opened is None or stored.model is None:
            stored = await self._decrypt(record, closed, wanted)
            core.chain.ledger.put_record(key, encode(stored))
            logger.info("opened the sum of %d updates, round %d", len(closed.updates), closed.round)
        if stored.opened is None or stored.model is None:
            raise AssertionError("unreachable")
        return OpenSum(federation, closed.round, total, stored.opened, stored.model)

    def _check(self, record: FederationRecord, closed: ClosedList) -> None:
        """Of an account's own federation, enough distinct participants with distinct updates."""
        create = record.create
        if record.custody != self._core.address:
            raise OpeningRefused("another account's federation")
        known = {item.address for item in create.participants}
        if not known.issuperset(closed.participants) or record.round.listed != closed.participants:
            raise OpeningRefused("the list is not the final one, of this federation's participants")
        distinct = min(len(set(closed.participants)), len({update.root for update in closed.updates}))
        if distinct < max(2, create.min_participants):
            # Copies of one update add nothing to hide it behind.
            raise OpeningRefused(f"{distinct} distinct updates, {create.min_participants} are needed")
        if record.openings >= create.max_openings:
            raise OpeningRefused(f"all {create.max_openings} openings are used up")

    async def _check_total(
        self, federation: Hash32, record: FederationRecord, closed: ClosedList, total: Hash32
    ) -> None:
        """Add the listed updates here: whatever others confirmed, only that sum is opened."""
        terms = await fetch_terms(self._core, federation, record.create)
        own = await add_listed(self._core, self._sums, self._work, terms, closed, self._scratch)
        if own.root != total:
            raise OpeningRefused(f"the confirmed sum {total.hex()} is not that of the list, {own.root.hex()}")

    async def _decrypt(
        self, record: FederationRecord, closed: ClosedList, wanted: OpeningRecord
    ) -> OpeningRecord:
        """Open, and make the model; both are blobs of this node then."""
        core, create = self._core, record.create
        terms = await fetch_terms(core, closed.federation, create)
        path = core.blobs.get_path(wanted.total)
        if path is None:
            await self._check_total(closed.federation, record, closed, wanted.total)
            path = core.blobs.get_path(wanted.total)
        if path is None:
            raise BlobError(f"the sum {wanted.total.hex()} is not here")
        output = self._scratch / f"{wanted.digest.hex()}.opened"
        model = self._scratch / f"{wanted.digest.hex()}.model"
        binding = core.chain.chain_id + encode(wanted)
        secret = get_federation_keys(self._keys_dir, create.keys.root)
        keys = await asyncio.to_thread(self._keys.unlock, "federations", secret.name)
        try:
            await self._opener.run(
                self._work.open_sum,
                OpenJob(terms, secret, path, closed.weights, len(closed.participants), binding, output, keys),
            )
            before = await fetch_held(core, closed.federation, record.model)
            await self._sums.run(self._work.apply, ApplyJob(terms, before, output, closed.weights, model))
            owner = compute_round_owner(closed.federation, closed.round)
            opened = await put_made(core, owner, output)
            made = await put_made(core, owner, model)
        finally:
            output.unlink(missing_ok=True)
            model.unlink(missing_ok=True)
        return replace(wanted, opened=opened, model=made)
