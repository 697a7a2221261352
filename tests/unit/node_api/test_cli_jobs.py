"""`bmif diagnose` for jobs: what is refused before anything is uploaded or paid, and what is shown."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from consensus.types import Hash32
from node.api.fields import BlobRefModel
from node.api.jobs import InferenceModel, build_inference_model
from node.blobs import BlobStore
from node.cli.common import CliError, compute_file_ref
from node.cli.diagnose_jobs import check_files, read_own_progress
from node.cli.main import app
from node.config import NodeConfig
from node.evaluator import SCRATCH, get_progress_path
from node.testnet import Testnet
from tests.unit.node_api.fakes import BLOB, START, FakeNode
from tests.unit.node_api.test_cli import Served
from workloads.refusals import build_report

runner = CliRunner()


@pytest.fixture
def model(node: FakeNode) -> InferenceModel:
    record = node.state.get_model(node.model)
    assert record is not None
    return build_inference_model(node.state, node.model, record)


def test_what_fits_passes(model: InferenceModel) -> None:
    check_files(model, BLOB, BLOB, START + 1_000)
    keys = BlobRefModel.model_validate(BLOB)
    encrypted = model.model_copy(update={"keys": keys, "weights": "encrypted"})
    check_files(encrypted, BLOB, BLOB, START + 1_000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"retired": True}, "is retired; choose another"),
        ({"expires": START}, "registration ends"),
        ({"expires": START, "weights": "encrypted"}, "keys end"),
        ({"request_bytes": 999}, "has 1000 bytes, one for"),
        ({"keys_bytes": 1_001}, "keys have 1000 bytes"),
        ({"keys": BlobRefModel(root="00" * 32, length=1_000)}, "these keys are of another"),
    ],
)
def test_what_does_not_fit_is_named(model: InferenceModel, changes: dict[str, object], words: str) -> None:
    with pytest.raises(CliError, match=words):
        check_files(model.model_copy(update=changes), BLOB, BLOB, START + 1_000)


def test_a_files_root_is_its_blobs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2**20) + b"tail")
    assert compute_file_ref(path) == BlobStore(tmp_path / "blobs").import_file(path)


def test_jobs_and_models_are_shown(tmp_path: Path) -> None:
    served = Served(FakeNode(tmp_path), tmp_path)
    try:
        for arguments in ([], ["--models"], [served.node.job.hex()]):
            for form in ([], ["--json"]):
                result = runner.invoke(app, ["diagnose", "status", *arguments, *form, "--api", served.url])
                assert result.exit_code == 0, result.output
        assert served.node.job.hex() in result.stdout
        unknown = runner.invoke(app, ["diagnose", "status", "00" * 32, "--api", served.url])
        assert unknown.exit_code == 1
        assert "job" in unknown.stderr
    finally:
        served.close()


def test_how_far_the_own_evaluation_is(tmp_path: Path) -> None:
    """What the evaluator's worker writes is what `status` and `fetch` show, and nothing once it is gone."""
    directory = tmp_path / "net"
    made = runner.invoke(app, ["testnet", "init", "--nodes", "4", "--miners", "1", "--dir", str(directory)])
    assert made.exit_code == 0, made.output
    config = Testnet.load(directory).get_config_path("node2")
    job = Hash32(bytes(range(32)))
    path = get_progress_path(NodeConfig.load(config).data_dir / SCRATCH, job)
    assert read_own_progress(config, job.hex()) is None
    path.parent.mkdir(parents=True)
    build_report(path)(3, 8)
    assert read_own_progress(config, job.hex()) == "37 %"
    path.write_text("")
    assert read_own_progress(config, job.hex()) is None
