"""What stands before every route: headers of all answers, pages of other origins, names of the listener."""

from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from pydantic import ValidationError

from node.api.app import build_operator_app, build_public_app
from node.settings import ApiSettings, OperatorSettings
from tests.unit.node_api.conftest import TOKEN, build_config
from tests.unit.node_api.fakes import FakeNode

PORTAL = "https://portal.example.org"
OTHER = "https://evil.example.org"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


def open_api(node: FakeNode, directory: Path, *origins: str) -> TestClient:
    config = build_config(directory)
    api = ApiSettings(cors_origins=origins, max_event_streams=2)
    return TestClient(TestServer(build_public_app(node, config.model_copy(update={"api": api}))))


def open_operator(node: FakeNode, directory: Path, settings: OperatorSettings) -> TestClient:
    config = build_config(directory).model_copy(update={"operator": settings})
    return TestClient(TestServer(build_operator_app(node, node, config, TOKEN)))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/status", 200),
        ("GET", "/v1/events", 200),
        ("GET", "/nothing", 404),
        ("DELETE", "/v1/status", 405),
        ("GET", "/v1/blocks?limit=0", 400),
        ("HEAD", "/v1/blocks/1", 200),
    ],
)
async def test_every_answer_has_the_security_headers(
    api: TestClient, method: str, path: str, status: int
) -> None:
    response = await api.request(method, path)
    assert response.status == status
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
    response.close()


async def test_pages_of_other_origins_get_nothing_by_default(api: TestClient) -> None:
    answer = await api.get("/v1/status", headers={"Origin": PORTAL})
    assert answer.status == 200
    preflight = await api.options(
        "/v1/status", headers={"Origin": PORTAL, "Access-Control-Request-Method": "GET"}
    )
    assert preflight.status == 405
    for headers in (answer.headers, preflight.headers):
        assert not [name for name in headers if name.startswith("Access-Control")]


async def test_a_listed_origin_may_read_and_write(node: FakeNode, tmp_path: Path) -> None:
    async with open_api(node, tmp_path, PORTAL) as api:
        asked = {"Origin": PORTAL, "Access-Control-Request-Method": "POST"}
        preflight = await api.options("/v1/transactions", headers=asked)
        assert preflight.status == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == PORTAL
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        assert "Content-Type" in preflight.headers["Access-Control-Allow-Headers"]
        for path in ("/v1/status", "/v1/blocks?limit=0", "/v1/events"):
            response = await api.get(path, headers={"Origin": PORTAL})
            assert response.headers["Access-Control-Allow-Origin"] == PORTAL
            assert "Origin" in response.headers["Vary"]
            assert "Access-Control-Allow-Credentials" not in response.headers
            response.close()
        stranger = await api.get("/v1/status", headers={"Origin": OTHER})
        assert "Access-Control-Allow-Origin" not in stranger.headers
        assert "Origin" in stranger.headers["Vary"]
        refused = await api.options("/v1/status", headers={**asked, "Origin": OTHER})
        assert "Access-Control-Allow-Methods" not in refused.headers


async def test_every_page_may_read_and_none_write(node: FakeNode, tmp_path: Path) -> None:
    async with open_api(node, tmp_path, "*") as api:
        read = await api.get("/v1/status", headers={"Origin": OTHER})
        assert read.headers["Access-Control-Allow-Origin"] == "*"
        preflight = await api.options(
            "/v1/transactions", headers={"Origin": OTHER, "Access-Control-Request-Method": "POST"}
        )
        assert "POST" not in preflight.headers["Access-Control-Allow-Methods"]
        written = await api.post("/v1/transactions", json={}, headers={"Origin": OTHER})
        assert "Access-Control-Allow-Origin" not in written.headers


@pytest.mark.parametrize("origin", ["portal.example.org", "https://a.example/", "https://*.example", "null"])
def test_an_origin_is_scheme_host_and_port(origin: str) -> None:
    with pytest.raises(ValidationError):
        ApiSettings(cors_origins=(origin,))


async def test_the_operators_listener_knows_no_other_origins(node: FakeNode, tmp_path: Path) -> None:
    config = build_config(tmp_path)
    config = config.model_copy(update={"api": ApiSettings(cors_origins=(PORTAL,))})
    async with TestClient(TestServer(build_operator_app(node, node, config, TOKEN))) as operator:
        asked = {"Origin": PORTAL, "Access-Control-Request-Method": "POST"}
        preflight = await operator.options("/v1/operator/transactions", headers=asked)
        answer = await operator.get("/openapi.json", headers={**AUTH, "Origin": PORTAL})
        assert (preflight.status, answer.status) == (401, 200)
        assert answer.headers["Cache-Control"] in ("no-store", "no-cache")
        for headers in (preflight.headers, answer.headers):
            assert not [name for name in headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8101", 200),
        ("localhost", 200),
        ("[::1]:8101", 200),
        ("node.example.org:8101", 200),
        ("NODE.example.org", 200),
        ("attacker.example", 421),
        ("127.0.0.1.attacker.example", 421),
        ("localhost.attacker.example:8101", 421),
        ("10.0.0.7", 421),
        ("", 421),
    ],
)
async def test_the_operators_listener_has_names_of_its_own(
    node: FakeNode, tmp_path: Path, host: str, status: int
) -> None:
    async with open_operator(node, tmp_path, OperatorSettings(hosts=("node.example.org",))) as operator:
        response = await operator.get("/openapi.json", headers={**AUTH, "Host": host})
        assert response.status == status


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "node1", ""])
def test_the_operators_listener_stays_on_this_machine(host: str) -> None:
    with pytest.raises(ValidationError, match="expose"):
        OperatorSettings(host=host)
    assert OperatorSettings(host=host, expose=True).host == host
    assert OperatorSettings(host=host, enabled=False).host == host
