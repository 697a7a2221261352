"""The OpenAPI documents: valid 3.1, complete, and true of what the applications do."""

import base64
import hashlib
import json
import re

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from node.api.app import build_operator_document, build_public_document
from node.api.reference import build_reference
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


def list_operations(document: dict) -> list[tuple[str, str, dict]]:
    return [
        (path, method, found) for path, item in document["paths"].items() for method, found in item.items()
    ]


@pytest.mark.parametrize("build", [build_public_document, build_operator_document])
def test_every_route_says_what_it_takes_and_gives(build) -> None:
    document = json.loads(build("0.1.0"))
    operations = list_operations(document)
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in document["tags"]}
    for path, method, operation in operations:
        assert operation["summary"], path
        assert operation["tags"][0] in tags, path
        responses = operation["responses"]
        assert {"400", "500"} <= responses.keys(), path
        assert "{" not in path or "404" in responses, path
        assert method != "post" or {"413", "415", "422"} <= responses.keys(), path
        for status, response in responses.items():
            name = response.get("$ref", "").rpartition("/")[2]
            found = document["components"]["responses"][name] if name else response
            assert found["description"], (path, status)
            assert status[0] not in "45" or "application/problem+json" in found["content"], (path, status)
        given = {item["name"] for item in operation.get("parameters", ()) if item["in"] == "path"}
        assert given == set(re.findall(r"{(\w+)}", path))
        for parameter in operation.get("parameters", ()):
            assert len(parameter["description"]) > 10, (path, parameter["name"])
            if parameter["in"] == "path":
                schema = parameter["schema"]
                Draft202012Validator(schema).validate(parameter["example"])


def test_the_default_document_has_every_route() -> None:
    document = json.loads(build_public_document("0.1.0"))
    assert {"/v1/light/headers", "/v1/fusions", "/v1/status", "/docs"} <= document["paths"].keys()


async def test_the_reference_is_one_page_without_anything_from_elsewhere(api: TestClient) -> None:
    response = await api.get("/docs")
    page = await response.text()
    assert response.content_type == "text/html"
    policy = response.headers["Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style.group(1).encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "<script" not in page
    assert not re.search(r"(src|href)=.?(https?:)?//", page)
    document = await (await api.get("/openapi.json")).json()
    for _, _, operation in list_operations(document):
        assert f'<details id="{operation["operationId"]}">' in page
    anchors, targets = set(re.findall(r'href="#([^"]+)"', page)), set(re.findall(r' id="([^"]+)"', page))
    assert anchors <= targets
    assert len(re.findall(r' id="', page)) == len(targets)


def test_the_reference_escapes_what_it_shows() -> None:
    info = {"title": "<script>", "version": "1", "description": "`a<b` & c"}
    page = build_reference({"info": info, "paths": {}, "components": {}}).decode()
    assert "<script" not in page
    assert "<code>a&lt;b</code> &amp; c" in page


async def test_answers_fit_their_schemas(api: TestClient, node: FakeNode) -> None:
    """Every documented GET with an example of each parameter, checked against the served document."""
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
        "{ceremony}": node.ceremony.hex(),
        "{round}": "1",
    }
    checked = 0
    for path, item in document["paths"].items():
        if "get" not in item or path in ("/v1/events", "/metrics", "/openapi.json", "/docs"):
            continue
        content = item["get"]["responses"]["200"]["content"]
        if "application/json" not in content:
            continue  # files and pictures
        url = path + ("?q=1" if path == "/v1/search" else "")
        for name, value in values.items():
            url = url.replace(name, value)
        response = await api.get(url)
        assert response.status == 200, url
        schema = {**content["application/json"]["schema"], "components": document["components"]}
        Draft202012Validator(schema).validate(await response.json())
        checked += 1
    assert checked >= 26
