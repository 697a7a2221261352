"""`bmif task draft` refuses a model before it makes a key or asks the node anything."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node.cli.main import app

runner = CliRunner()


@pytest.fixture
def config(tmp_path: Path) -> str:
    made = runner.invoke(app, ["testnet", "init", "--nodes", "2", "--dir", str(tmp_path / "net"), "--json"])
    return str(json.loads(made.stdout)[0]["config"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kernels", "3,x"], "--kernels '3,x': expected odd sides by commas"),
        (["--kernels", "3,4"], "kernel"),
        (["--kernels", "5,3,1", "--patch", "6"], "no output"),
        (["--second", "2"], "kernel"),
        (["--planes", "saliency,other"], "plane 'other' is unknown; known are saliency"),
        (["--planes", "saliency, saliency"], "name one twice"),
        (["--skip", "other"], "skip 'other' is unknown; known are mean"),
        (["--target", "other"], "target 'other' is unknown; known are maximum"),
        (["--patch", "16", "--channels", "1"], "a blob would have"),
        (["--preset", "other"], "unknown preset 'other'"),
    ],
)
def test_a_model_that_is_none_is_refused_first(
    config: str, tmp_path: Path, options: list[str], message: str
) -> None:
    limit = {"BMIF_LIMITS__MAX_BLOB_BYTES": str(512 * 1024**2)}
    result = runner.invoke(app, ["task", "draft", *options, "-c", config], env=limit)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.rglob("secret.key"))
