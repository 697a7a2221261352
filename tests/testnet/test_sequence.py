"""An encrypted sequence as jobs on a testnet of four processes: the requester refreshes between them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from node import processes
from node.cli.main import app
from tests.integration.sequence_case import LENGTHS, SIDE, WINDOW, make_model, write_sequences
from tests.testnet.fleet import DEADLINE_S, EVALUATING, Fleet, get_workers, poll, run_fleet
from tests.testnet.memory import has_in_files, has_in_memory
from workloads.sequence import evaluate_clear, vote
from workloads.sequence_client import DIGITS
from workloads.sequence_model import encode_network, load_sequences

REQUESTER, EVALUATORS = "node1", ("node2", "node3", "node4")
"""node1 is the custody's, which may not evaluate: it asks. node2 owns the models, and evaluates too."""
FEE, PRICE = 1_000, 10
KIND = ("--kind", "sequence-diagnosis")
ROUNDING = 2.0**-11
"""Of features, when they are opened; a probability changes by less than a feature, and is rounded itself."""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Scene:
    fleet: Fleet
    folder: Path
    """Of the owner's models and of the requester's frames, session and keys."""
    registered: dict[str, str]
    """Ids on the chain by the models' file names."""

    def ask(self, step: dict[str, str], output: Path) -> str:
        """Submit the request that waits and fetch its result; the job's id."""
        requester, model = self.fleet.config(REQUESTER), self.registered[Path(step["model"]).name]
        job = self.fleet.bmif_json(
            "job", "diagnose", "submit", model, step["request"], step["keys"],
            "--fee", str(FEE), "--hours", "1", "--commit-hours", "0.9", *requester,
        )  # fmt: skip
        self.fleet.bmif("diagnose", "fetch", job, "-o", str(output), "--timeout", str(DEADLINE_S), *requester)
        return job


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("sequence")
    (folder / "network").write_bytes(encode_network(make_model()))
    write_sequences(folder / "sequences.npz")
    with run_fleet(folder / "fleet", 4, 3, settings=EVALUATING) as fleet:
        fleet.bmif("diagnose", "sequence", "compile", str(folder / "network"), "-o", str(folder / "models"))
        registered = {
            path.name: fleet.bmif_json(
                "model", "diagnose", "register", str(path), "--price", str(PRICE), "--provenance",
                "random weights", *KIND, *fleet.config("node2"),
            )
            for path in sorted((folder / "models").glob("*.model"))
        }  # fmt: skip
        yield Scene(fleet, folder, registered)


def test_a_sequence_is_decided_step_by_step(scene: Scene, tmp_path: Path) -> None:
    """Jobs for frames and each segment, a refresh before each segment; then what the clear network says."""
    fleet, folder = scene.fleet, scene.folder
    session, keys = str(tmp_path / "session"), ("--keys", str(tmp_path / "keys"))
    before = fleet.count_money(REQUESTER)
    step = json.loads(
        fleet.bmif(
            "diagnose", "sequence", "start", str(folder / "models"), str(folder / "sequences.npz"),
            "-o", session, *keys, "--json",
        )
    )  # fmt: skip
    jobs = []
    for number in range(1, WINDOW + 2):
        assert (step["number"], step["of"], step["refreshes"]) == (number, WINDOW + 1, number - 1)
        result = tmp_path / f"result-{number}"
        jobs.append(scene.ask(step, result))
        step = json.loads(
            fleet.bmif("diagnose", "sequence", "advance", session, str(result), *keys, "--json")
        )

    # After the last result there is no further step: these are the decisions.
    patients = load_sequences(folder / "sequences.npz", SIDE)
    clear = [vote(decisions) for decisions in evaluate_clear(make_model(), patients)]
    assert [one["case"] for one in step] == sorted(LENGTHS)
    for one, expected in zip(step, clear, strict=True):
        print(one["case"], one["probability"], expected)
        assert one["probability"] == pytest.approx(expected, abs=ROUNDING + 0.5 * 10**-DIGITS)
        assert one["found"] == (expected >= 0.5)

    addresses = {fleet.get_address(name) for name in EVALUATORS}
    for job in jobs:
        poll(lambda job=job: fleet.get_job(job).status == "settled", f"job {job[:12]} is settled")
        receipt = fleet.get_job(job).receipt
        assert receipt is not None
        assert (set(receipt.evaluators), receipt.caught, receipt.silent) == (addresses, (), ())
    fleet.wait_agreement((REQUESTER, *EVALUATORS))
    check_receipt(fleet, jobs[-1], result, addresses)
    after = fleet.count_money(REQUESTER)
    paid = {name: after[fleet.get_address(name)] - before[fleet.get_address(name)] for name in EVALUATORS}
    share = (FEE - PRICE) // len(EVALUATORS)
    assert paid == {name: len(jobs) * (share + PRICE * (name == "node2")) for name in EVALUATORS}
    check_no_secret(fleet, tmp_path / "keys")


def check_receipt(fleet: Fleet, job: str, result: Path, evaluators: set[str]) -> None:
    """The receipt is proved by validators' votes alone, and names this very result."""
    genesis = str(fleet.directory / "genesis.json")
    light = ("light", "--genesis", genesis, *fleet.config(REQUESTER), "receipt", job)

    def is_proved() -> bool:
        # Settled first, final a few blocks later.
        return bool(json.loads(fleet.bmif(*light, "--json"))["exists"])

    poll(is_proved, "the receipt is final")
    found = json.loads(fleet.bmif(*light, "--result", str(result), "--json"))
    assert set(found["evaluators"].split(", ")) == evaluators
    assert (found["caught"], found["silent"]) == ("", "")
    other = CliRunner().invoke(app, [*light, "--result", genesis])
    assert other.exit_code == 2
    assert "is not the job's result" in other.stderr


def check_no_secret(fleet: Fleet, keys: Path) -> None:
    """No part of either secret key is in the memory of a node or its workers, nor in any of their files."""
    paths = sorted(keys.glob("*/secret.key"))
    assert len(paths) == 2
    needles = [path.read_bytes()[4096:4128] for path in paths]
    for name in (REQUESTER, *EVALUATORS):
        pid = processes.get_pid(fleet.testnet.get_directory(name))
        assert pid is not None
        workers = get_workers(pid)
        assert workers or name == REQUESTER
        for process in (pid, *workers):
            assert not has_in_memory(process, needles), f"{name}: process {process} holds a secret key"
    assert not has_in_files(fleet.directory, needles)
    # That a process that does hold one is found:
    command = "import sys; key = open(sys.argv[1], 'rb').read(); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", command, str(paths[0])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert has_in_memory(holder.pid, needles)
        assert has_in_files(keys, needles)
        holder.communicate()
