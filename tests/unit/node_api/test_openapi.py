"""The OpenAPI documents: valid 3.1, complete, and true of what the applications do."""

import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from openapi_spec_validator import OpenAPIV31SpecValidator

from node.api.app import build_operator_document, build_public_document
from tests.unit.node_api.fakes import FakeNode


@pytest.mark.parametrize("build", [build_public_document, build_operator_document])
def test_the_document_is_valid_openapi(build) -> None:
    document = json.loads(build("0.1.0"))
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()


def get_routes(app: web.Application) -> set[tuple[str, str]]:
    found = set()
    for route in app.router.routes():
        assert route.resource is not None
        if route.method != "HEAD":
            found.add((route.method.lower(), route.resource.canonical))
    return found


async def test_every_route_is_documented(api: TestClient, operator: TestClient) -> None:
    for client in (api, operator):
        await check_documented(client)


async def check_documented(client: TestClient) -> None:
    headers = {"Authorization": "Bearer the-operator-token"}
    document = await (await client.get("/openapi.json", headers=headers)).json()
    documented = {(method, path) for path, item in document["paths"].items() for method in item}
    assert client.app is not None
    assert documented == get_routes(client.app)
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["summary"]
            assert {"400", "500"} <= operation["responses"].keys()


async def test_answers_fit_their_schemas(api: TestClient, node: FakeNode) -> None:
    """Every documented GET with an example of each parameter, checked against the served document."""
    from jsonschema import Draft202012Validator

    document = await (await api.get("/openapi.json")).json()
    publication = node.state.get_publication(node.task)
    assert publication is not None
    values = {
        "{block}": "1",
        "{transaction}": node.openings[0].transaction.hex(),
        "{draft}": publication.draft.hex(),
        "{task}": node.task.hex(),
        "{address}": bytes(32).hex(),
        "{model}": node.model.hex(),
        "{job}": node.job.hex(),
        "{federation}": node.federation.hex(),
        "{round}": "1",
    }
    checked = 0
    for path, item in document["paths"].items():
        if "get" not in item or path in ("/v1/events", "/metrics", "/openapi.json"):
            continue
        if path.endswith("/result"):
            continue  # bytes, not JSON
        url = path
        for name, value in values.items():
            url = url.replace(name, value)
        response = await api.get(url)
        assert response.status == 200, url
        content = item["get"]["responses"]["200"]["content"]
        schema = {**content["application/json"]["schema"], "components": document["components"]}
        Draft202012Validator(schema).validate(await response.json())
        checked += 1
    assert checked >= 26
