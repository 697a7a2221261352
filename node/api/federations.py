"""Routes of federated rounds: federations, the round that runs, and how earlier ones ended."""

from aiohttp import web
from pydantic import Field

from consensus.federations import EndedRound, FederationRecord, RoundRecord
from consensus.state import State
from consensus.types import Hash32
from node.api.errors import build_not_found, build_parameter_problem
from node.api.federation_payloads import ParticipantModel
from node.api.fields import AmountInt, BlobRefModel, Count, Hex32, Model, TimeMs
from node.api.requests import HEIGHT, Route, answer, get_limit, get_view, parse_hash, take_page
from node.api.schemas import Page
from node.api.task_payloads import MilestoneModel


class SubmissionModel(Model):
    """A participant's encrypted update."""

    participant: Hex32
    update: BlobRefModel
    attested: tuple[Hex32, ...] = Field(description="Validators that hold it and found it well formed")


class SumVoteModel(Model):
    validator: Hex32
    total: Hex32 = Field(description="Root of the sum that it computed")


class JudgementModel(Model):
    """A validator's losses on its own data, units of 1e-6."""

    validator: Hex32
    before: Count
    after: Count


class RoundModel(Model):
    """One round of a federation."""

    federation: Hex32
    number: Count
    phase: str = Field(description="`training`, `summing` or `opened`: how far it is, or came")
    outcome: str | None = Field(description="`accepted`, `rejected` or `lapsed`; null while it runs")
    started: TimeMs
    left_out: Hex32 | None = Field(description="Whom a round of probation leaves out")
    submissions: tuple[SubmissionModel, ...]
    listed: tuple[Hex32, ...] = Field(description="Whose updates were added; empty until the list is fixed")
    weights: Count = Field(description="Sum of the listed weights: what the opened sum is divided by")
    closed_height: Count = Field(description="Of the block that fixed the list; 0 before")
    closed_time: TimeMs
    sums: tuple[SumVoteModel, ...]
    total: Hex32 | None = Field(description="Root of the confirmed sum")
    opened: BlobRefModel | None = Field(description="The sum, decrypted and with noise")
    model: BlobRefModel | None = Field(description="The model that follows from it")
    opened_time: TimeMs
    judgements: tuple[JudgementModel, ...]
    ended_height: Count = Field(description="0 while it runs")
    ended_time: TimeMs
    rungs: tuple[Count, ...] = Field(description="Rungs of the ladder that it met")


class FederationSummary(Model):
    id: Hex32
    title: str
    custody: Hex32
    height: Count
    status: str = Field(description="`running` or `ended`")
    participants: Count
    round: Count = Field(description="Number of the current or last round, from 0")
    phase: str
    rounds: Count = Field(description="At most so many")
    accepted: Count
    openings: Count
    deadline: TimeMs


class Federation(FederationSummary):
    """A federation with its terms and its current round."""

    statement: str
    network: BlobRefModel
    initial_model: BlobRefModel
    parameters: Count
    keys: BlobRefModel
    update_bytes: Count
    members: tuple[ParticipantModel, ...]
    min_participants: Count
    max_openings: Count
    train_ms: Count
    open_ms: Count
    judge_ms: Count
    clip: Count
    noise_std: Count
    slack: Count
    ladder: tuple[MilestoneModel, ...]
    next_rung: Count
    model: BlobRefModel = Field(description="Of the last accepted round, or the initial one")
    suspects: tuple[Hex32, ...] = Field(
        description="Out for the rest: of all rounds that left out one of a rejected list only theirs was "
        "accepted"
    )
    accused: tuple[Hex32, ...] = Field(description="The rejected list; one after the other is left out")
    probation: tuple[Hex32, ...] = Field(description="Who of them is still to be left out")
    escrow: AmountInt
    current: RoundModel


_KEPT = (
    "statement",
    "parameters",
    "update_bytes",
    "min_participants",
    "max_openings",
    "train_ms",
    "open_ms",
    "judge_ms",
    "clip",
    "noise_std",
    "slack",
)


# --- from the state -----------------------------------------------------------------------------


def build_federation_summary(federation: Hash32, record: FederationRecord) -> FederationSummary:
    create = record.create
    return FederationSummary(
        id=federation.hex(),
        title=create.title,
        custody=record.custody.hex(),
        height=record.height,
        status=record.status.value,
        participants=len(create.participants),
        round=record.round.number,
        phase=record.round.phase.value,
        rounds=create.rounds,
        accepted=record.accepted,
        openings=record.openings,
        deadline=create.deadline,
    )


def build_federation(state: State, federation: Hash32, record: FederationRecord) -> Federation:
    create = record.create
    ended = state.get_ended_round(federation, record.round.number)
    return Federation(
        **dict(build_federation_summary(federation, record)),
        **{name: getattr(create, name) for name in _KEPT},
        network=BlobRefModel.model_validate(create.network),
        initial_model=BlobRefModel.model_validate(create.model),
        keys=BlobRefModel.model_validate(create.keys),
        members=tuple(ParticipantModel.model_validate(item) for item in create.participants),
        ladder=tuple(MilestoneModel.model_validate(item) for item in create.ladder),
        next_rung=record.next_rung,
        model=BlobRefModel.model_validate(record.model),
        suspects=tuple(address.hex() for address in record.suspects),
        accused=tuple(address.hex() for address in record.accused),
        probation=tuple(address.hex() for address in record.probation),
        escrow=record.escrow,
        current=build_round(federation, record, record.round, ended),
    )


def build_round(
    federation: Hash32, record: FederationRecord, found: RoundRecord, ended: EndedRound | None
) -> RoundModel:
    weights = {item.address: item.weight for item in record.create.participants}
    return RoundModel(
        federation=federation.hex(),
        number=found.number,
        phase=found.phase.value,
        outcome=None if ended is None else ended.outcome.value,
        started=found.started,
        left_out=None if found.left_out is None else found.left_out.hex(),
        submissions=tuple(SubmissionModel.model_validate(item) for item in found.submissions),
        listed=tuple(address.hex() for address in found.listed),
        weights=sum(weights[address] for address in found.listed),
        closed_height=found.closed_height,
        closed_time=found.closed_time,
        sums=tuple(SumVoteModel.model_validate(item) for item in found.sums),
        total=None if found.total is None else found.total.hex(),
        opened=None if found.opened is None else BlobRefModel.model_validate(found.opened),
        model=None if found.model is None else BlobRefModel.model_validate(found.model),
        opened_time=found.opened_time,
        judgements=tuple(JudgementModel.model_validate(item) for item in found.judgements),
        ended_height=0 if ended is None else ended.height,
        ended_time=0 if ended is None else ended.time,
        rungs=() if ended is None else ended.rungs,
    )


# --- routes -------------------------------------------------------------------------------------


async def get_federations(request: web.Request) -> web.Response:
    state, limit = get_view(request).get_state(), get_limit(request)
    numbers, following = take_page(request, "federations", range(state.get_federation_count()), limit)
    found = []
    for number in numbers:
        federation = state.get_federation_id(number)
        record = None if federation is None else state.get_federation(federation)
        if federation is not None and record is not None:
            found.append(build_federation_summary(federation, record))
    return answer(Page[FederationSummary](items=tuple(found), next=following))


def _read_federation(request: web.Request) -> tuple[State, Hash32, FederationRecord]:
    state = get_view(request).get_state()
    federation = parse_hash(request.match_info["federation"], "federation")
    record = state.get_federation(federation)
    if record is None:
        remedy = "Wait until its transaction is in a block (GET /v1/transactions/{id})"
        raise build_not_found("federation", f"federation {federation.hex()}", remedy)
    return state, federation, record


async def get_federation(request: web.Request) -> web.Response:
    return answer(build_federation(*_read_federation(request)))


async def get_round(request: web.Request) -> web.Response:
    state, federation, record = _read_federation(request)
    text = request.match_info["round"]
    if not HEIGHT.fullmatch(text):
        raise build_parameter_problem("round", "Expected the number of a round", "Rounds count from 0")
    ended = state.get_ended_round(federation, int(text))
    if ended is not None:
        return answer(build_round(federation, record, ended.round, ended))
    if int(text) != record.round.number:
        remedy = f"The current round is {record.round.number}"
        raise build_not_found("round", f"round {text} of federation {federation.hex()}", remedy)
    return answer(build_round(federation, record, record.round, None))


FEDERATION_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/federations",
        "listFederations",
        get_federations,
        "Federations of encrypted training, oldest first",
        Page[FederationSummary],
        query=("limit", "cursor"),
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/federations/{federation}",
        "getFederation",
        get_federation,
        "A federation with its terms and its current round",
        Federation,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/federations/{federation}/rounds/{round}",
        "getFederationRound",
        get_round,
        "A round: updates, list, sum, opening, judgements, outcome",
        RoundModel,
        errors=(400, 404),
    ),
)
