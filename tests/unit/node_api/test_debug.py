"""What a node tells of its inside, and what `bmif debug dump` makes of a stopped one."""

import asyncio
import base64
import json
import tarfile
import threading
from pathlib import Path

from aiohttp.test_utils import TestClient
from typer.testing import CliRunner

from node.cli.main import app
from node.config import NodeConfig
from node.debug import REDACTED, list_tasks, list_threads, redact
from node.settings import FederationSettings, OperatorSettings, VerdictSettings
from tests.unit.node_api.conftest import TOKEN, build_config


def read_archive(path: Path) -> dict[str, bytes]:
    """Every member by its name."""
    with tarfile.open(path) as archive:
        return {
            member.name.removeprefix("bmif-debug/"): data.read()
            for member in archive
            if (data := archive.extractfile(member)) is not None
        }


def test_private_settings_are_left_out(tmp_path: Path) -> None:
    private = tmp_path / "ward-7-patients"
    config = build_config(tmp_path).model_copy(
        update={
            "verdict": VerdictSettings(pairs=private, modality="MRI-of-ward-7"),
            "federation": FederationSettings(data=private / "scans.npz"),
            "operator": OperatorSettings(token_file=private / "token"),
        }
    )
    found = redact(config)
    text = json.dumps(found)
    assert "ward-7" not in text
    assert str(tmp_path) not in text
    assert found["verdict"] == {
        "pairs": REDACTED, "modality": REDACTED, "phantoms": REDACTED, "phantom_seed": REDACTED,
        "patches": 8192, "noise": None, "tolerance": None,
    }  # fmt: skip
    assert found["name"] == "node1"
    assert redact(build_config(tmp_path))["limits"] == build_config(tmp_path).limits.model_dump(mode="json")


def test_every_setting_is_there(tmp_path: Path) -> None:
    assert set(redact(build_config(tmp_path))) == set(NodeConfig.model_fields)


async def test_stacks_name_functions_and_no_values(api: TestClient) -> None:
    async def wait_for_canary(secret: str, begun: asyncio.Event) -> None:
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    waiting = asyncio.create_task(wait_for_canary("canary-value", begun), name="the one that waits")
    await begun.wait()
    try:
        tasks = {stack.name: stack for stack in list_tasks()}
        (name,) = [name for name in tasks if name.startswith("the one that waits: ")]
        assert "wait_for_canary" in tasks[name].frames[0]
        assert tasks[name].frames[-1].startswith("asyncio.locks:")
        threads = {stack.name: stack for stack in list_threads()}
        assert "list_threads" in threads[threading.main_thread().name].frames[-1]
        assert "canary-value" not in repr((tasks, threads))
        assert str(Path(__file__).parent) not in repr((tasks, threads))
    finally:
        waiting.cancel()


async def test_only_the_operator_looks_inside(operator: TestClient, api: TestClient) -> None:
    assert (await operator.get("/v1/operator/debug")).status == 401
    assert (await api.get("/v1/operator/debug")).status == 404
    answer = await operator.get("/v1/operator/debug", headers={"Authorization": f"Bearer {TOKEN}"})
    found = await answer.json()
    assert found["packages"]["bmif"]
    assert any("get_debug" in frame for stack in found["threads"] for frame in stack["frames"])
    assert TOKEN not in json.dumps(found)


def write_settings(home: Path) -> Path:
    """Settings of a node that has never run, with files whose bytes must not leave."""
    (home / "data" / "custody" / "ab").mkdir(parents=True)
    (home / "data" / "ledger").mkdir()
    (home / "data" / "ledger" / "000005.ldb").write_bytes(b"canary ledger")
    for name in ("account.key", "tls.key", "data/operator.token", "data/custody/ab/secret.key"):
        (home / name).write_text(f"canary {name}", encoding="utf-8")
    path = home / "node.yaml"
    settings = {
        "name": "node1", "data_dir": "data", "genesis": "genesis.json", "account_key": "account.key",
        "tls": {"authority": "ca.pem", "certificate": "tls.pem", "key": "tls.key"},
        "api": {"port": 1}, "operator": {"port": 2}, "peer": {"port": 3},
        "verdict": {"pairs": "canary-ward"},
    }  # fmt: skip
    path.write_text(json.dumps(settings), encoding="utf-8")
    (home / "node.log").write_text("12:00:00.000 INFO    node1 node: stopped\n", encoding="utf-8")
    return path


def test_a_stopped_node_is_dumped_without_secrets(tmp_path: Path) -> None:
    config, output = write_settings(tmp_path), tmp_path / "dump.tar.gz"
    result = CliRunner().invoke(app, ["debug", "dump", "-o", str(output), "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert "without status.json: " in result.output
    members = read_archive(output)
    assert set(members) == {
        "manifest.json", "settings.json", "packages.json", "system.json", "disk.json", "log.txt",
        "ledger.json",
    }  # fmt: skip
    manifest = json.loads(members["manifest.json"])
    assert manifest["running"] is False
    assert json.loads(members["ledger.json"]) == {".ldb": {"files": 1, "bytes": 13}}
    assert json.loads(members["disk.json"])["data"]["custody"] == {"files": 1, "bytes": 33}
    assert b"stopped" in members["log.txt"]
    everything = b"".join(members.values()) + "".join(members).encode()
    for secret in (b"canary", base64.b64encode(b"canary "), b"canary".hex().encode(), str(tmp_path).encode()):
        assert secret not in everything
    assert output.stat().st_mode & 0o077 == 0


def test_what_can_not_be_dumped_is_said(tmp_path: Path) -> None:
    config = write_settings(tmp_path)
    wrong = CliRunner().invoke(app, ["debug", "dump", "-o", str(tmp_path / "x.zip"), "--config", str(config)])
    assert wrong.exit_code == 1
    (tmp_path / "node.log").unlink()
    output = tmp_path / "x.tar.gz"
    found = CliRunner().invoke(app, ["debug", "dump", "-o", str(output), "--config", str(config), "--json"])
    assert "log.txt" in json.loads(found.stdout)["missing"]
    assert "log.txt" in json.loads(read_archive(output)["manifest.json"])["missing"]
