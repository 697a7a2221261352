"""An encrypted diagnosis as a job on a testnet of real processes: one of three evaluators lies."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from he.compiler import compile_network
from he.context import PrivateContext
from he.diagnosis import (
    decrypt_result,
    encode_keys,
    encrypt_images,
    encrypt_model,
    get_rounding_bits,
    make_keys,
)
from he.network import INPUT, Convolution, Dense, Network, Polynomial, evaluate
from he.program import Program
from node import processes
from node.api.jobs import EvaluatorModel
from tests.testnet.fleet import DEADLINE_S, EVALUATING, Fleet, poll, run_fleet
from workloads.diagnosis_inference import DiagnosisInference
from workloads.inference import InferenceJob as Evaluation

HONEST, LIAR = ("node1", "node2", "node3"), "node4"
"""node1 is the custody's, which may not evaluate: it asks. node2 owns the model, and evaluates too."""
FEE, PRICE = 1_001, 100

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """A model and an image under one key pair, as files, and what comes out in clear."""

    private: PrivateContext
    program: Program
    model: Path
    keys: Path
    request: Path
    image: np.ndarray


def build_case(directory: Path) -> Case:
    """The smallest network of a kind that fits a secure ring: a convolution, a square, a dense layer."""
    rng = np.random.default_rng(4)
    print("seed 4")
    network = Network(
        (1, 4, 4),
        (
            Convolution("c", INPUT, rng.normal(size=(1, 1, 3, 3)) / 3, rng.normal(size=1) / 4, 1, 0),
            Polynomial("p", "c", (0.1, 0.5, 0.25), (-3.0, 3.0), 0.0),
            Dense("d", "p", rng.normal(size=(2, 4)) / 2, rng.normal(size=2) / 4),
        ),
    )
    program = compile_network(network, weights="encrypted")
    private = make_keys(program)
    image = rng.uniform(0, 1, size=(1, 1, 4, 4))
    model, keys, request = (directory / name for name in ("model", "keys", "request"))
    case = Case(private, program, model, keys, request, image)
    case.model.write_bytes(encrypt_model(private.public, program))
    case.keys.write_bytes(encode_keys(private))
    case.request.write_bytes(encrypt_images(private.public, program, image))
    return case


def start_liar(fleet: Fleet) -> None:
    home = fleet.testnet.get_directory(LIAR)
    command = [
        sys.executable,
        "-c",
        "from tests.testnet.lying import main; main()",
        str(fleet.testnet.get_config_path(LIAR)),
    ]
    root = str(Path(__file__).parents[2])
    with (home / processes.LOG_FILE).open("ab") as log:
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": root}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=root, env=environment
        )
    fleet.stack.callback(process.wait, 30)
    fleet.stack.callback(process.terminate)
    node = fleet.testnet.select((LIAR,))[0]

    def is_up() -> bool:
        assert process.poll() is None, fleet.read_log(LIAR)
        return processes.probe(fleet.testnet.get_api_url(node), node.address)[0]

    poll(is_up, "the liar is up")


def get_counts(fleet: Fleet) -> dict[str, EvaluatorModel]:
    client = fleet.api("node3")
    return {item.organisation: item for item in client.call(client.api.get_evaluators()).items}


@dataclass(frozen=True)
class Scene:
    fleet: Fleet
    case: Case
    model: str
    """Its id on the chain."""

    def submit(self) -> str:
        case = self.case
        return self.fleet.bmif_json(
            "job", "diagnose", "submit", self.model, str(case.request), str(case.keys), "--fee", str(FEE),
            "--hours", "1", "--commit-hours", "0.9", *self.fleet.config("node1"),
        )  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("inference")
    case = build_case(directory)
    with run_fleet(directory / "fleet", 4, 3, HONEST, EVALUATING) as fleet:
        start_liar(fleet)
        model = fleet.bmif_json(
            "model", "diagnose", "register", str(case.model), "--keys", str(case.keys), "--price", str(PRICE),
            "--provenance", "random weights", *fleet.config("node2"),
        )  # fmt: skip
        yield Scene(fleet, case, model)


def test_a_wrong_result_is_caught_and_the_right_one_paid(scene: Scene, tmp_path: Path) -> None:
    fleet, case = scene.fleet, scene.case
    before = fleet.count_money("node1")
    job = scene.submit()
    output, requester = tmp_path / "result", fleet.config("node1")
    fleet.bmif("diagnose", "fetch", job, "-o", str(output), "--timeout", str(DEADLINE_S), *requester)

    expected = tmp_path / "expected"
    DiagnosisInference().run(Evaluation(case.model, case.keys, case.request, expected))
    assert output.read_bytes() == expected.read_bytes()
    decrypted = decrypt_result(case.private, case.program, output.read_bytes(), 1)
    unit = 2.0 ** -get_rounding_bits(case.program)
    assert np.abs(decrypted - evaluate(case.program.network, case.image)).max() <= 0.6 * unit

    poll(lambda: fleet.get_job(job).status == "settled", "the job is settled")
    fleet.wait_agreement((*HONEST, LIAR))
    receipt = fleet.get_job(job, LIAR).receipt
    assert receipt is not None
    assert set(receipt.evaluators) == {fleet.get_address(name) for name in ("node2", "node3")}
    assert receipt.caught == (fleet.get_address(LIAR),)
    after = fleet.count_money("node1")
    gains = {key: after[key] - before[key] for key in after}
    share, dust = divmod(FEE - PRICE, 2)
    addresses = [fleet.get_address(name) for name in (*HONEST, LIAR)]
    assert [gains[address] for address in addresses] == [dust - FEE, share + PRICE, share, 0]
    counts = get_counts(fleet)
    liar = fleet.testnet.select((LIAR,))[0].organisation
    assert [(c.right, c.wrong) for name, c in counts.items() if name != liar] == [(1, 0), (1, 0)]
    assert (counts[liar].right, counts[liar].wrong) == (0, 1)
    shown = json.loads(fleet.bmif("diagnose", "status", job, "--json", *requester))
    assert shown["receipt"]["result"]["root"] == receipt.result.root


def test_an_evaluator_that_was_killed_shows_what_it_had_committed_to(scene: Scene) -> None:
    """kill -9 once its commitment is on the chain: after a restart it has its part, and is paid for it."""
    fleet = scene.fleet
    job = scene.submit()
    address = fleet.get_address("node3")
    poll(lambda: any(e.evaluator == address for e in fleet.get_job(job).evaluations), "node3 has committed")
    fleet.kill("node3")
    fleet.up("node3")
    poll(lambda: fleet.get_job(job).status == "settled", "the job is settled")
    receipt = fleet.get_job(job).receipt
    assert receipt is not None
    assert set(receipt.evaluators) == {fleet.get_address("node2"), address}
