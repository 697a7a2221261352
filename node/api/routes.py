"""The public REST routes: one table from which both the application and `/openapi.json` are made."""

from http import HTTPStatus

from aiohttp import web

from consensus.types import Address, Hash32, Height
from node.api import convert, schemas
from node.api.errors import Problem, build_held_elsewhere, build_not_found, build_parameter_problem
from node.api.requests import (
    HEIGHT,
    HEX_32,
    IMMUTABLE,
    JSON,
    MSGPACK,
    Route,
    answer,
    answer_cached,
    encode_cursor,
    get_cursor,
    get_limit,
    get_view,
    parse_hash,
    read_json,
    take_page,
)
from node.api.view import BlockRecord

# --- node -------------------------------------------------------------------------------------


async def get_status(request: web.Request) -> web.Response:
    return answer(convert.build_status(get_view(request)))


async def get_peers(request: web.Request) -> web.Response:
    peers = tuple(
        schemas.PeerModel(
            address=peer.address,
            node_id=peer.node_id,
            organisation=peer.organisation,
            connected=peer.connected,
            height=peer.height,
            head=None if peer.head is None else peer.head.hex(),
            latency_ms=peer.latency_ms,
            received_bytes=dict(peer.received_bytes),
            sent_bytes=dict(peer.sent_bytes),
        )
        for peer in get_view(request).get_peers()
    )
    return answer(schemas.PeersModel(items=peers))


async def get_mempool(request: web.Request) -> web.Response:
    limit = get_limit(request)
    items, following = take_page(request, "mempool", get_view(request).get_mempool(), limit)
    page = schemas.Page[schemas.TransactionSummaryModel]
    return answer(
        page(items=tuple(convert.build_transaction_summary(item) for item in items), next=following)
    )


# --- chain ------------------------------------------------------------------------------------


def _take_blocks(request: web.Request, list_name: str) -> tuple[list[BlockRecord], str | None]:
    """A page of the head chain, newest first."""
    view, limit = get_view(request), get_limit(request)
    head = view.get_head().header.height
    position = get_cursor(request, list_name)
    top = head if position is None else min(position, head)
    bottom = max(0, top - limit + 1)
    records = []
    for height in range(top, bottom - 1, -1):
        block_hash = view.get_block_hash(Height(height))
        record = None if block_hash is None else view.get_block(block_hash)
        if record is not None:
            records.append(record)
    return records, encode_cursor(list_name, bottom - 1) if bottom > 0 else None


async def get_blocks(request: web.Request) -> web.Response:
    records, following = _take_blocks(request, "blocks")
    page = schemas.Page[schemas.BlockSummaryModel]
    return answer(
        page(items=tuple(convert.build_block_summary(record) for record in records), next=following)
    )


async def get_headers(request: web.Request) -> web.Response:
    records, following = _take_blocks(request, "headers")
    page = schemas.Page[schemas.HeaderModel]
    return answer(page(items=tuple(convert.build_header(record) for record in records), next=following))


async def get_block(request: web.Request) -> web.Response:
    view, text = get_view(request), request.match_info["block"]
    block_hash: Hash32 | None
    if text == "head":
        block_hash = view.get_head().hash
    elif HEIGHT.fullmatch(text):
        block_hash = view.get_block_hash(Height(int(text)))
    elif HEX_32.fullmatch(text):
        block_hash = Hash32(bytes.fromhex(text))
    else:
        raise build_parameter_problem(
            "block", "Expected a block's hash (64 hexadecimal digits), a height or 'head'", "See /v1/blocks"
        )
    record = None if block_hash is None else view.get_block(block_hash)
    if record is None and HEIGHT.fullmatch(text) and 0 < int(text) < view.get_base():
        raise build_held_elsewhere(f"Block {text}", view.get_base())
    if record is None:
        raise build_not_found("block", f"block {text}", "See /v1/blocks for what is here")
    is_named_by_hash = len(text) == 64
    control = IMMUTABLE if is_named_by_hash else "no-cache"
    return answer_cached(request, convert.build_block(record), record.hash.hex(), control)


async def get_transaction(request: web.Request) -> web.Response:
    transaction = parse_hash(request.match_info["transaction"], "transaction")
    record = get_view(request).get_transaction(transaction)
    if record is None:
        raise build_not_found(
            "transaction",
            f"transaction {transaction.hex()}",
            "It was never seen here, or left the mempool unincluded",
        )
    model = convert.build_transaction_status(record)
    if (
        record.height is None
        or record.block is None
        or record.height > get_view(request).get_finalized().height
    ):
        return answer(model)
    return answer_cached(request, model, f"{transaction.hex()}-{record.block.hex()}", IMMUTABLE)


async def post_transaction(request: web.Request) -> web.Response:
    data = await _read_transaction(request)
    transaction = await get_view(request).submit_transaction(data)
    response = answer(schemas.SubmittedModel(id=transaction.hex()), HTTPStatus.ACCEPTED)
    response.headers["Location"] = f"/v1/transactions/{transaction.hex()}"
    return response


async def _read_transaction(request: web.Request) -> bytes:
    if request.content_type == MSGPACK:
        data = await request.read()
    elif request.content_type == JSON:
        data = bytes.fromhex((await read_json(request, schemas.SubmitModel)).transaction)
    else:
        raise Problem(
            415,
            "unsupported-media-type",
            f"Cannot read {request.content_type}",
            field="Content-Type",
            remedy=f"Send {MSGPACK} (canonical bytes) or {JSON} (hexadecimal in `transaction`)",
        )
    if not data:
        raise Problem(
            422, "bad-body", "The transaction is empty", field="transaction", remedy="Send its bytes"
        )
    return data


async def get_account(request: web.Request) -> web.Response:
    address = Address(parse_hash(request.match_info["address"], "address"))
    return answer(convert.build_account(get_view(request), address))


# --- tasks and models -------------------------------------------------------------------------


async def get_draft(request: web.Request) -> web.Response:
    draft = parse_hash(request.match_info["draft"], "draft")
    model = convert.build_draft(get_view(request), draft)
    if model is None:
        raise build_not_found("draft", f"draft {draft.hex()}", "Wait until its transaction is in a block")
    return answer(model)


def _read_task(request: web.Request) -> convert.TaskReader:
    view = get_view(request)
    task = parse_hash(request.match_info["task"], "task")
    try:
        return convert.TaskReader(view, view.get_state(), task)
    except LookupError as error:
        raise build_not_found("task", f"task {task.hex()}", "See /v1/tasks") from error


async def get_tasks(request: web.Request) -> web.Response:
    view, limit = get_view(request), get_limit(request)
    state = view.get_state()
    items, following = take_page(request, "tasks", state.get_tasks(), limit)
    summaries = tuple(convert.TaskReader(view, state, task).build_summary() for task in items)
    return answer(schemas.Page[schemas.TaskSummaryModel](items=summaries, next=following))


async def get_task(request: web.Request) -> web.Response:
    return answer(_read_task(request).build_detail())


def _require_history(reader: convert.TaskReader) -> None:
    """The lists of a task's openings are whole or not given."""
    base, task = reader.view.get_base(), reader.view.get_state().get_task(reader.id)
    if task is not None and task.published_height < base:
        raise build_held_elsewhere(f"The history of task {reader.id.hex()}", base)


async def get_steps(request: web.Request) -> web.Response:
    reader, limit = _read_task(request), get_limit(request)
    _require_history(reader)
    items, following = take_page(request, "steps", reader.build_steps(), limit)
    return answer(schemas.Page[schemas.StepModel](items=tuple(items), next=following))


async def get_openings(request: web.Request) -> web.Response:
    reader, limit = _read_task(request), get_limit(request)
    _require_history(reader)
    items, following = take_page(request, "openings", reader.view.get_openings(reader.id), limit)
    page = schemas.Page[schemas.OpeningModel]
    return answer(page(items=tuple(reader.build_opening(item) for item in items), next=following))


async def get_models(request: web.Request) -> web.Response:
    view, limit = get_view(request), get_limit(request)
    state = view.get_state()
    tasks, following = take_page(request, "models", state.get_tasks(), limit)
    models = (convert.TaskReader(view, state, task).build_model() for task in tasks)
    items = tuple(convert.build_model_summary(model) for model in models if model is not None)
    return answer(schemas.Page[schemas.ModelSummaryModel](items=items, next=following))


async def get_model(request: web.Request) -> web.Response:
    reader = _read_task(request)
    model = reader.build_model()
    if model is None:
        _require_history(reader)
        raise build_not_found(
            "task",
            f"settled model of task {reader.id.hex()} yet",
            "Wait for its first milestone (GET /v1/tasks/{id})",
        )
    tag = f"{model.block}-{model.status}"
    return answer_cached(request, model, tag, "no-cache")


_PAGED = ("limit", "cursor")

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/status",
        "getStatus",
        get_status,
        "Who the node is and where it stands",
        schemas.StatusModel,
    ),
    Route(
        "GET",
        "/v1/blocks",
        "listBlocks",
        get_blocks,
        "Blocks of the head chain, newest first",
        schemas.Page[schemas.BlockSummaryModel],
        query=_PAGED,
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/blocks/{block}",
        "getBlock",
        get_block,
        "A block by hash, by height, or the head",
        schemas.BlockModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/headers",
        "listHeaders",
        get_headers,
        "Headers of the head chain, newest first",
        schemas.Page[schemas.HeaderModel],
        query=_PAGED,
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/transactions/{transaction}",
        "getTransaction",
        get_transaction,
        "A transaction, included or waiting",
        schemas.TransactionStatusModel,
        errors=(400, 404),
    ),
    Route(
        "POST",
        "/v1/transactions",
        "submitTransaction",
        post_transaction,
        "Submit a signed transaction",
        schemas.SubmittedModel,
        status=202,
        body=schemas.SubmitModel,
        body_media=(JSON, MSGPACK),
        errors=(400, 409, 413, 415, 422, 429, 503),
    ),
    Route(
        "GET",
        "/v1/drafts/{draft}",
        "getDraft",
        get_draft,
        "A custody's draft of a task",
        schemas.DraftStatusModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/tasks",
        "listTasks",
        get_tasks,
        "Tasks in order of publication",
        schemas.Page[schemas.TaskSummaryModel],
        query=_PAGED,
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/tasks/{task}",
        "getTask",
        get_task,
        "A task with its ladder and what was spent on it",
        schemas.TaskModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/tasks/{task}/steps",
        "listSteps",
        get_steps,
        "Training steps, oldest first",
        schemas.Page[schemas.StepModel],
        query=_PAGED,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/tasks/{task}/openings",
        "listOpenings",
        get_openings,
        "Openings in chain order",
        schemas.Page[schemas.OpeningModel],
        query=_PAGED,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/models",
        "listModels",
        get_models,
        "Models that reached a milestone",
        schemas.Page[schemas.ModelSummaryModel],
        query=_PAGED,
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/models/{task}",
        "getModel",
        get_model,
        "The weights at a task's last milestone",
        schemas.TrainedModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/accounts/{address}",
        "getAccount",
        get_account,
        "An account with its proof in the state",
        schemas.AccountModel,
        errors=(400,),
    ),
    Route("GET", "/v1/peers", "listPeers", get_peers, "Peers and traffic by kind", schemas.PeersModel),
    Route(
        "GET",
        "/v1/mempool",
        "listMempool",
        get_mempool,
        "Waiting transactions, oldest first",
        schemas.Page[schemas.TransactionSummaryModel],
        query=_PAGED,
        errors=(400,),
    ),
)
