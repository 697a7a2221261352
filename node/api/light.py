"""Routes for light clients: finality proofs, headers, and proofs of accounts, tasks and transactions.

Everything that a client verifies travels as the canonical msgpack bytes of the consensus records, in
hexadecimal: what is hashed and signed must not pass through another form. `consensus/light.py` verifies it.
"""

import re

from aiohttp import web
from pydantic import BaseModel, Field

from consensus.codec import encode
from consensus.identifiers import compute_block_hash
from consensus.state import get_account_key, get_receipt_key, get_task_key
from consensus.types import Address
from node.api.errors import build_held_elsewhere, build_not_found, build_parameter_problem
from node.api.parameters import MAX_NUMBER
from node.api.requests import FRESH, HEIGHT, IMMUTABLE, Route, answer, answer_cached, get_view, parse_hash
from node.lightview import LightView, ProvedValue, Pruned

LIGHT = web.AppKey("light", LightView)
MAX_HEADERS = 512
COUNT = re.compile(r"[1-9][0-9]{0,2}")


class LightFinalityModel(BaseModel):
    """What leads from a known validator set to a final header."""

    changes: tuple[str, ...] = Field(
        description="`SetChange` records in order, canonical msgpack, hexadecimal"
    )
    proof: str | None = Field(
        description="`FinalityProof`, canonical msgpack, hexadecimal; null if more changes are to come, or "
        "nothing is proved yet"
    )


class LightHeadersModel(BaseModel):
    """Headers of the head chain, ascending; genesis has none."""

    items: tuple[str, ...] = Field(description="`Header` records, canonical msgpack, hexadecimal")


class LightSetModel(BaseModel):
    """A header and the validator set in its state."""

    header: str = Field(description="`Header`, canonical msgpack, hexadecimal")
    validators: str = Field(description="`SetProof`, canonical msgpack, hexadecimal")


class LightValueModel(BaseModel):
    """A value of the state, or its absence, under the highest header that is proved final."""

    height: int
    hash: str
    header: str = Field(description="`Header`, canonical msgpack, hexadecimal")
    value: str | None = Field(description="The record's canonical msgpack, hexadecimal; null for none")
    proof: str = Field(description="`Proof`, canonical msgpack, hexadecimal")


class LightTransactionModel(BaseModel):
    """A transaction under the transactions root of its block."""

    height: int
    hash: str
    header: str = Field(description="`Header`, canonical msgpack, hexadecimal")
    transaction: str = Field(description="`SignedTransaction`, canonical msgpack, hexadecimal")
    proof: str = Field(description="`ListProof`, canonical msgpack, hexadecimal")


def _get_number(request: web.Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not HEIGHT.fullmatch(text) or int(text) > MAX_NUMBER:
        raise build_parameter_problem(
            name, "Expected a whole number from 0 to 2^53", f"Leave it out for {default}"
        )
    return int(text)


async def get_finality_proof(request: web.Request) -> web.Response:
    reply = request.app[LIGHT].get_finality(_get_number(request, "set", 0))
    proof = None if reply.proof is None else encode(reply.proof).hex()
    return answer(
        LightFinalityModel(changes=tuple(encode(change).hex() for change in reply.changes), proof=proof)
    )


async def get_light_headers(request: web.Request) -> web.Response:
    count = request.query.get("count", str(MAX_HEADERS))
    if not COUNT.fullmatch(count) or int(count) > MAX_HEADERS:
        detail = f"Expected a number from 1 to {MAX_HEADERS}"
        raise build_parameter_problem("count", detail, f"Leave it out for {MAX_HEADERS}")
    headers = request.app[LIGHT].get_headers(max(1, _get_number(request, "from", 1)), int(count))
    model = LightHeadersModel(items=tuple(encode(header).hex() for header in headers))
    if len(headers) < int(count) or headers[-1].height > get_view(request).get_finalized().height:
        return answer(model)
    tag = f"{compute_block_hash(headers[-1]).hex()}-{len(headers)}"
    return answer_cached(request, model, tag, IMMUTABLE)


async def get_light_set(request: web.Request) -> web.Response:
    text = request.match_info["height"]
    if not HEIGHT.fullmatch(text):
        raise build_parameter_problem("height", "Expected a whole number from 0 on", "See /v1/status")
    light = request.app[LIGHT]
    found = light.get_set(int(text))
    if found is None:
        what = f"state at height {text}"
        raise build_not_found("height", what, f"Ask for a height from {max(1, light.base)} to the head's")
    header, validators = found
    model = LightSetModel(header=encode(header).hex(), validators=encode(validators).hex())
    is_final = header.height <= get_view(request).get_finalized().height
    return answer_cached(request, model, compute_block_hash(header).hex(), IMMUTABLE if is_final else FRESH)


def _answer_value(found: ProvedValue | None) -> web.Response:
    if found is None:
        raise build_not_found("(state)", "block is proved final yet", "Try again when the chain has finality")
    return answer(
        LightValueModel(
            height=found.header.height,
            hash=compute_block_hash(found.header).hex(),
            header=encode(found.header).hex(),
            value=None if found.value is None else found.value.hex(),
            proof=encode(found.proof).hex(),
        )
    )


async def get_account_proof(request: web.Request) -> web.Response:
    address = Address(parse_hash(request.match_info["address"], "address"))
    return _answer_value(request.app[LIGHT].prove_value(get_account_key(address)))


async def get_task_proof(request: web.Request) -> web.Response:
    task = parse_hash(request.match_info["task"], "task")
    return _answer_value(request.app[LIGHT].prove_value(get_task_key(task)))


async def get_receipt_proof(request: web.Request) -> web.Response:
    job = parse_hash(request.match_info["job"], "job")
    return _answer_value(request.app[LIGHT].prove_value(get_receipt_key(job)))


async def get_transaction_proof(request: web.Request) -> web.Response:
    name = parse_hash(request.match_info["transaction"], "transaction")
    light = request.app[LIGHT]
    try:
        found = light.prove_transaction(name)
    except Pruned as error:
        raise build_held_elsewhere(str(error), light.base) from error
    if found is None:
        remedy = "Only transactions in blocks are proved"
        raise build_not_found("transaction", f"transaction {name.hex()} in a block that is held here", remedy)
    model = LightTransactionModel(
        height=found.header.height,
        hash=compute_block_hash(found.header).hex(),
        header=encode(found.header).hex(),
        transaction=encode(found.transaction).hex(),
        proof=encode(found.proof).hex(),
    )
    is_final = model.height <= get_view(request).get_finalized().height
    return answer_cached(request, model, f"{name.hex()}-{model.hash}", IMMUTABLE if is_final else FRESH)


LIGHT_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/finality/proof",
        "getFinalityProof",
        get_finality_proof,
        "What proves a final header to whoever knows a validator set",
        LightFinalityModel,
        query=("set",),
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/light/headers",
        "listLightHeaders",
        get_light_headers,
        "Headers as they are hashed, ascending from a height",
        LightHeadersModel,
        query=("from", "count"),
        errors=(400,),
    ),
    Route(
        "GET",
        "/v1/proofs/validators/{height}",
        "getValidatorsProof",
        get_light_set,
        "The validator set in the state at a height",
        LightSetModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/proofs/accounts/{address}",
        "getAccountProof",
        get_account_proof,
        "An account under a final header",
        LightValueModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/proofs/tasks/{task}",
        "getTaskProof",
        get_task_proof,
        "A task under a final header",
        LightValueModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/proofs/receipts/{job}",
        "getReceiptProof",
        get_receipt_proof,
        "The receipt of a settled job of inference under a final header",
        LightValueModel,
        errors=(400, 404),
    ),
    Route(
        "GET",
        "/v1/proofs/transactions/{transaction}",
        "getTransactionProof",
        get_transaction_proof,
        "A transaction, an opening for one, under its block's header",
        LightTransactionModel,
        errors=(400, 404),
    ),
)
