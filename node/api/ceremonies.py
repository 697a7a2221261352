"""Routes of key ceremonies: which there are, how far each is, what became of it."""

from aiohttp import web
from pydantic import Field

from consensus.ceremonies import ROUNDS, CeremonyRecord
from consensus.state import State
from consensus.types import Hash32
from node.api.errors import build_not_found
from node.api.fields import BlobRefModel, Count, Hex32, Model, TimeMs
from node.api.requests import Route, answer, get_limit, get_view, parse_hash, take_page
from node.api.schemas import Page


class RoundPartModel(Model):
    """What a member has done in the current round."""

    member: Hex32
    commitment: Hex32
    contribution: BlobRefModel | None = Field(description="Null until it is revealed")


class CompleteRoundModel(Model):
    """A round in which all members have revealed."""

    name: str
    contributions: tuple[BlobRefModel, ...] = Field(description="In the members' order")


class CeremonySummary(Model):
    id: Hex32
    preset: str
    creator: Hex32
    height: Count
    status: str = Field(description="`running`, `ready`, `failed`, `aborted` or `expired`")
    members: Count
    threshold: Count = Field(description="So many members open together")
    round: Count = Field(description="Rounds that are over; the number of the current one")
    phase: str = Field(
        description="The round in which it is, or ended: `coins`, `shares`, `relin`, `secrets` or `test`, "
        "or `keys`, when members confirm what all of it made"
    )
    deadline: TimeMs


class Ceremony(CeremonySummary):
    """A key ceremony with its members, rounds and keys."""

    accounts: tuple[Hex32, ...] = Field(description="The members, ascending")
    complete: tuple[CompleteRoundModel, ...]
    parts: tuple[RoundPartModel, ...] = Field(description="The current round, in order of commitment")
    committed_height: Count = Field(
        description="Of the block with the round's last commitment, 0 before; contributions are taken "
        "once it is final"
    )
    public_key: BlobRefModel | None = Field(description="As the first member confirmed it")
    relin_keys: BlobRefModel | None
    confirmed: tuple[Hex32, ...] = Field(description="Who confirmed these keys, in order")
    ended_by: Hex32 | None = Field(
        description="Who confirmed other keys than the first, aborted, or ended it after its deadline"
    )
    ended_height: Count = Field(description="Of the block that made it ready or ended it; 0 before")


# --- from the state -----------------------------------------------------------------------------


def get_phase(record: CeremonyRecord) -> str:
    """Name of the current round; `keys` after the last."""
    return (*ROUNDS, "keys")[len(record.complete)]


def build_ceremony_summary(ceremony: Hash32, record: CeremonyRecord) -> CeremonySummary:
    create = record.create
    return CeremonySummary(
        id=ceremony.hex(),
        preset=create.preset,
        creator=record.creator.hex(),
        height=record.height,
        status=record.status.value,
        members=len(create.members),
        threshold=create.threshold,
        round=len(record.complete),
        phase=get_phase(record),
        deadline=create.deadline,
    )


def _build_blob(blob: object) -> BlobRefModel | None:
    return None if blob is None else BlobRefModel.model_validate(blob)


def build_ceremony(ceremony: Hash32, record: CeremonyRecord) -> Ceremony:
    return Ceremony(
        **dict(build_ceremony_summary(ceremony, record)),
        accounts=tuple(member.hex() for member in record.create.members),
        complete=tuple(
            CompleteRoundModel(
                name=name,
                contributions=tuple(BlobRefModel.model_validate(blob) for blob in found.contributions),
            )
            for name, found in zip(ROUNDS, record.complete, strict=False)
        ),
        parts=tuple(RoundPartModel.model_validate(part) for part in record.parts),
        committed_height=record.committed_height,
        public_key=_build_blob(record.public_key),
        relin_keys=_build_blob(record.relin_keys),
        confirmed=tuple(member.hex() for member in record.confirmed),
        ended_by=None if record.ended_by is None else record.ended_by.hex(),
        ended_height=record.ended_height,
    )


# --- routes -------------------------------------------------------------------------------------


def _list(state: State, numbers: list[int]) -> tuple[CeremonySummary, ...]:
    found = []
    for number in numbers:
        ceremony = state.get_ceremony_id(number)
        record = None if ceremony is None else state.get_ceremony(ceremony)
        if ceremony is not None and record is not None:
            found.append(build_ceremony_summary(ceremony, record))
    return tuple(found)


async def get_ceremonies(request: web.Request) -> web.Response:
    state, limit = get_view(request).get_state(), get_limit(request)
    numbers, following = take_page(request, "ceremonies", range(state.get_ceremony_count()), limit)
    return answer(Page[CeremonySummary](items=_list(state, list(numbers)), next=following))


async def get_ceremony(request: web.Request) -> web.Response:
    ceremony = parse_hash(request.match_info["ceremony"], "ceremony")
    record = get_view(request).get_state().get_ceremony(ceremony)
    if record is None:
        remedy = "Wait until its transaction is in a block (GET /v1/transactions/{id})"
        raise build_not_found("ceremony", f"ceremony {ceremony.hex()}", remedy)
    return answer(build_ceremony(ceremony, record))


CEREMONY_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/ceremonies",
        "listCeremonies",
        get_ceremonies,
        "Key ceremonies, oldest first",
        Page[CeremonySummary],
        query=("limit", "cursor"),
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/ceremonies/{ceremony}",
        "getCeremony",
        get_ceremony,
        "A key ceremony with its members, rounds and keys",
        Ceremony,
        errors=(400, 404),
    ),
)
