"""Drafts, contributions and publication: everything a task is made of, checked before it begins."""

from itertools import pairwise

from consensus.ceremonies import CeremonyStatus
from consensus.context import BlockContext
from consensus.errors import InvalidTransaction, Reason
from consensus.identifiers import compute_draft_hash, compute_task_id
from consensus.records import ContributionRecord, DraftRecord, TaskState, TaskStatus
from consensus.state import State
from consensus.task import Batch, BlobRef, Contribute, Draft, DraftTask, PatientRange, PublishTask
from consensus.types import MAX_LADDER, ZERO_HASH, Address, Amount, Hash32

KINDS = ("fusion-training",)
CLIPPINGS = ("per-patch", "box")
MAX_PARAMETERS = 2**15
"""So that two openings with all their numbers fit into one transaction, as evidence."""
MAX_GRADIENT_OPENINGS = 2**17
MAX_OPENED = 2**53 - 1
"""Bound of every opened integer, and of all that is compared or added with one."""
MAX_SHIFT = 256
MAX_CLAIMANTS = 8
"""Miners credited for one batch of a committee's task; their fees are escrowed for every batch."""
MAX_TITLE = 200
MAX_STATEMENT = 16_384
MAX_MODEL_BYTES = 65_536
SALT_BYTES = 16


def _require(condition: bool, reason: Reason, detail: str) -> None:
    if not condition:
        raise InvalidTransaction(reason, detail)


# --- drafts -----------------------------------------------------------------------------------


def _check_draft(draft: Draft) -> None:
    def require(condition: bool, field: str) -> None:
        _require(condition, Reason.DRAFT_FIELD, field)

    require(draft.kind in KINDS, "kind")
    require(len(draft.title) <= MAX_TITLE, "title")
    require(len(draft.salt) == SALT_BYTES, "salt")
    require(0 < len(draft.preset) <= MAX_TITLE, "preset")
    require(0 < len(draft.model) <= MAX_MODEL_BYTES, "model")
    require(0 < draft.parameters <= MAX_PARAMETERS, "parameters")
    require(0 < draft.weight_box <= MAX_OPENED, "weight_box")
    require(draft.public_key.length > 0, "public_key")
    require(draft.relin_keys.length > 0, "relin_keys")
    require(draft.public_key.root != draft.relin_keys.root, "relin_keys")
    # A committee can't look into single patches, so it can't clip them.
    is_committee = draft.ceremony != ZERO_HASH
    require(draft.clipping in CLIPPINGS and (draft.clipping == "box") == is_committee, "clipping")
    for field in ("gradient_scale_bits", "loss_scale_bits"):
        require(0 <= getattr(draft, field) <= 62, field)
    for field in ("gradient_clip", "loss_clip"):
        require(0 < getattr(draft, field) <= MAX_OPENED, field)
    for field in ("gradient_noise", "loss_noise"):
        require(0 <= getattr(draft, field) <= MAX_OPENED, field)
    require(0 < draft.max_gradient_openings <= MAX_GRADIENT_OPENINGS, "max_gradient_openings")
    require(0 < draft.max_loss_openings <= draft.max_gradient_openings + 1, "max_loss_openings")
    require(len(draft.privacy) <= MAX_STATEMENT, "privacy")


def _check_ceremony(state: State, sender: Address, draft: Draft) -> None:
    """A committee's draft names the keys of a ceremony that is ready; the sender took part in it."""
    record = state.get_ceremony(draft.ceremony)
    if record is None:
        raise InvalidTransaction(Reason.CEREMONY_UNKNOWN, draft.ceremony.hex())
    _require(record.status is not CeremonyStatus.RUNNING, Reason.CEREMONY_UNREADY, record.status)
    _require(record.status is CeremonyStatus.READY, Reason.CEREMONY_ENDED, record.status)
    # Keys are named by the ceremony that made them, whoever has the shares by now.
    _require(record.create.renews == ZERO_HASH, Reason.DRAFT_CEREMONY, "a renewal")
    _, current = state.get_ceremonies(draft.ceremony)[-1]
    _require(sender in current.create.members, Reason.CEREMONY_MEMBER, sender.hex())
    for field in ("public_key", "relin_keys"):
        made = getattr(record.confirmations[0], field)
        _require(getattr(draft, field) == made, Reason.DRAFT_CEREMONY, field)
    _require(draft.preset == record.create.preset, Reason.DRAFT_CEREMONY, "preset")


def apply_draft(state: State, sender: Address, payload: DraftTask, ctx: BlockContext) -> State:
    _check_draft(payload.draft)
    if payload.draft.ceremony != ZERO_HASH:
        _check_ceremony(state, sender, payload.draft)
    draft = compute_draft_hash(ctx.chain_id, payload.draft)
    _require(state.get_draft(draft) is None, Reason.DRAFT_KNOWN, draft.hex())
    return state.with_draft(draft, DraftRecord(payload.draft, sender, used=False))


# --- contributions ----------------------------------------------------------------------------


def _check_patients(contribution: Contribute) -> None:
    """Every used patch belongs to exactly one patient, and no patient both trains and validates."""
    batches = {False: contribution.training, True: contribution.validation}
    ranges: dict[tuple[bool, int], list[PatientRange]] = {}
    sides: dict[int, bool] = {}
    reason = Reason.CONTRIBUTION_PATIENTS
    for item in contribution.patients:
        _require(0 <= item.batch < len(batches[item.validation]), reason, f"batch {item.batch} unknown")
        _require(
            sides.setdefault(item.patient, item.validation) == item.validation,
            reason,
            f"patient {item.patient} both trains and validates",
        )
        ranges.setdefault((item.validation, item.batch), []).append(item)
    for validation, side in batches.items():
        for index, batch in enumerate(side):
            end = 0
            for item in sorted(ranges.get((validation, index), ()), key=lambda item: item.start):
                where = f"patches from {end} of batch {index}, validation {validation}"
                _require(item.start == end < item.stop, reason, where)
                end = item.stop
            _require(end == batch.patches, reason, f"{end} of {batch.patches} patches in batch {index}")


def apply_contribute(state: State, sender: Address, payload: Contribute, transaction: Hash32) -> State:
    record = state.get_draft(payload.draft)
    if record is None:
        raise InvalidTransaction(Reason.DRAFT_UNKNOWN, payload.draft.hex())
    _require(not record.used, Reason.DRAFT_USED, payload.draft.hex())
    batches = payload.training + payload.validation
    _require(bool(batches), Reason.CONTRIBUTION_BATCHES, "none")
    for batch in batches:
        _require(batch.patches > 0 and batch.blob.length > 0, Reason.CONTRIBUTION_BATCHES, "empty batch")
    _require(_are_distinct(batches), Reason.CONTRIBUTION_BATCHES, "a blob twice")
    _check_patients(payload)
    return state.with_contribution(transaction, ContributionRecord(payload, sender, used=False))


def _are_distinct(batches: tuple[Batch, ...]) -> bool:
    return len({batch.blob.root for batch in batches}) == len(batches)


# --- publication ------------------------------------------------------------------------------


def get_step_batches(publication: PublishTask, step: int) -> tuple[int, ...]:
    """The batches of a step, ascending."""
    k, order = publication.batches_per_step, publication.order
    return tuple(sorted(order[(step * k + i) % len(order)] for i in range(k)))


def get_task_batches(state: State, publication: PublishTask, validation: bool) -> tuple[Batch, ...]:
    """A task's training (or validation) batches, numbered as claims and circuits number them."""
    batches: list[Batch] = []
    for transaction in publication.contributions:
        record = state.get_contribution(transaction)
        if record is None:
            raise InvalidTransaction(Reason.CONTRIBUTION_UNKNOWN, transaction.hex())
        batches += record.contribute.validation if validation else record.contribute.training
    return tuple(batches)


def get_task_blobs(state: State, publication: PublishTask, validation_only: bool) -> tuple[BlobRef, ...]:
    """Keys and batches of a task; only the validation batches where that is asked."""
    record = state.get_draft(publication.draft)
    if record is None:
        raise InvalidTransaction(Reason.DRAFT_UNKNOWN, publication.draft.hex())
    batches = get_task_batches(state, publication, True)
    if not validation_only:
        batches = get_task_batches(state, publication, False) + batches
    return (record.draft.public_key, record.draft.relin_keys, *(batch.blob for batch in batches))


def compute_escrow(publication: PublishTask, draft: Draft) -> int:
    """The most that rewards and fees can cost, without the bond."""
    fees = publication.batch_fee * publication.batches_per_step * draft.max_gradient_openings
    if draft.ceremony != ZERO_HASH:
        fees *= MAX_CLAIMANTS
    return fees + sum(milestone.reward for milestone in publication.ladder)


def _check_contributions(state: State, publication: PublishTask) -> tuple[Batch, ...]:
    """The task's training batches, if all its contributions are its own and complete."""
    reason = Reason.PUBLISH_CONTRIBUTIONS
    listed = publication.contributions
    _require(bool(listed) and len(set(listed)) == len(listed), reason, "none, or one twice")
    training = get_task_batches(state, publication, False)
    validation = get_task_batches(state, publication, True)
    for transaction in listed:
        record = state.get_contribution(transaction)
        fits = record is not None and record.contribute.draft == publication.draft
        _require(fits, Reason.CONTRIBUTION_DRAFT, transaction.hex())
    _require(bool(training), Reason.PUBLISH_BATCHES, "no training batch")
    _require(bool(validation), Reason.PUBLISH_BATCHES, "no validation batch")
    _require(_are_distinct(training + validation), Reason.PUBLISH_BATCHES, "a blob twice")
    return training


def _check_publication(publication: PublishTask, draft: Draft, batches: int, ctx: BlockContext) -> None:
    order, steps = publication.order, draft.max_gradient_openings
    _require(sorted(order) == list(range(batches)), Reason.PUBLISH_ORDER, f"of {batches} batches")
    # More than all batches in a step would use one of them twice.
    _require(0 < publication.batches_per_step <= batches, Reason.PUBLISH_STEP, f"of {batches} batches")
    weights = publication.initial_weights
    fits = len(weights) == draft.parameters and all(abs(w) <= draft.weight_box for w in weights)
    _require(fits, Reason.PUBLISH_WEIGHTS, f"{len(weights)} of {draft.parameters}")
    optimizer = publication.optimizer
    fits = 0 <= optimizer.shift <= MAX_SHIFT and len(optimizer.learning_rates) == steps
    fits = fits and all(0 <= rate <= MAX_OPENED for rate in optimizer.learning_rates)
    _require(fits, Reason.PUBLISH_OPTIMIZER, f"{len(optimizer.learning_rates)} rates for {steps} steps")
    schedule = publication.loss_schedule
    fits = 0 < len(schedule) <= draft.max_loss_openings and schedule[0] >= 0 and schedule[-1] <= steps
    fits = fits and all(a < b for a, b in pairwise(schedule))
    _require(fits, Reason.PUBLISH_SCHEDULE, f"{len(schedule)} of {draft.max_loss_openings}")
    targets = [milestone.target for milestone in publication.ladder]
    fits = 0 < len(targets) <= MAX_LADDER and all(abs(target) <= MAX_OPENED for target in targets)
    fits = fits and all(a > b for a, b in pairwise(targets))
    _require(fits, Reason.PUBLISH_LADDER, f"{len(targets)} rungs")
    _require(publication.deadline > ctx.time, Reason.PUBLISH_DEADLINE, str(publication.deadline))


def apply_publish(state: State, sender: Address, payload: PublishTask, ctx: BlockContext) -> State:
    """A new pending task, with rewards, fees and bond taken from the custody's account."""
    record = state.get_draft(payload.draft)
    if record is None:
        raise InvalidTransaction(Reason.DRAFT_UNKNOWN, payload.draft.hex())
    _require(record.sender == sender, Reason.PUBLISH_CUSTODY, sender.hex())
    _require(not record.used, Reason.DRAFT_USED, payload.draft.hex())
    draft = record.draft
    keys = (draft.public_key.root, draft.relin_keys.root)
    # Those of a ready ceremony are kept for the drafts that name it, of which one is published.
    unused = None if draft.ceremony == ZERO_HASH else draft.ceremony
    for root in keys:
        _require(state.get_key_task(root) == unused, Reason.PUBLISH_KEY_USED, root.hex())
    training = _check_contributions(state, payload)
    _check_publication(payload, draft, len(training), ctx)
    escrow = compute_escrow(payload, draft)
    account = state.get_account(sender)
    needed = escrow + payload.bond
    _require(account.balance >= needed, Reason.TX_BALANCE, f"{account.balance} of {needed}")

    task = compute_task_id(payload)
    state = state.with_credit(sender, -needed)
    state = state.with_draft(payload.draft, DraftRecord(draft, sender, used=True))
    for transaction in payload.contributions:
        contribution = state.get_contribution(transaction)
        if contribution is not None:
            used = ContributionRecord(contribution.contribute, contribution.sender, used=True)
            state = state.with_contribution(transaction, used)
    for root in keys:
        state = state.with_key_task(root, task)
    fresh = TaskState(
        status=TaskStatus.PENDING,
        custody=sender,
        published_height=ctx.height,
        available=(),
        available_stake=0,
        step=0,
        weights=payload.initial_weights,
        momentum=(0,) * draft.parameters,
        previous=ZERO_HASH,
        loss_opened=False,
        last_loss=None,
        gradient_openings=0,
        loss_openings=0,
        interval_credits=(),
        qualified=(),
        next_rung=0,
        next_taken_rung=0,
        unsettled=(),
        settled=None,
        judged=(),
        escrow=Amount(escrow),
        bond=payload.bond,
    )
    return state.with_publication(task, payload).with_task(task, fresh)
