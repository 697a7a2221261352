"""Evidence by recomputation: what a validator computed itself, it may say of others on the chain.

Whoever finds a bundle or a loss wrong sends the first accusation. The other validators react to it: cheap
checks first, then they compute the same themselves and send their own. Two thirds of stake make it effective
(DESIGN 3.5, 6). A batch of a step is computed once however many of its claims are called wrong, a false
accusation is remembered, and who made too many is not listened to any more.
"""

import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from consensus.claims import verify_claim
from consensus.codec import decode, encode
from consensus.evidence import compute_accusation_id
from consensus.identifiers import compute_weights_digest
from consensus.payload import Accuse, WrongBundle, WrongLoss
from consensus.publication import get_step_batches
from consensus.records import AccusationRecord
from consensus.transaction import SignedTransaction
from consensus.types import Address, Hash32
from consensus.work import LossCheck
from node.blobs import BlobError
from node.canonical import compute_canonical_root
from node.chain import HeadChange
from node.core import Core
from node.history import find_weights
from node.work import MissingBlob
from workloads.base import WorkloadError

logger = logging.getLogger(__name__)

POLL_S = 2.0
RETRY_S = 10.0
"""After which an accusation is looked at again whose step or blobs are not here yet."""
MAX_WAITING = 256
MAX_WAITING_EACH = 16
"""Of one accuser: nobody can fill the queue alone."""
MAX_DISMISSED = 8
"""False accusations after which an accuser is not listened to any more."""
MAX_SEEN = 4_096
OWN_PREFIX = b"accused/"
DISMISSED_PREFIX = b"dismissed/"


@dataclass(slots=True)
class _Waiting:
    accuser: Address
    accusation: WrongBundle | WrongLoss
    due: float
    """Monotonic time of the next look."""


def accuse(core: Core, accusation: WrongBundle | WrongLoss) -> bool:
    """Store an accusation of this node's own and send it, if it is a validator; True if it was sent."""
    if not core.chain.head_state.get_stake(core.address):
        return False
    transaction = core.sign(Accuse(accusation))
    key = OWN_PREFIX + compute_accusation_id(accusation)
    if core.chain.ledger.get_record(key) is None:
        core.chain.ledger.put_record(key, encode(transaction))
    return core.admit(transaction).accepted


class Accuser:
    """Looks into the accusations of others, one after the other, and sends this validator's own again
    until they are on the chain."""

    def __init__(self, core: Core, scratch: Path) -> None:
        self._core = core
        self._scratch = scratch
        self._waiting: OrderedDict[Hash32, _Waiting] = OrderedDict()
        self._seen: OrderedDict[Hash32, None] = OrderedDict()
        self._dismissed: Counter[Address] = Counter()
        for key, _ in core.chain.ledger.iterate_records(DISMISSED_PREFIX):
            self._dismissed[_get_accuser(key)] += 1
        core.admissions.on_transaction(self._notice)
        core.chain.on_head_change(self._on_head)

    async def run(self) -> None:
        """Until cancelled."""
        self._catch_up()
        seen = -1
        while True:
            self._resend()
            await self._look()
            seen = await self._core.pulse.wait(seen, POLL_S)

    # --- which accusations --------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Accusations that came to the chain while this node was away."""
        chain = self._core.chain
        for task in chain.head_state.get_tasks():
            for location in chain.ledger.iterate_subject(task):
                block = chain.get_block(location.block)
                if block is not None and 0 <= location.position < len(block.body.transactions):
                    self._notice(block.body.transactions[location.position])

    def _on_head(self, change: HeadChange) -> None:
        for block in change.connected:
            for transaction in block.body.transactions:
                self._notice(transaction)

    def _notice(self, transaction: SignedTransaction) -> None:
        """Queue what is worth a computation. All checks here are cheap."""
        payload, accuser = transaction.payload, transaction.sender
        if not isinstance(payload, Accuse) or accuser == self._core.address:
            return
        identifier = compute_accusation_id(payload.accusation)
        if identifier in self._seen or self._dismissed[accuser] >= MAX_DISMISSED:
            return
        each = sum(waiting.accuser == accuser for waiting in self._waiting.values())
        if each >= MAX_WAITING_EACH or len(self._waiting) >= MAX_WAITING:
            return  # noticed again when it comes to the chain
        if not self._is_plausible(accuser, identifier, payload.accusation):
            return
        self._waiting[identifier] = _Waiting(accuser, payload.accusation, 0.0)
        self._seen[identifier] = None
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    def _is_plausible(
        self, accuser: Address, identifier: Hash32, accusation: WrongBundle | WrongLoss
    ) -> bool:
        core = self._core
        state = core.chain.head_state
        if not state.get_stake(core.address) or not state.get_stake(accuser):
            return False
        record = state.get_accusation(identifier) or AccusationRecord((), 0, took_effect=False)
        if record.took_effect or core.address in record.signers:
            return False
        if core.chain.ledger.get_record(_get_dismissed_key(accuser, identifier)) is not None:
            return False
        if isinstance(accusation, WrongLoss):
            return state.get_task(accusation.opening.task) is not None
        claim = accusation.claim
        if claim.bundle.root == accusation.canonical:
            return False
        publication = state.get_publication(claim.task)
        if (
            publication is None
            or claim.step < 0
            or claim.batch not in get_step_batches(publication, claim.step)
        ):
            return False
        is_active = state.may_account_mine(claim.miner)  # a suspended organisation can't be suspended again
        return is_active and verify_claim(core.chain.chain_id, claim)

    # --- looking into them --------------------------------------------------------------------

    async def _look(self) -> None:
        now = self._core.clock.monotonic()
        for identifier, waiting in list(self._waiting.items()):
            if waiting.due > now:
                continue
            try:
                is_settled = await self._judge(identifier, waiting)
            except (BlobError, MissingBlob) as error:
                logger.warning("an accusation can't be looked into yet: %s", error)
                is_settled = False
            except WorkloadError as error:
                logger.error("an accusation can't be looked into: %s", error)
                is_settled = True
            if is_settled:
                del self._waiting[identifier]
            else:
                waiting.due = self._core.clock.monotonic() + RETRY_S

    async def _judge(self, identifier: Hash32, waiting: _Waiting) -> bool:
        """False if what it takes is not here yet."""
        accusation = waiting.accusation
        canonical = (
            await self._recompute_bundle(accusation)
            if isinstance(accusation, WrongBundle)
            else await self._recompute_loss(accusation)
        )
        if canonical is None:
            return False
        claimed = (
            accusation.claim.bundle.root
            if isinstance(accusation, WrongBundle)
            else accusation.opening.ciphertext
        )
        if canonical == claimed:
            logger.warning("a false accusation by %s", waiting.accuser.hex()[:12])
            self._dismissed[waiting.accuser] += 1
            self._core.chain.ledger.put_record(_get_dismissed_key(waiting.accuser, identifier), b"1")
        else:
            logger.warning("an accusation is right: %s", type(accusation).__name__)
            # With this node's own result: the accuser's may be wrong, too.
            accuse(self._core, replace(accusation, canonical=canonical))
        return True

    async def _recompute_bundle(self, accusation: WrongBundle) -> Hash32 | None:
        core, claim = self._core, accusation.claim
        definition = core.get_definition(claim.task)
        weights = find_weights(core.chain, claim.task, claim.step)
        if definition is None or weights is None:
            return None
        return await compute_canonical_root(core, definition, claim.batch, weights, self._scratch)

    async def _recompute_loss(self, accusation: WrongLoss) -> Hash32 | None:
        core, opening = self._core, accusation.opening
        definition = core.get_definition(opening.task)
        weights = find_weights(core.chain, opening.task, opening.step)
        if definition is None or weights is None or compute_weights_digest(weights) != opening.weights:
            return None  # a loss at other weights than the chain's: nothing that could be compared
        await core.hold_validation(definition)
        check = LossCheck(opening.task, opening.step, weights)
        return (await core.work.compute_verdict(definition, check)).ciphertext

    # --- this node's own ----------------------------------------------------------------------

    def _resend(self) -> None:
        core = self._core
        state = core.chain.head_state
        for key, data in list(core.chain.ledger.iterate_records(OWN_PREFIX)):
            record = state.get_accusation(Hash32(key[len(OWN_PREFIX) :]))
            if record is not None and (record.took_effect or core.address in record.signers):
                core.chain.ledger.delete_record(key)
                continue
            transaction = decode(SignedTransaction, data)
            if core.is_pending(transaction):
                continue
            admission = core.admit(transaction)
            if not admission.accepted and admission.reason not in ("KNOWN", "MEMPOOL_FULL"):
                logger.warning("own accusation is refused for good: %s", admission.reason)
                core.chain.ledger.delete_record(key)


def _get_dismissed_key(accuser: Address, accusation: Hash32) -> bytes:
    return DISMISSED_PREFIX + accuser + accusation


def _get_accuser(key: bytes) -> Address:
    start = len(DISMISSED_PREFIX)
    return Address(key[start : start + 32])
