"""The documents of both listeners against a live node that holds one of everything: schemathesis tries what
they allow and what they forbid. No server error but the documented 503, no answer that they do not describe.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import JsonValue

from consensus.ceremonies import CreateCeremony
from consensus.federations import CreateFederation, Participant
from consensus.jobs import RegisterModel, RequestInference
from consensus.payload import Payload
from consensus.task import BlobRef, Milestone
from consensus.types import ZERO_HASH, Address, Amount, Hash32, Millis
from node.api.client import ApiError
from tests.testnet.fleet import Fleet, Recipe, poll, run_fleet

pytestmark = pytest.mark.slow

Document = dict[str, JsonValue]
SEED = 20_261_123
EXAMPLES = 10
"""Random requests of each kind to an operation, besides all that its schemas' bounds suggest."""
DEADLINE_S = 300.0
SETTINGS = {"fusion_requests": {"waiting": 2, "upload_s": 2.0}}
LEFT_OUT = ("/v1/events", "/v1/operator/drain")
"""A stream never ends, and a drained node takes no more work: other tests have them."""
RULES = """
color = false
[checks.not_a_server_error]
expected-statuses = ["1xx", "2xx", "3xx", "4xx", 503]
[checks.positive_data_acceptance]
expected-statuses = ["2xx", 304, 404, 409]
[[operations]]
include-method = ["POST", "PUT"]
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 404, 408, 409, 413, 415, 422, 429, 503]
"""
"""What fits a schema may still be refused: by the rules of the chain, or for it is not there."""
BLOB = BlobRef(Hash32(bytes([7]) * 32), 1_000)


@dataclass(frozen=True, slots=True)
class Live:
    """A testnet with a task that was mined, a model, a job, a federation and a ceremony."""

    fleet: Fleet
    values: Mapping[str, tuple[str, ...]]
    """Of path parameters: what exists."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with run_fleet(tmp_path_factory.mktemp("contract") / "fleet", 3, 1, settings=SETTINGS) as fleet:
        task = fleet.publish(Recipe(("0.05:100",), steps=2, batches=1, learning_rate=0.05))
        model, job = _ask(fleet)
        federation = _federate(fleet)
        ceremony = _gather(fleet)
        fleet.wait_complete(task, "node3")
        client = fleet.api("node3")
        draft = client.call(client.api.get_task(task)).draft
        block = client.call(client.api.get_block("1"))
        values = {
            "task": (task,),
            "draft": (draft,),
            "model": (model,),
            "job": (job,),
            "federation": (federation,),
            "ceremony": (ceremony,),
            "round": ("0",),
            "height": ("1",),
            "block": ("head", "0", "1", block.hash),
            "transaction": (model, job, federation, task),
            "address": tuple(node.address for node in fleet.testnet.nodes),
        }
        yield Live(fleet, values)


def _submit(fleet: Fleet, name: str, payload: Payload) -> str:
    """The id of a transaction once node3 has it in a block."""
    operator, reader = fleet.operate(name), fleet.api("node3")
    identifier = operator.call(operator.api.sign_and_submit(payload)).hex()

    def is_included() -> bool:
        with contextlib.suppress(ApiError):  # it is on its way to node3
            return reader.call(reader.api.get_transaction(identifier)).inclusion is not None
        return False

    poll(is_included, f"transaction {identifier[:12]} is in a block")
    return identifier


def _ask(fleet: Fleet) -> tuple[str, str]:
    """A model for encrypted inference and a job of it; nobody evaluates it here."""
    now = fleet.get_status("node3").head.time
    register = RegisterModel(
        "diagnosis", "pneumonia", "none", ZERO_HASH, BLOB, None, 1_000, 1_000, 1_000, Amount(1),
        Millis(now + 10_000_000),
    )  # fmt: skip
    model = _submit(fleet, "node2", register)
    request = RequestInference(
        Hash32(bytes.fromhex(model)), BLOB, BLOB, Amount(10), Millis(now + 4_000_000), Millis(now + 8_000_000)
    )
    return model, _submit(fleet, "node2", request)


def _federate(fleet: Fleet) -> str:
    now = fleet.get_status("node3").head.time
    addresses = sorted(bytes.fromhex(fleet.get_address(name)) for name in ("node2", "node3"))
    members = tuple(Participant(Address(address), 1) for address in addresses)
    create = CreateFederation(
        "lungs", "two hospitals", BLOB, BLOB, 3, BLOB, 1_000, members, 2, 4, 3, Millis(1_000_000),
        Millis(1_000_000), Millis(1_000_000), 100, 5, 10, (Milestone(500, Amount(50)),),
        Millis(now + 10_000_000),
    )  # fmt: skip
    return _submit(fleet, "node1", create)


def _gather(fleet: Fleet) -> str:
    now = fleet.get_status("node3").head.time
    addresses = sorted(bytes.fromhex(fleet.get_address(name)) for name in ("node1", "node2", "node3"))
    members = tuple(Address(address) for address in addresses)
    create = CreateCeremony("cardiac", "ckks-16384-60x5", members, 2, Millis(now + 10_000_000), ZERO_HASH)
    return _submit(fleet, "node1", create)


# --- the documents ------------------------------------------------------------------------------


def _fill(document: Document, live: Live, cursors: Mapping[str, str]) -> Document:
    """The document with what exists among the values that each parameter may have."""
    filled: Document = json.loads(json.dumps(document))
    paths = filled["paths"]
    assert isinstance(paths, dict)
    for path in LEFT_OUT:
        paths.pop(path, None)
    for path, item in paths.items():
        assert isinstance(item, dict)
        for operation in item.values():
            assert isinstance(operation, dict)
            parameters = operation.get("parameters")
            if isinstance(parameters, list):
                kept = [_fill_parameter(path, found, live, cursors) for found in parameters]
                operation["parameters"] = [found for found in kept if found is not None]
    return filled


def _fill_parameter(path: str, found: JsonValue, live: Live, cursors: Mapping[str, str]) -> JsonValue:
    """None: left out, for no value of it would be right, or none comes to an end."""
    assert isinstance(found, dict)
    name = str(found["name"])
    if name == "cursor":
        # Only what the node gave is right, and a schema can't say that.
        return found | {"schema": {"enum": [cursors[path]]}} if path in cursors else None
    if name == "length":
        return None  # fetching what no peer has goes on for as long as the client likes
    values = live.values.get(name)
    if values is None:
        return found
    schema = found["schema"]
    assert isinstance(schema, dict)
    kind = "integer" if schema["type"] == "integer" else "string"
    known: list[JsonValue] = [int(value) if kind == "integer" else value for value in values]
    examples: Document = {str(value): {"value": value} for value in known}
    rest = {key: value for key, value in found.items() if key != "example"}
    return rest | {"examples": examples, "schema": {"anyOf": [{"type": kind, "enum": known}, schema]}}


def _find_cursors(live: Live, document: Document) -> dict[str, str]:
    """A cursor that the node gives, by list, where there is more than one page."""
    client = live.fleet.api("node3")
    paths = document["paths"]
    assert isinstance(paths, dict)
    found = {}
    for path in paths:
        url = path.replace("{task}", live.values["task"][0])
        if "cursor" in json.dumps(paths[path]) and "{" not in url:
            page = json.loads(client.call(client.api._read(client.api._url + url, {"limit": "1"})))
            if page["next"] is not None:
                found[path] = page["next"]
    return found


def _run(directory: Path, document: Document, url: str, *options: str) -> int:
    """How many requests schemathesis tried, none of which failed; its own process, as from a shell."""
    directory.mkdir()
    (directory / "document.json").write_text(json.dumps(document), encoding="utf-8")
    (directory / "schemathesis.toml").write_text(RULES, encoding="utf-8")
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert program is not None, "schemathesis is not installed: pip install -r requirements-dev.lock"
    command = [program, "run", "document.json", "--url", url, "--phases", "examples,coverage,fuzzing"]
    command += ["--max-examples", str(EXAMPLES), "--continue-on-failure", "--seed", str(SEED)]
    command += ["--generation-database", "none", "--request-timeout", "60", *options]
    began = time.monotonic()
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=DEADLINE_S)
    print(f"{time.monotonic() - began:.1f} s\n{done.stdout[-8_000:]}")
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout[-20_000:]}{done.stderr}"
    tried = re.search(r"(\d+) generated", done.stdout)
    assert tried is not None, done.stdout
    return int(tried.group(1))


def test_the_public_listener_keeps_to_its_document(live: Live, tmp_path: Path) -> None:
    client = live.fleet.api("node3")
    document = client.call(client.api.get_document())
    filled = _fill(document, live, _find_cursors(live, document))
    assert _run(tmp_path / "public", filled, client.api._url) > 500
    assert live.fleet.get_status("node3").ready


def test_the_operators_listener_keeps_to_its_document(live: Live, tmp_path: Path) -> None:
    operator = live.fleet.operate("node3")
    document = operator.call(operator.api.get_operator_document())
    url, token = operator.api._get_operator()
    bearer = ("-H", f"Authorization: Bearer {token}")
    assert _run(tmp_path / "operator", _fill(document, live, {}), url, *bearer) > 100
    assert live.fleet.get_status("node3").ready
