"""A member's service of key ceremonies: commits, shows, and puts the keys together, round by round (ADR 24).

It takes part only in what its operator has joined. Contributions are made by worker processes, in a folder
that holds what is secret of them; a contribution and its salt are on disk before the commitment is sent, so
that a member that restarts, or whose transaction was lost with a fork, never commits to anything else.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from consensus.ceremonies import (
    ROUNDS,
    SALT_BYTES,
    CeremonyRecord,
    CeremonyStatus,
    CommitRound,
    ConfirmCeremony,
    CreateCeremony,
    EndCeremony,
    RevealRound,
)
from consensus.ceremony import compute_commitment, find_dealers, is_committed
from consensus.task import BlobRef
from consensus.types import ZERO_HASH, Hash32
from node.blobs import BlobError
from node.canonical import compute_file_root
from node.core import Core
from node.custody_keys import CustodyKeys, make_sealing_key
from node.federations import REPEAT_S, RETRY_S, Sender
from node.keystore_files import KeyFileError
from node.passphrase import Purpose, get_passphrase
from node.work import WorkerPool
from workloads import ceremony as work
from workloads import sealed
from workloads.base import WorkloadError
from workloads.ceremony import CeremonyTerms, RefusedError, Renewal, RoundJob
from workloads.sealed import PLAIN, SealingKey

logger = logging.getLogger(__name__)

R = TypeVar("R")

POLL_S = 1.0
PLACE = "committees"
"""The folder of ceremonies among the custody's keys."""
_JOINED = b"ceremony/joined/"
_SALT = b"ceremony/salt/"
_CLOSED = b"ceremony/closed/"
_KEPT, _RETIRED = b"1", b"2"
"""Of one that is closed: with the share, if it is ready; without."""


class CeremonyError(Exception):
    """A ceremony can't be joined; says why, and what to do."""


def build_terms(
    core: Core, ceremony: Hash32, record: CeremonyRecord, *, allow_insecure: bool = False
) -> CeremonyTerms:
    """What this node's worker knows of a ceremony. Raises: WorkloadError."""
    create = record.create
    place = create.members.index(core.address)
    return CeremonyTerms(
        ceremony, create.preset, len(create.members), create.threshold, place, allow_insecure
    )


def join_ceremony(core: Core, ceremony: Hash32, *, allow_insecure: bool = False) -> None:
    """Have this node take part from now on; once is enough. Raises: CeremonyError."""
    record = core.chain.head_state.get_ceremony(ceremony)
    if record is None:
        raise CeremonyError("no such ceremony on the chain; wait until its transaction is in a block")
    if core.address not in record.create.members:
        raise CeremonyError("this node's account is no member of it; its members are on /v1/ceremonies")
    if record.status is not CeremonyStatus.RUNNING:
        raise CeremonyError(f"it is {record.status.value}; members can create another one")
    try:
        build_terms(core, ceremony, record, allow_insecure=allow_insecure).get_params()
    except WorkloadError as error:
        raise CeremonyError(f"{error}; whoever created it can create another one") from error
    core.chain.ledger.put_record(_JOINED + ceremony, b"1")
    core.pulse.beat()


def get_ceremony_folder(keys_dir: Path, ceremony: Hash32) -> Path:
    """Where a member keeps what is secret of a ceremony, and its share of the keys afterwards."""
    return keys_dir / PLACE / ceremony.hex()


class Ceremonies:
    """Serves every ceremony that this node's operator has joined."""

    def __init__(
        self,
        core: Core,
        keys_dir: Path,
        *,
        encrypted: bool = False,
        allow_insecure: bool = False,
        keys: CustodyKeys | None = None,
    ) -> None:
        """`encrypted`: new keys are sealed with the custody's passphrase; `allow_insecure`: test presets;
        `keys` opens shares that are renewed."""
        self._core = core
        self._keys_dir = keys_dir
        self._keys = CustodyKeys(keys_dir) if keys is None else keys
        self._encrypted = encrypted
        self._allow_insecure = allow_insecure
        self._pool = WorkerPool(1, "ceremony", core.work.observer)
        self._computing = 0
        self._sender = Sender(core)
        self._running: dict[Hash32, asyncio.Task[None]] = {}
        self._not_before: dict[Hash32, float] = {}
        self._sealing: dict[Hash32, SealingKey | None] = {}
        self._sent: dict[Hash32, tuple[tuple[int, str], float]] = {}
        """The last step of each ceremony, and when it is taken again."""
        core.drain.watch("key ceremonies", lambda: len(self._running))

    @property
    def is_computing(self) -> bool:
        """Whether a worker process makes a contribution or keys."""
        return self._computing > 0

    async def run(self) -> None:
        """Until cancelled."""
        seen = -1
        try:
            while True:
                for key, _ in list(self._core.chain.ledger.iterate_records(_JOINED)):
                    self._consider(Hash32(key[len(_JOINED) :]))
                seen = await self._core.pulse.wait(seen, POLL_S)
        finally:
            for task in self._running.values():
                task.cancel()
            self._pool.close()

    def _consider(self, ceremony: Hash32) -> None:
        core = self._core
        record = core.chain.head_state.get_ceremony(ceremony)
        is_waiting = self._not_before.get(ceremony, 0.0) > core.clock.monotonic()
        if record is None or ceremony in self._running or is_waiting or core.drain.is_draining:
            return
        closed = core.chain.ledger.get_record(_CLOSED + ceremony)
        if closed is None or (closed == _KEPT and record.renewed_by != ZERO_HASH):
            self._running[ceremony] = asyncio.create_task(self._serve(ceremony, record))
            self._running[ceremony].add_done_callback(lambda _: self._running.pop(ceremony, None))

    async def _serve(self, ceremony: Hash32, record: CeremonyRecord) -> None:
        """What can be done now."""
        try:
            if record.status is CeremonyStatus.RUNNING:
                await self._take_part(ceremony, record)
            elif not self._is_settled(ceremony, record):
                return
            elif self._core.chain.ledger.get_record(_CLOSED + ceremony) is None:
                await self._close(ceremony, record)
            else:
                await self._retire(ceremony, record)
        except BlobError as error:
            self._wait(ceremony, f"waits for a contribution: {error}")
        except RefusedError as error:
            # Nothing cures a wrong contribution; all learn that this attempt is over.
            logger.error("ceremony %s is given up: %s", ceremony.hex()[:12], error)
            self._sender.send(EndCeremony(ceremony))
        except (WorkloadError, KeyFileError, OSError) as error:
            self._wait(ceremony, f"can't go on here: {error}")

    def _wait(self, ceremony: Hash32, why: str) -> None:
        self._not_before[ceremony] = self._core.clock.monotonic() + RETRY_S
        self._sent.pop(ceremony, None)
        logger.warning("ceremony %s %s", ceremony.hex()[:12], why)

    # --- rounds -------------------------------------------------------------------------------

    async def _take_part(self, ceremony: Hash32, record: CeremonyRecord) -> None:
        core = self._core
        if core.clock.now_ms() >= record.create.deadline:
            self._sender.send(EndCeremony(ceremony))
            return
        number, member = record.round, core.address
        if number == len(ROUNDS):
            has_confirmed = any(item.member == member for item in record.confirmations)
            if not has_confirmed and self._begin(ceremony, number, "confirm"):
                await self._confirm(ceremony, record)
            return
        is_shown = any(item.member == member for item in record.reveals)
        has_committed = any(item.member == member for item in record.commitments)
        if is_shown or (has_committed and not is_committed(core.chain.head_state, record)):
            return
        if not self._begin(ceremony, number, "reveal" if has_committed else "commit"):
            return
        path = await self._run_round(ceremony, record)
        root, salt = await asyncio.to_thread(compute_file_root, path), self._get_salt(ceremony, number)
        if has_committed:
            blob = await core.blobs.put_file(path)
            self._sender.send(RevealRound(ceremony, number, blob, salt))
        else:
            logger.info("ceremony %s: committed to %s", ceremony.hex()[:12], ROUNDS[number])
            commitment = compute_commitment(ceremony, number, member, root, salt)
            self._sender.send(CommitRound(ceremony, number, commitment))

    def _begin(self, ceremony: Hash32, number: int, step: str) -> bool:
        """False while what was sent of this step waits for a block: nothing is read and checked again."""
        now, wanted = self._core.clock.monotonic(), (number, step)
        sent, again_at = self._sent.get(ceremony, (None, 0.0))
        if sent == wanted and now < again_at:
            return False
        self._sent[ceremony] = (wanted, now + REPEAT_S)
        return True

    def _get_salt(self, ceremony: Hash32, number: int) -> bytes:
        """The salt of one commitment, drawn once."""
        ledger, key = self._core.chain.ledger, _SALT + ceremony + bytes([number])
        salt = ledger.get_record(key)
        if salt is None:
            salt = secrets.token_bytes(SALT_BYTES)
            ledger.put_record(key, salt)
        return salt

    async def _run_round(self, ceremony: Hash32, record: CeremonyRecord) -> Path:
        return await self._compute(work.run_round, ceremony, record)

    async def _compute(
        self, step: Callable[[RoundJob, SealingKey | None], R], ceremony: Hash32, record: CeremonyRecord
    ) -> R:
        job, key = await self._build_job(ceremony, record), await self._get_sealing(ceremony)
        self._computing += 1
        try:
            return await self._pool.run(step, job, key)
        finally:
            self._computing -= 1

    async def _confirm(self, ceremony: Hash32, record: CeremonyRecord) -> None:
        made = await self._compute(work.run_finish, ceremony, record)
        blobs = self._core.blobs
        public, relin = await blobs.put_file(made.public_key), await blobs.put_file(made.relin_keys)
        logger.info("ceremony %s: all answers are right", ceremony.hex()[:12])
        self._sender.send(ConfirmCeremony(ceremony, public, relin, Hash32(made.box_key)))

    async def _build_job(self, ceremony: Hash32, record: CeremonyRecord) -> RoundJob:
        """The next step, with the contributions of the rounds before. Raises: BlobError, WorkloadError."""
        terms = build_terms(self._core, ceremony, record, allow_insecure=self._allow_insecure)
        paths: list[tuple[Path, ...]] = []
        for name, blobs in zip(ROUNDS, record.contributions, strict=False):
            for other, blob in enumerate(blobs):
                self._check_length(terms, other, name, blob)
            paths.append(tuple([await self._core.fetcher.fetch(blob) for blob in blobs]))
        renewal = None if record.create.renews == ZERO_HASH else await self._build_renewal(record.create)
        return RoundJob(terms, get_ceremony_folder(self._keys_dir, ceremony), tuple(paths), renewal)

    async def _build_renewal(self, create: CreateCeremony) -> Renewal:
        """Raises: BlobError, WorkloadError, OSError."""
        core = self._core
        old = core.chain.head_state.get_ceremony(create.renews)
        if old is None or not old.confirmations:
            raise WorkloadError(f"ceremony {create.renews.hex()[:12]}, which it renews, has no keys")
        made, dealers = old.confirmations[0], find_dealers(old.create, create)
        public_key = await core.fetcher.fetch(made.public_key)
        relin_keys = await core.fetcher.fetch(made.relin_keys)
        folder, keys = None, PLAIN
        if core.address in dealers:
            folder = get_ceremony_folder(self._keys_dir, create.renews)
            keys = await asyncio.to_thread(self._keys.unlock, PLACE, folder.name)
        new_places = tuple(create.members.index(member) for member in dealers)
        old_places = tuple(old.create.members.index(member) for member in dealers)
        return Renewal(public_key, relin_keys, new_places, old_places, folder, keys)

    @staticmethod
    def _check_length(terms: CeremonyTerms, place: int, name: str, blob: BlobRef) -> None:
        """Before it is fetched."""
        expected = terms.get_bytes_of(place, name)
        if blob.length != expected:
            raise RefusedError(
                f"{name}: the contribution of place {place} has {blob.length} bytes, not {expected}"
            )

    async def _get_sealing(self, ceremony: Hash32) -> SealingKey | None:
        """What the ceremony's secrets are sealed with. Raises: KeyFileError, WorkloadError."""
        if ceremony not in self._sealing:
            self._sealing[ceremony] = await asyncio.to_thread(self._find_sealing, ceremony)
        return self._sealing[ceremony]

    def _find_sealing(self, ceremony: Hash32) -> SealingKey | None:
        folder = get_ceremony_folder(self._keys_dir, ceremony)
        header = work.find_seal(folder)
        if header is not None:
            passphrase = get_passphrase(Purpose.CUSTODY, f"the custody's keys ({folder})")
            return sealed.unlock(header, passphrase.reveal())
        return make_sealing_key(self._keys_dir, encrypted=self._encrypted)

    # --- the end ------------------------------------------------------------------------------

    def _is_settled(self, ceremony: Hash32, record: CeremonyRecord) -> bool:
        """True if the end is in a final state: on another fork the ceremony could still go on."""
        chain = self._core.chain
        if not chain.has_state(chain.finalized.hash):
            return False
        final = chain.get_state(chain.finalized.hash).get_ceremony(ceremony)
        known = (record.status, record.renewed_by)
        return final is not None and (final.status, final.renewed_by) == known

    async def _close(self, ceremony: Hash32, record: CeremonyRecord) -> None:
        """Of a ceremony that is ready the share and the keys stay; of any other nothing."""
        core, folder = self._core, get_ceremony_folder(self._keys_dir, ceremony)
        # A share of keys that no task can ever name goes, too.
        failed = record.status is not CeremonyStatus.READY
        await asyncio.to_thread(work.forget, folder, failed=failed)
        shown = [blob for blobs in record.contributions for blob in blobs]
        for blob in [*shown, *(item.contribution for item in record.reveals)]:
            core.blobs.remove(blob.root)
        salts = [key for key, _ in core.chain.ledger.iterate_records(_SALT + ceremony)]
        core.chain.ledger.put_records({_CLOSED + ceremony: _KEPT}, salts)
        self._sealing.pop(ceremony, None)
        logger.info("ceremony %s is %s", ceremony.hex()[:12], record.status.value)

    async def _retire(self, ceremony: Hash32, record: CeremonyRecord) -> None:
        """Others have the shares of its keys now, or this node another one: the old one is erased."""
        folder = get_ceremony_folder(self._keys_dir, ceremony)
        await asyncio.to_thread(work.forget, folder, failed=True)
        self._core.chain.ledger.put_record(_CLOSED + ceremony, _RETIRED)
        names = ceremony.hex()[:12], record.renewed_by.hex()[:12]
        logger.info("the share of ceremony %s is erased: %s has renewed it", *names)
