"""Routes of key ceremonies: how far each committee has come, who is waited for, and the keys."""

from aiohttp import web
from pydantic import Field

from consensus.ceremonies import ROUNDS, CeremonyRecord
from consensus.ceremony import is_committed
from consensus.state import State
from consensus.types import ZERO_HASH, Hash32
from node.api.errors import build_not_found
from node.api.fields import BlobRefModel, Count, Hex32, Model, TimeMs
from node.api.requests import Route, answer, get_limit, get_view, parse_hash, take_page
from node.api.schemas import Page


class CeremonySummary(Model):
    id: Hex32
    title: str
    preset: str
    height: Count
    status: str = Field(description="`running`, `ready`, `failed` or `ended`")
    members: tuple[Hex32, ...]
    threshold: Count
    round: Count = Field(description="Of 5; 5 once all are over")
    round_name: str | None = Field(description="`coins`, `shares`, `relin`, `secrets` or `test`")
    deadline: TimeMs
    renews: Hex32 | None = Field(description="The ceremony whose keys are shared anew; null: new keys")
    renewed_by: Hex32 | None = Field(description="The ceremony whose members have the shares now")


class CeremonyKeysModel(Model):
    """The keys that a member confirmed."""

    member: Hex32
    public_key: BlobRefModel
    relin_keys: BlobRefModel
    box_key: Hex32


class Ceremony(CeremonySummary):
    """A ceremony with its contributions and what it waits for."""

    is_committed: bool = Field(description="All commitments of the round are in final blocks")
    committed: tuple[Hex32, ...] = Field(description="Members, in order of arrival")
    revealed: tuple[Hex32, ...]
    waits_for: tuple[Hex32, ...] = Field(
        description="Members whose commitment, contribution or confirmation is missing"
    )
    contributions: tuple[tuple[BlobRefModel, ...], ...] = Field(
        description="Of the rounds that are over, in the members' order; none of skipped ones"
    )
    confirmations: tuple[CeremonyKeysModel, ...]
    ended_by: Hex32 | None


def _get_round_name(record: CeremonyRecord) -> str | None:
    return ROUNDS[record.round] if record.round < len(ROUNDS) else None


def build_ceremony_summary(ceremony: Hash32, record: CeremonyRecord) -> CeremonySummary:
    create = record.create
    return CeremonySummary(
        id=ceremony.hex(),
        title=create.title,
        preset=create.preset,
        height=record.height,
        status=record.status.value,
        members=tuple(member.hex() for member in create.members),
        threshold=create.threshold,
        round=record.round,
        round_name=_get_round_name(record),
        deadline=create.deadline,
        renews=None if create.renews == ZERO_HASH else create.renews.hex(),
        renewed_by=None if record.renewed_by == ZERO_HASH else record.renewed_by.hex(),
    )


def build_ceremony(state: State, ceremony: Hash32, record: CeremonyRecord) -> Ceremony:
    committed = [item.member for item in record.commitments]
    revealed = [item.member for item in record.reveals]
    confirmed = [item.member for item in record.confirmations]
    done = confirmed if record.round == len(ROUNDS) else revealed if record.committed_height else committed
    return Ceremony(
        **dict(build_ceremony_summary(ceremony, record)),
        is_committed=is_committed(state, record),
        committed=tuple(member.hex() for member in committed),
        revealed=tuple(member.hex() for member in revealed),
        waits_for=tuple(member.hex() for member in record.create.members if member not in done),
        contributions=tuple(
            tuple(BlobRefModel.model_validate(blob) for blob in blobs) for blobs in record.contributions
        ),
        confirmations=tuple(CeremonyKeysModel.model_validate(item) for item in record.confirmations),
        ended_by=None if record.ended_by is None else record.ended_by.hex(),
    )


async def get_ceremonies(request: web.Request) -> web.Response:
    state, limit = get_view(request).get_state(), get_limit(request)
    numbers, following = take_page(request, "ceremonies", range(state.get_ceremony_count()), limit)
    found = []
    for number in numbers:
        ceremony = state.get_ceremony_id(number)
        record = None if ceremony is None else state.get_ceremony(ceremony)
        if ceremony is not None and record is not None:
            found.append(build_ceremony_summary(ceremony, record))
    return answer(Page[CeremonySummary](items=tuple(found), next=following))


async def get_ceremony(request: web.Request) -> web.Response:
    state = get_view(request).get_state()
    ceremony = parse_hash(request.match_info["ceremony"], "ceremony")
    record = state.get_ceremony(ceremony)
    if record is None:
        remedy = "Wait until its transaction is in a block (GET /v1/transactions/{id})"
        raise build_not_found("ceremony", f"ceremony {ceremony.hex()}", remedy)
    return answer(build_ceremony(state, ceremony, record))


CEREMONY_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/ceremonies",
        "listCeremonies",
        get_ceremonies,
        "Key ceremonies of committees, oldest first",
        Page[CeremonySummary],
        query=("limit", "cursor"),
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/ceremonies/{ceremony}",
        "getCeremony",
        get_ceremony,
        "A key ceremony: its round, contributions, and who is waited for",
        Ceremony,
        errors=(400, 404),
    ),
)
