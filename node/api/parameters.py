"""What parameters mean, as the OpenAPI documents say it: one entry a name, whatever route has it."""

from collections.abc import Mapping

from pydantic import JsonValue

from node.api.requests import DEFAULT_LIMIT, MAX_LIMIT
from node.events import EventKind

Parameter = dict[str, JsonValue]
MAX_NUMBER = 2**53
EXAMPLE_HASH = "5f" * 32
_HASH: Parameter = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_NUMBER: Parameter = {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}
_KINDS = "|".join(EventKind)


def _build_hash(what: str) -> Parameter:
    return {
        "description": f"{what}, 64 lower-case hexadecimal digits",
        "schema": _HASH,
        "example": EXAMPLE_HASH,
    }


PATH: Mapping[str, Parameter] = {
    "block": {
        "description": "Hash (64 hexadecimal digits), height, or `head`",
        "schema": {"type": "string", "pattern": "^([0-9a-f]{64}|0|[1-9][0-9]{0,15}|head)$"},
        "example": "head",
    },
    "height": {"description": "Number of blocks above genesis", "schema": _NUMBER, "example": 1},
    "round": {"description": "Number of a round, from 0", "schema": _NUMBER, "example": 0},
    "transaction": _build_hash("Id of a transaction"),
    "draft": _build_hash("Hash of a draft"),
    "task": _build_hash("Id of a task"),
    "address": _build_hash("Address of an account"),
    "model": _build_hash("Id of a model for encrypted inference"),
    "job": _build_hash("Id of a job of encrypted inference"),
    "federation": _build_hash("Id of a federation"),
    "ceremony": _build_hash("Id of a key ceremony"),
    "fusion": _build_hash("Id of an encrypted fusion, which only its client knows"),
    "root": _build_hash("Root of a blob"),
    "file": {
        "description": "Name of a file of the explorer",
        "schema": {"type": "string", "pattern": "^[^/]+$"},
        "example": "app.js",
    },
}
QUERY: Mapping[str, Parameter] = {
    "limit": {
        "description": "Most items of the page",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        "example": DEFAULT_LIMIT,
    },
    "cursor": {
        "description": "`next` of the page before, unchanged; left out for the first page",
        "schema": {"type": "string", "minLength": 1, "pattern": "^[A-Za-z0-9_-]+$"},
    },
    "kinds": {
        "description": f"Kinds of events, separated by commas: {', '.join(EventKind)}; left out for all",
        "schema": {"type": "string", "pattern": f"^({_KINDS})(,({_KINDS}))*$"},
        "example": "head,finalized",
    },
    "after": {
        "description": "Replay events after this id; the header Last-Event-ID goes before it",
        "schema": _NUMBER,
        "example": 0,
    },
    "length": {
        "description": "Bytes of the blob: with it the node fetches the blob from peers",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_NUMBER},
        "example": 1_048_576,
    },
    "height": {
        "description": "Of this block, or the nearest below that is proved final; left out for the newest",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_NUMBER},
        "example": 100,
    },
    "set": {
        "description": "Number of the validator set that the client knows",
        "schema": {**_NUMBER, "default": 0},
        "example": 0,
    },
    "from": {"description": "Lowest height", "schema": {**_NUMBER, "default": 1}, "example": 1},
    "task": {"required": True, **_build_hash("Task whose settled model is asked for")},
    "weights": {
        "required": True,
        **_build_hash("`weights_digest` of the model that the request was encrypted for"),
    },
    "tile": {
        "required": True,
        "description": "Side of a tile's result, pixels",
        "schema": {"type": "integer", "minimum": 1, "maximum": 8},
        "example": 4,
    },
    "digest": _build_hash("`weights_digest` of the model that is meant; left out for the settled one"),
    "q": {
        "required": True,
        "description": "A height, or 64 lower-case hexadecimal digits: a hash, an address, an id",
        "schema": {"type": "string", "pattern": "^([0-9a-f]{64}|0|[1-9][0-9]{0,15})$"},
        "example": "0",
    },
    "count": {
        "description": "Most items of the answer",
        "schema": {"type": "integer", "minimum": 1, "maximum": 512, "default": 512},
        "example": 512,
    },
}
HEADER: Mapping[str, Parameter] = {
    "Last-Event-ID": {
        "description": "Replay events after this id; browsers send it by themselves when they come back",
        "schema": {"type": "string", "pattern": "^([0-9]{1,15})?$"},
        "example": "0",
    },
}
TAGS: Mapping[str, str] = {
    "node": "Who the node is, its peers, what waits, what happens.",
    "chain": "Blocks, transactions and accounts.",
    "tasks": "Encrypted training: drafts, tasks, steps, openings, models.",
    "trust": "Finality, validators, governance.",
    "proofs": "What a client needs that trusts no node.",
    "inference": "Encrypted diagnosis: models, jobs, evaluators.",
    "federations": "Federated rounds.",
    "ceremonies": "Key ceremonies of committees, no member of which can decrypt alone.",
    "fusions": "Encrypted fusion of a pair by a trained model.",
    "operator": "What needs the node's key, behind the operator's token.",
    "service": "Health, metrics and this documentation.",
}
_TAG_OF = {
    **dict.fromkeys(("status", "peers", "mempool", "events", "search"), "node"),
    **dict.fromkeys(("blocks", "headers", "transactions", "accounts"), "chain"),
    **dict.fromkeys(("drafts", "tasks", "models"), "tasks"),
    **dict.fromkeys(("finality", "validators", "governance", "votes"), "trust"),
    **dict.fromkeys(("light", "proofs"), "proofs"),
}


def find_tag(path: str) -> str:
    """The subject of a route: one of `TAGS`."""
    parts = path.strip("/").split("/")
    if parts[-1] == "proof":
        return "proofs"
    if parts[0] != "v1" or len(parts) < 2:
        return "service"
    return _TAG_OF.get(parts[1], parts[1] if parts[1] in TAGS else "service")
