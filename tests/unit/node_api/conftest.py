"""One fake node behind real applications on real sockets."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from node.api.app import build_operator_app, build_public_app
from node.config import NodeConfig
from node.settings import ApiSettings, LimitSettings, TlsSettings
from tests.unit.node_api.fakes import FakeNode

TOKEN = "the-operator-token"


def build_config(directory: Path) -> NodeConfig:
    return NodeConfig(
        name="node1",
        data_dir=directory,
        genesis=directory / "genesis.json",
        account_key=directory / "account.key",
        tls=TlsSettings(authority=directory / "ca", certificate=directory / "c", key=directory / "k"),
        api=ApiSettings(max_event_streams=2, event_reader_timeout_s=0.3, posts_per_minute=600),
        limits=LimitSettings(max_request_bytes=4096, max_blob_bytes=3_000_000),
    )


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


@pytest.fixture
async def api(node: FakeNode, tmp_path: Path) -> AsyncIterator[TestClient]:
    async with TestClient(TestServer(build_public_app(node, build_config(tmp_path)))) as client:
        yield client


@pytest.fixture
async def operator(node: FakeNode, tmp_path: Path) -> AsyncIterator[TestClient]:
    async with TestClient(
        TestServer(build_operator_app(node, node, build_config(tmp_path), TOKEN))
    ) as client:
        yield client
