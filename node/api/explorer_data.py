"""What the explorer needs beyond the other routes: contributions, who confirmed what, last votes, search."""

from collections.abc import Sequence

from aiohttp import web
from pydantic import Field

from consensus.records import ContributionRecord
from consensus.state import State
from consensus.task import Batch
from consensus.types import Address, Hash32, Height, Millis
from consensus.verdicts import compute_stake
from consensus.vote import Vote
from node.api.convert import TaskReader, build_checkpoint
from node.api.errors import build_held_elsewhere, build_not_found, build_parameter_problem
from node.api.fields import CheckpointModel, Count, Hex32, Model, TimeMs
from node.api.requests import HEIGHT, HEX_32, Route, answer, get_limit, get_view, parse_hash, take_page
from node.api.schemas import Page
from node.api.view import BlockRecord, NodeView, OpeningRecord

MAX_VOTE_BLOCKS = 40
"""How far back the last vote of each validator is looked for."""
MAX_CONFIRMING = 24
"""How many blocks after an opening's are searched for votes that confirm it."""


class PartModel(Model):
    """Encrypted batches of one use."""

    batches: Count
    patches: Count
    bytes: Count


class ContributionModel(Model):
    """What one hospital encrypted for a task."""

    id: Hex32 = Field(description="Its transaction")
    contributor: Hex32
    organisation: str
    patients: Count = Field(description="Distinct numbers of patients; the numbers mean nothing outside")
    training: PartModel
    validation: PartModel


class ContributionsModel(Model):
    items: tuple[ContributionModel, ...]
    bytes: Count = Field(description="Of all encrypted batches")


class ConfirmationModel(Model):
    """Who confirmed an opening: validators whose votes, in later blocks, are for its block or one above."""

    opening: Hex32
    kind: str = Field(description="`gradient` or `loss`")
    step: Count
    block: Hex32
    height: Count
    time: TimeMs
    proposer: Hex32
    final: bool
    voters: tuple[Hex32, ...] = Field(
        description=f"In order of arrival, until two thirds of stake or {MAX_CONFIRMING} blocks later"
    )
    stake: Count = Field(description="Of the voters, in the active set")


class LastVoteModel(Model):
    """The newest vote of a validator that a block carries."""

    validator: Hex32
    organisation: str
    source: CheckpointModel
    target: CheckpointModel
    height: Count = Field(description="Of the block that carries it")
    time: TimeMs = Field(description="Of that block")


class LastVotesModel(Model):
    items: tuple[LastVoteModel, ...] = Field(description="Newest first, of members of the active set")
    searched: Count = Field(description=f"Blocks below the head, at most {MAX_VOTE_BLOCKS}")


class FoundModel(Model):
    """Something that a search names."""

    kind: str = Field(
        description="`block`, `transaction`, `task`, `draft`, `model`, `job`, `federation`, `ceremony` or "
        "`account`"
    )
    id: str
    label: str


class SearchModel(Model):
    items: tuple[FoundModel, ...]


def _read_task(request: web.Request) -> TaskReader:
    view = get_view(request)
    task = parse_hash(request.match_info["task"], "task")
    try:
        return TaskReader(view, view.get_state(), task)
    except LookupError as error:
        raise build_not_found("task", f"task {task.hex()}", "See /v1/tasks") from error


# --- contributions ----------------------------------------------------------------------------


def _build_part(batches: Sequence[Batch]) -> PartModel:
    return PartModel(
        batches=len(batches),
        patches=sum(batch.patches for batch in batches),
        bytes=sum(batch.blob.length for batch in batches),
    )


def build_contribution(state: State, identifier: Hash32, record: ContributionRecord) -> ContributionModel:
    contribute = record.contribute
    return ContributionModel(
        id=identifier.hex(),
        contributor=record.sender.hex(),
        organisation=state.get_account(record.sender).organisation,
        patients=len({item.patient for item in contribute.patients}),
        training=_build_part(contribute.training),
        validation=_build_part(contribute.validation),
    )


async def get_contributions(request: web.Request) -> web.Response:
    reader = _read_task(request)
    found = []
    for identifier in reader.publication.contributions:
        record = reader.state.get_contribution(identifier)
        if record is not None:
            found.append(build_contribution(reader.state, identifier, record))
    total = sum(item.training.bytes + item.validation.bytes for item in found)
    return answer(ContributionsModel(items=tuple(found), bytes=total))


# --- who confirmed ----------------------------------------------------------------------------


class _VoteReader:
    """Votes of the head chain's blocks, each block read once a request."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        self._state = view.get_state()
        self._head = view.get_head().header.height
        self._total = self._state.get_total_stake()
        self._blocks: dict[int, BlockRecord | None] = {}

    def read(self, height: int) -> BlockRecord | None:
        if height not in self._blocks:
            found = self._view.get_block_hash(Height(height))
            self._blocks[height] = None if found is None else self._view.get_block(found)
        return self._blocks[height]

    def find_voters(self, height: int) -> tuple[tuple[Address, ...], int]:
        """Who voted for the block of this height or one above it, and their stake."""
        voters: dict[Address, None] = {}
        stake = 0
        for later in range(height + 1, min(self._head, height + MAX_CONFIRMING) + 1):
            record = self.read(later)
            votes = () if record is None else record.block.body.votes
            voters |= {vote.validator: None for vote in votes if vote.target.height >= height}
            stake = compute_stake(self._state, tuple(voters))
            if 3 * stake >= 2 * self._total:
                break
        return tuple(voters), stake


def _build_confirmation(
    reader: _VoteReader, found: OpeningRecord, kind: str, final: int
) -> ConfirmationModel:
    voters, stake = reader.find_voters(found.height)
    record = reader.read(found.height)
    proposer = bytes(32) if record is None else record.block.header.proposer
    return ConfirmationModel(
        opening=found.hash.hex(),
        kind=kind,
        step=found.opening.step,
        block=found.block.hex(),
        height=found.height,
        time=found.time,
        proposer=proposer.hex(),
        final=found.height <= final,
        voters=tuple(voter.hex() for voter in voters),
        stake=stake,
    )


async def get_confirmations(request: web.Request) -> web.Response:
    reader, limit = _read_task(request), get_limit(request)
    view = reader.view
    if reader.record.published_height < view.get_base():
        raise build_held_elsewhere(f"The history of task {reader.id.hex()}", view.get_base())
    items, following = take_page(request, "confirmations", view.get_openings(reader.id), limit)
    votes, final = _VoteReader(view), view.get_finalized().height
    built = (_build_confirmation(votes, found, reader.build_opening(found).kind, final) for found in items)
    return answer(Page[ConfirmationModel](items=tuple(built), next=following))


# --- last votes -------------------------------------------------------------------------------


async def get_votes(request: web.Request) -> web.Response:
    view = get_view(request)
    state, head = view.get_state(), view.get_head().header.height
    waiting = {member.address for member in state.get_validators()}
    found: list[LastVoteModel] = []
    searched = 0

    def take(vote: Vote, height: int, time: Millis) -> None:
        if vote.validator not in waiting:
            return
        waiting.remove(vote.validator)
        found.append(
            LastVoteModel(
                validator=vote.validator.hex(),
                organisation=state.get_account(vote.validator).organisation,
                source=build_checkpoint(vote.source),
                target=build_checkpoint(vote.target),
                height=height,
                time=time,
            )
        )

    for height in range(head, max(view.get_base(), head - MAX_VOTE_BLOCKS), -1):
        block = view.get_block_hash(Height(height))
        record = None if block is None else view.get_block(block)
        if record is None or not waiting:
            break
        searched += 1
        # A block may carry several votes of one validator: the highest is its newest.
        for vote in sorted(record.block.body.votes, key=lambda item: -item.target.height):
            take(vote, height, record.block.header.time)
    return answer(LastVotesModel(items=tuple(found), searched=searched))


# --- search -----------------------------------------------------------------------------------


def _search_hash(view: NodeView, wanted: Hash32) -> list[FoundModel]:
    state, found = view.get_state(), []

    def add(kind: str, label: str) -> None:
        found.append(FoundModel(kind=kind, id=wanted.hex(), label=label))

    block = view.get_block(wanted)
    if block is not None:
        add("block", f"Block {block.block.header.height}")
    publication = state.get_publication(wanted)
    draft = state.get_draft(wanted if publication is None else publication.draft)
    if draft is not None:
        add("draft" if publication is None else "task", draft.draft.title)
    model, federation = state.get_model(wanted), state.get_federation(wanted)
    if model is not None:
        add("model", model.register.label)
    if state.get_job(wanted) is not None:
        add("job", "Job of encrypted inference")
    if federation is not None:
        add("federation", federation.create.title)
    ceremony = state.get_ceremony(wanted)
    if ceremony is not None:
        add("ceremony", ceremony.create.title)
    if view.get_transaction(wanted) is not None:
        add("transaction", "Transaction")
    account = state.get_account(Address(wanted))
    if account.balance or account.nonce or account.organisation or state.get_stake(Address(wanted)):
        add("account", account.organisation or "Account")
    return found


async def get_search(request: web.Request) -> web.Response:
    """Everything of exactly this height, hash, address or id; empty where there is nothing."""
    text = request.query.get("q", "")
    view = get_view(request)
    if HEIGHT.fullmatch(text):
        block = view.get_block_hash(Height(int(text)))
        label = f"Block {text}"
        items = [] if block is None else [FoundModel(kind="block", id=block.hex(), label=label)]
        return answer(SearchModel(items=tuple(items)))
    if not HEX_32.fullmatch(text):
        raise build_parameter_problem(
            "q", "Expected a height, or 64 lower-case hexadecimal digits", "Copy the whole identifier"
        )
    return answer(SearchModel(items=tuple(_search_hash(view, Hash32(bytes.fromhex(text))))))


DATA_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/tasks/{task}/contributions",
        "listContributions",
        get_contributions,
        "Contributions to a task: patches and bytes of each hospital",
        ContributionsModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/tasks/{task}/confirmations",
        "listConfirmations",
        get_confirmations,
        "Openings in chain order, each with the validators who confirmed it",
        Page[ConfirmationModel],
        query=("limit", "cursor"),
        errors=(400, 404),
    ),
    Route("GET", "/v1/votes", "listVotes", get_votes, "The last vote of each validator", LastVotesModel),
    Route(
        "GET",
        "/v1/search",
        "search",
        get_search,
        "What a height, hash, address or id names",
        SearchModel,
        query=("q",),
        errors=(400,),
    ),
)
