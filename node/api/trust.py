"""Whom to trust and how far: finality, the validator set, governance, milestones and the verdicts on them."""

from aiohttp import web
from pydantic import Field

from consensus.finality import is_finality_wanted
from consensus.params import Validator
from consensus.records import Unsettled
from consensus.state import State
from consensus.types import Address
from consensus.upgrade import get_version_at
from consensus.verdicts import compute_stake
from node.api.convert import TaskReader, build_checkpoint
from node.api.errors import build_not_found
from node.api.fields import (
    AmountInt,
    CheckpointModel,
    Count,
    Hex32,
    Model,
    SignedInt,
    TimeMs,
    ValidatorStakeModel,
)
from node.api.requests import Route, answer, get_view, parse_hash
from node.api.view import MilestoneRecord, VerdictRecord
from node.protocol import get_known_version

MAX_CHECKPOINTS = 100


class PendingCheckpointModel(Model):
    """A block that is not final, with the votes that blocks carry for it."""

    height: Count
    hash: Hex32
    source: CheckpointModel = Field(description="The only source that votes for it may have")
    justified: bool
    voters: tuple[Hex32, ...]
    stake: Count = Field(description="Of the voters, in the active set")


class FinalityModel(Model):
    """What votes in blocks have settled, at the head."""

    justified: CheckpointModel
    finalized: CheckpointModel
    content: Count = Field(description="Height of the last block with transactions or work")
    wanted: bool = Field(description="A block with transactions or work is not final yet")
    total_stake: Count
    checkpoints: tuple[PendingCheckpointModel, ...] = Field(
        description=f"Blocks above the final one, at most {MAX_CHECKPOINTS} of the newest"
    )


class ValidatorModel(Model):
    address: Hex32
    organisation: str
    stake: Count
    jailed: bool = Field(description="Convicted by evidence: its stake is forfeited, it has no voice")


class PendingSetModel(Model):
    """A validator set that takes over when the block of this height is final."""

    validators: tuple[ValidatorStakeModel, ...]
    height: Count


class ValidatorsModel(Model):
    items: tuple[ValidatorModel, ...]
    number: Count = Field(description="Of the set, from 0")
    total_stake: Count
    pending: PendingSetModel | None
    height: Count


class LockModel(Model):
    """Money within reach of evidence: a leaver's stake, or the bond of an ended task."""

    owner: Hex32
    amount: AmountInt
    release: TimeMs
    task: Hex32 | None


class UpgradeModel(Model):
    version: Count
    height: Count = Field(description="Of the first block that obeys it")


class ProtocolModel(Model):
    """Which rules blocks obey, and which ones this node's software knows."""

    version: Count = Field(description="In force for the block after the head")
    known: Count = Field(description="The newest version that this node's software knows")
    supported: bool = Field(description="False: this node has to be replaced before the coming upgrade")
    upgrades: tuple[UpgradeModel, ...] = Field(description="All there were or will be, by height")


class GovernanceStateModel(Model):
    sequence: Count = Field(description="Number of changes so far; the next one carries it")
    treasury: AmountInt = Field(description="Forfeited and not granted")
    mining_organisations: tuple[str, ...]
    suspended: tuple[str, ...]
    jailed: tuple[Hex32, ...]
    locks: tuple[LockModel, ...]
    protocol: ProtocolModel


class VerdictModel(Model):
    """A validator's judgement on private pairs of its own."""

    validator: Hex32
    organisation: str
    accept: bool
    before: SignedInt = Field(description="Its loss with the last settled model, opened units, noised")
    before_value: float
    after: SignedInt = Field(description="Its loss with the milestone's model")
    after_value: float
    transaction: Hex32
    height: Count


class TakenMilestoneModel(Model):
    """Rungs that a work block took."""

    first_rung: Count
    last_rung: Count
    step: Count
    loss: SignedInt
    loss_value: float
    loss_opening: Hex32
    block: Hex32
    height: Count
    time: TimeMs
    proposer: Hex32
    state: str = Field(description="`unsettled` (verdicts may still come), `settled` (paid) or `void`")
    settles: TimeMs | None = Field(description="When silence settles it; null unless unsettled")
    accepted_stake: Count
    rejected_stake: Count
    verdicts: tuple[VerdictModel, ...]


class MilestonesModel(Model):
    items: tuple[TakenMilestoneModel, ...]
    total_stake: Count


# --- finality, validators, governance ---------------------------------------------------------


def _build_pending(state: State, height: int) -> PendingCheckpointModel | None:
    record = state.get_checkpoint(height)
    if record is None:
        return None
    return PendingCheckpointModel(
        height=height,
        hash=record.hash.hex(),
        source=build_checkpoint(record.source),
        justified=record.is_justified,
        voters=tuple(voter.hex() for voter in record.voters),
        stake=compute_stake(state, record.voters),
    )


async def get_finality(request: web.Request) -> web.Response:
    view = get_view(request)
    state, head = view.get_state(), view.get_head().header.height
    finality = state.get_finality()
    lowest = max(finality.finalized.height + 1, head - MAX_CHECKPOINTS)
    pending = (_build_pending(state, height) for height in range(lowest, head))
    return answer(
        FinalityModel(
            justified=build_checkpoint(finality.justified),
            finalized=build_checkpoint(finality.finalized),
            content=finality.content,
            wanted=is_finality_wanted(state),
            total_stake=state.get_total_stake(),
            checkpoints=tuple(item for item in pending if item is not None),
        )
    )


async def get_validators(request: web.Request) -> web.Response:
    view = get_view(request)
    state = view.get_state()
    jailed, pending = state.get_jailed(), state.get_pending_set()

    def build(member: Validator) -> ValidatorModel:
        return ValidatorModel(
            address=member.address.hex(),
            organisation=state.get_account(member.address).organisation,
            stake=member.stake,
            jailed=member.address in jailed,
        )

    return answer(
        ValidatorsModel(
            items=tuple(map(build, state.get_validators())),
            number=state.get_validator_set().number,
            total_stake=state.get_total_stake(),
            pending=None if pending is None else PendingSetModel.model_validate(pending),
            height=view.get_head().header.height,
        )
    )


def _build_protocol(height: int, state: State) -> ProtocolModel:
    upgrades, known = state.get_upgrades(), get_known_version()
    version = get_version_at(state, height + 1)
    newest = max((item.version for item in upgrades), default=version)
    return ProtocolModel(
        version=version,
        known=known,
        supported=newest <= known,
        upgrades=tuple(UpgradeModel(version=item.version, height=item.height) for item in upgrades),
    )


async def get_governance(request: web.Request) -> web.Response:
    view = get_view(request)
    state = view.get_state()
    charter = state.get_charter()
    locks = (
        LockModel(
            owner=lock.owner.hex(),
            amount=lock.amount,
            release=lock.release,
            task=None if lock.task is None else lock.task.hex(),
        )
        for lock in state.get_locks()
    )
    return answer(
        GovernanceStateModel(
            sequence=charter.sequence,
            treasury=charter.treasury,
            mining_organisations=state.get_mining_organisations(),
            suspended=state.get_suspended(),
            jailed=tuple(address.hex() for address in state.get_jailed()),
            locks=tuple(locks),
            protocol=_build_protocol(view.get_head().header.height, state),
        )
    )


# --- milestones and verdicts ------------------------------------------------------------------


def _build_verdict(reader: TaskReader, record: VerdictRecord) -> VerdictModel:
    verdict = record.verdict
    return VerdictModel(
        validator=record.validator.hex(),
        organisation=reader.state.get_account(record.validator).organisation,
        accept=verdict.accept,
        before=verdict.before,
        before_value=reader.scale_loss(verdict.before),
        after=verdict.after,
        after_value=reader.scale_loss(verdict.after),
        transaction=record.transaction.hex(),
        height=record.height,
    )


def _build_milestone(
    reader: TaskReader, found: MilestoneRecord, unsettled: Unsettled | None, verdicts: list[VerdictRecord]
) -> TakenMilestoneModel:
    work, state = found.work, reader.state
    is_settled = work.loss_opening in reader.record.judged

    def count(accept: bool) -> int:
        voters: list[Address] = [item.validator for item in verdicts if item.verdict.accept == accept]
        return compute_stake(state, voters)

    return TakenMilestoneModel(
        first_rung=work.first_rung,
        last_rung=work.last_rung,
        step=work.step,
        loss=work.loss,
        loss_value=reader.scale_loss(work.loss),
        loss_opening=work.loss_opening.hex(),
        block=found.block.hex(),
        height=found.height,
        time=found.time,
        proposer=found.proposer.hex(),
        state="settled" if is_settled else "unsettled" if unsettled is not None else "void",
        settles=None if unsettled is None else unsettled.time + reader.view.params.verdict_ms,
        accepted_stake=count(True),
        rejected_stake=count(False),
        verdicts=tuple(_build_verdict(reader, item) for item in verdicts),
    )


async def get_milestones(request: web.Request) -> web.Response:
    view = get_view(request)
    task = parse_hash(request.match_info["task"], "task")
    try:
        reader = TaskReader(view, view.get_state(), task)
    except LookupError as error:
        raise build_not_found("task", f"task {task.hex()}", "See /v1/tasks") from error
    waiting = {item.milestone.loss_opening: item for item in reader.record.unsettled}
    verdicts = view.get_verdicts(task)
    items = tuple(
        _build_milestone(
            reader,
            found,
            waiting.get(found.work.loss_opening),
            [item for item in verdicts if item.verdict.loss_opening == found.work.loss_opening],
        )
        for found in view.get_milestones(task)
    )
    return answer(MilestonesModel(items=items, total_stake=reader.state.get_total_stake()))


TRUST_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/finality",
        "getFinality",
        get_finality,
        "Justified and final blocks, and the votes for those above",
        FinalityModel,
    ),
    Route(
        "GET",
        "/v1/validators",
        "listValidators",
        get_validators,
        "The active validator set, and the next one while it waits",
        ValidatorsModel,
    ),
    Route(
        "GET",
        "/v1/governance",
        "getGovernance",
        get_governance,
        "What quorums have set, what evidence has taken, and what is locked",
        GovernanceStateModel,
    ),
    Route(
        "GET",
        "/v1/tasks/{task}/milestones",
        "listMilestones",
        get_milestones,
        "Milestones that were taken, with the verdicts on each",
        MilestonesModel,
        errors=(400, 404),
    ),
)
