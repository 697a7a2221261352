"""A member's work on one step of a task: what it hears and checks, and the openings it takes part in.

Miners' seals and told roots confirm bundles; a confirmed bundle is fetched, and a share of them, drawn by a
secret of this member, computed anew, before the member says that it is ready. The loss is computed by every
member itself.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path

from consensus.claims import compute_seal
from consensus.crypto import hash_domain
from consensus.identifiers import compute_opening_hash, compute_weights_digest
from consensus.openings import is_loss_due
from consensus.payload import WrongBundle
from consensus.task import BlobRef, OpenGradient, OpenLoss
from consensus.types import Hash32, Millis
from consensus.work import LossCheck
from node.accuser import accuse
from node.blobs import BlobError
from node.canonical import compute_canonical_root
from node.committee.boxes import BoxError
from node.committee.choice import Suspects
from node.committee.confirmation import Confirmations, check_gradient
from node.committee.member import MemberSealer, OpeningMember, must_recompute
from node.committee.messages import (
    Content,
    GradientContent,
    LossContent,
    MessageError,
    OpeningKind,
    RoundMessage,
    get_sender,
    open_told,
)
from node.committee.ports import Effects, Opened
from node.committee.share import HeldShare
from node.committee.stakes import build_stakes
from node.committee.terms import Terms, Waits
from node.committee.work import OpeningWorkers
from node.core import Core
from node.tasks import TaskDefinition, TaskTip
from node.work import WorkerPool
from workloads.base import WorkloadError, get_workload
from workloads.committee_opener import get_moduli

logger = logging.getLogger(__name__)

FETCH_S = 5.0
"""How long a confirmed bundle is waited for at a time."""
RETRY_S = 5.0
SUBMIT_S = 2.0
"""After which an opening that is not pending any more is sent again."""


@dataclass(frozen=True, slots=True)
class MemberSettings:
    """How a member checks and waits."""

    recompute: int = 2_500
    """Of confirmed bundles computed anew, in ten-thousandths."""
    waits: Waits = field(default_factory=Waits)
    keep_bundles: bool = False


@dataclass(slots=True)
class _Opening:
    """One kind's, as far as it has come."""

    member: OpeningMember
    fed: set[bytes] = field(default_factory=set)
    """Signatures of messages that were given to it."""
    content: Content | None = None
    begun: float = 0.0
    checked: float = 0.0
    """When this member had checked everything."""
    submitted: float | None = None
    is_closed: bool = False
    """And said to be."""


class StepMember:
    """Made for one step at one place of the chain of openings; closed when the step is opened."""

    def __init__(
        self,
        core: Core,
        share: HeldShare,
        definition: TaskDefinition,
        tip: TaskTip,
        pool: WorkerPool,
        scratch: Path,
        settings: MemberSettings,
        suspects: Suspects,
    ) -> None:
        """`suspects` are of all steps with this share."""
        self._core = core
        self._share = share
        self._definition = definition
        self._tip = tip
        self._stakes = build_stakes(tip.chain_state)
        self._scratch = scratch
        self._settings = settings
        self._suspects = suspects
        draft = definition.draft
        workload = share.opener.workload
        length = get_workload(draft.kind).get_sizes(draft.preset, draft.model).bundle
        self._confirmations = Confirmations(
            core.chain.chain_id, definition.id, self.step, definition.get_step_batches(self.step), length
        )
        self._told: set[bytes] = set()
        self._checked: dict[int, BlobRef] = {}
        self._refused: set[Hash32] = set()
        self._jobs: dict[int | None, asyncio.Task[None]] = {}
        """Of batches that are checked; None: of the loss."""
        self._not_before: dict[int | None, float] = {}
        self._losses: dict[Hash32, tuple[Path, ...]] = {}
        self._loss: Hash32 | None = None
        self._openings: dict[OpeningKind, _Opening] = {}
        self._workers = OpeningWorkers(
            pool, share.opener, core.work, definition, tip.state.weights, self._losses, workload
        )

    @property
    def step(self) -> int:
        return self._tip.state.step

    @property
    def ceremony(self) -> Hash32:
        """Whose shares open."""
        return self._share.ceremony

    def is_of(self, tip: TaskTip) -> bool:
        """Whether this is still the step to be opened."""
        own = self._tip.state
        return (own.step, own.weights) == (tip.state.step, tip.state.weights)

    @property
    def is_busy(self) -> bool:
        return bool(self._jobs)

    def advance(self, tip: TaskTip) -> None:
        """Everything that can be done now; again at every pulse and tick. Raises: RecordDamaged."""
        self._tip = tip
        self._stakes = build_stakes(tip.chain_state)
        self._collect()
        for batch in self._definition.get_step_batches(self.step):
            bundle = self._confirmations.get_confirmed(batch, self._stakes)
            if bundle is not None and self._checked.get(batch) != bundle and bundle.root not in self._refused:
                self._start(batch, self._check_bundle(batch, bundle))
        if is_loss_due(tip.state, self._definition.publication):
            kind = OpeningKind.LOSS
            if self._loss is None:
                self._start(None, self._compute_loss())
        else:
            kind = OpeningKind.GRADIENT
        opening = self._openings.get(kind) or self._begin(kind)
        self._offer(opening, kind)
        self._feed(opening, kind)
        self._say_closed(opening)
        self._finish(opening)

    async def close(self) -> None:
        for job in self._jobs.values():
            job.cancel()
        await asyncio.gather(*self._jobs.values(), return_exceptions=True)
        for opening in self._openings.values():
            await opening.member.close()
        for batch, bundle in self._checked.items():
            if not self._settings.keep_bundles and not self._is_own(batch, bundle):
                self._core.blobs.remove(bundle.root)
        for path in (path for paths in self._losses.values() for path in paths):
            path.unlink(missing_ok=True)

    # --- what is heard ------------------------------------------------------------------------

    def _collect(self) -> None:
        core, task = self._core, self._definition.id
        for seal in core.committees.seals.get_for_step(task, self.step):
            self._confirmations.add_seal(seal, self._stakes)
        for told in core.committees.messages.get_told(self.ceremony, task, self.step, core.address):
            if told.signature in self._told:
                continue
            self._told.add(told.signature)
            with contextlib.suppress(BoxError, MessageError):  # of whoever sent nonsense
                claim = open_told(self._share.keys.box, core.chain.chain_id, told)
                self._confirmations.add_told(claim, self._stakes)

    # --- what is checked ----------------------------------------------------------------------

    def _start(self, key: int | None, job: Coroutine[None, None, None]) -> None:
        now = self._core.clock.monotonic()
        if key in self._jobs or now < self._not_before.get(key, 0.0) or self._core.drain.is_draining:
            job.close()
            return
        self._jobs[key] = asyncio.create_task(self._guard(key, job))
        self._jobs[key].add_done_callback(lambda _: self._end(key))

    def _end(self, key: int | None) -> None:
        self._jobs.pop(key, None)
        self._core.pulse.beat()

    async def _guard(self, key: int | None, job: Coroutine[None, None, None]) -> None:
        what = "the loss" if key is None else f"batch {key}"
        try:
            await job
        except (BlobError, WorkloadError, OSError) as error:
            self._not_before[key] = self._core.clock.monotonic() + RETRY_S
            logger.warning("step %d, %s can't be opened yet: %s", self.step, what, error)

    async def _check_bundle(self, batch: int, bundle: BlobRef) -> None:
        core, definition = self._core, self._definition
        await core.fetcher.fetch(bundle, patience_s=FETCH_S)
        claims = self._confirmations.get_told(batch, bundle)
        where = definition.id + self.step.to_bytes(8, "big") + bundle.root
        question, rate = hash_domain("committee-batch", where), self._settings.recompute
        is_own = self._is_own(batch, bundle)
        if not is_own and must_recompute(self._share.keys.draw, question, batch, rate):
            weights = self._tip.state.weights
            root = await compute_canonical_root(core, definition, batch, weights, self._scratch)
            if root != bundle.root:
                self._refused.add(bundle.root)
                logger.error(
                    "step %d batch %d: organisations with more than a third of stake claim a wrong bundle; "
                    "nothing of it is opened",
                    self.step,
                    batch,
                )
                for claim in claims:
                    accuse(core, WrongBundle(claim, root))
                return
        self._checked[batch] = bundle

    def _is_own(self, batch: int, bundle: BlobRef) -> bool:
        """This node's own miner has computed it, and keeps it."""
        seal = compute_seal(bundle.root, self._core.address)
        seals = self._core.committees.seals.get_for(self._definition.id, self.step, batch)
        return any(item.seal == seal for item in seals)

    async def _compute_loss(self) -> None:
        core, definition, weights = self._core, self._definition, self._tip.state.weights
        await core.hold_validation(definition)
        losses = await core.work.compute_losses(definition, weights)
        digest = Hash32(get_workload(definition.draft.kind).compute_loss_hash(losses))
        name = f"{definition.id.hex()[:16]}-{self.step}"
        paths = tuple(self._scratch / f"{name}-{number}.loss" for number in range(len(losses)))
        self._losses[digest] = paths
        await asyncio.to_thread(_write_all, paths, losses)
        core.work.verdicts.remember(LossCheck(definition.id, self.step, weights), digest)
        self._loss = digest

    # --- openings -----------------------------------------------------------------------------

    def _begin(self, kind: OpeningKind) -> _Opening:
        core, share, draft = self._core, self._share, self._definition.draft
        terms = Terms(
            core.chain.chain_id,
            share.ceremony,
            self._definition.id,
            self.step,
            kind,
            share.create.members,
            share.create.threshold,
            get_moduli(kind.value, draft.preset, draft.model, share.opener.workload),
            self._settings.waits,
        )
        sealer = MemberSealer(terms, core.key, share.keys.box, share.publics)
        member = OpeningMember(
            terms,
            core.key,
            sealer,
            self,
            core.chain.ledger,
            self._workers,
            core.committees.say,
            self._get_now,
            self._suspects,
        )
        self._openings[kind] = _Opening(member, begun=core.clock.monotonic())
        return self._openings[kind]

    def _get_now(self) -> Millis:
        return Millis(round(self._core.clock.monotonic() * 1000))

    def _offer(self, opening: _Opening, kind: OpeningKind) -> None:
        """Tell the opening what this member has checked, once it has all."""
        previous, weights = self._tip.state.previous, compute_weights_digest(self._tip.state.weights)
        content: Content | None
        if kind is OpeningKind.LOSS:
            content = None if self._loss is None else LossContent(previous, weights, self._loss)
        else:
            content = self._confirmations.build_content(previous, weights, self._stakes, self._checked)
        if content is not None and content != opening.content:
            if opening.content is None:
                opening.checked = self._core.clock.monotonic()
            opening.content = content
            self._note(opening, opening.member.check(content))

    def _feed(self, opening: _Opening, kind: OpeningKind) -> None:
        for message in self._core.committees.messages.get_round(
            self.ceremony, self._definition.id, self.step
        ):
            is_own = get_sender(message) == self._core.address
            if message.kind is kind and not is_own and message.signature not in opening.fed:
                opening.fed.add(message.signature)
                self._note(opening, opening.member.take(message), message)
        self._note(opening, opening.member.tick())

    def _note(self, opening: _Opening, effects: Effects, message: RoundMessage | None = None) -> None:
        if effects.refused is not None and message is not None:
            sender = get_sender(message).hex()[:12]
            logger.info("step %d: a %s of %s: %s", self.step, type(message).__name__, sender, effects.refused)

    def _say_closed(self, opening: _Opening) -> None:
        """Once, whatever closed it: a message, the time, or a sum that came from the worker."""
        why = opening.member.round.closed
        if why is not None and not opening.is_closed:
            opening.is_closed = True
            kind, names = opening.member.round.terms.kind, self._name_suspects()
            logger.error("step %d, %s: %s%s", self.step, kind, why, names)

    def _name_suspects(self) -> str:
        """For who can end it: the members may renew the shares without one of them."""
        members = self._share.create.members
        found = ", ".join(members[place].hex()[:12] for place in self._suspects.get_common())
        advice = "; deal shares anew without it: bmif custody reshare"
        return f"; a wrong part can be of {found}{advice}" if found else ""

    def _finish(self, opening: _Opening) -> None:
        """Submit what is opened, until the tip holds it."""
        if not opening.member.opened.done():
            return
        now = self._core.clock.monotonic()
        if opening.submitted is not None and now < opening.submitted + SUBMIT_S:
            return
        opened = opening.member.opened.result()
        if opening.submitted is None:
            logger.info(
                "opened the %s of step %d in attempt %d, signed by %d of %d members, in %.2f s, "
                "%.2f s of them after checks",
                opening.member.round.terms.kind,
                self.step,
                opened.attempt,
                len(opened.cosignatures),
                len(self._share.create.members),
                now - opening.begun,
                now - opening.checked,
            )
        opening.submitted = now
        core = self._core
        admission = core.admit(core.sign(self._build(opened.content, opened.attempt, opened.numbers, opened)))
        if not admission.accepted and not admission.known:
            # Most often another member's, of the same content, was quicker.
            logger.debug("own opening not taken: %s %s", admission.reason, admission.detail)

    def _build(
        self, content: Content, attempt: int, numbers: tuple[int, ...], opened: Opened | None = None
    ) -> OpenGradient | OpenLoss:
        where = (self._definition.id, self.step, content.previous, content.weights)
        signatures = () if opened is None else opened.cosignatures
        if isinstance(content, LossContent):
            return OpenLoss(*where, content.ciphertext, numbers[0], attempt, signatures)
        return OpenGradient(*where, content.claims, content.confirmations, numbers, attempt, signatures)

    # --- what an opening asks -----------------------------------------------------------------

    def check_content(self, content: Content) -> None:
        """Raises: Refused."""
        if isinstance(content, GradientContent):
            chain_id, task = self._core.chain.chain_id, self._definition.id
            check_gradient(content, chain_id, task, self.step, self._checked, self._stakes)

    def has_budget(self, kind: OpeningKind, attempt: int) -> bool:
        state, draft = self._tip.state, self._definition.draft
        if kind is OpeningKind.LOSS:
            return state.loss_openings + attempt <= draft.max_loss_openings
        return state.gradient_openings + attempt <= draft.max_gradient_openings

    def compute_opened(self, content: Content, attempt: int, numbers: tuple[int, ...]) -> Hash32:
        return compute_opening_hash(self._build(content, attempt, numbers))


def _write_all(paths: tuple[Path, ...], parts: list[bytes]) -> None:
    for path, data in zip(paths, parts, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
