"""A federation by its commands alone, on a testnet: hospitals join and train, one is killed with its update
on disk and sends that very one when it is started again, and the model is exported."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from node.cli.federation_train import get_work_folder
from node.config import NodeConfig
from tests.testnet.fleet import Fleet, poll, run_fleet
from workloads.federated_blobs import FederatedNetwork

SMALL = (
    "--side", "8", "--channels", "4,4", "--primary-types", "1", "--primary-size", "2", "--class-size", "4",
    "--shared", "--epochs", "3", "--unit-bits", "16",
)  # fmt: skip
TIMES = ("--train-minutes", "1.5", "--open-minutes", "3", "--judge-minutes", "1", "--rounds", "6")
HOSPITALS = ("node2", "node3")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "images.npz"
    labels = np.arange(64) % 2
    print("seed 5")
    images = np.random.default_rng(5).integers(0, 80, size=(64, 8, 8)) + 150 * labels[:, None, None]
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Fleet]:
    settings = {"federation": {"data": str(data)}}
    with run_fleet(tmp_path_factory.mktemp("testnet") / "fleet", 4, 0, settings=settings) as running:
        yield running


def start_train(fleet: Fleet, name: str, federation: str) -> subprocess.Popen[str]:
    command = ("federation", "train", federation, "--json", *fleet.config(name))
    return subprocess.Popen(
        [sys.executable, "-m", "node.cli.main", *command], stdout=subprocess.PIPE, text=True
    )


def read_events(process: subprocess.Popen[str], until: str) -> list[str]:
    """Names of what happened, up to `until`."""
    assert process.stdout is not None
    events = []
    for line in process.stdout:
        events.append(str(json.loads(line)["event"]))
        if events[-1] == until:
            break
    return events


def test_a_killed_hospital_sends_what_it_had_encrypted(fleet: Fleet, data: Path, tmp_path: Path) -> None:
    members = [
        part
        for number, name in enumerate(HOSPITALS)
        for part in ("--participant", f"{fleet.get_address(name)}:{number + 1}")
    ]
    custody = fleet.config("node1")
    federation = fleet.bmif_json("federation", "federation", "create", *members, *SMALL, *TIMES, *custody)
    for name in HOSPITALS:
        poll(partial(find, fleet, name, federation), f"{name} knows the federation")
        fleet.bmif("federation", "join", federation, str(data), "--agree", *fleet.config(name))
    other = start_train(fleet, "node3", federation)
    killed = start_train(fleet, "node2", federation)
    assert read_events(killed, "encrypted")[-1] == "encrypted"
    killed.kill()
    killed.wait()
    folder = get_work_folder(NodeConfig.load(fleet.testnet.get_config_path("node2")), federation)
    kept = {path.name: path.read_bytes() for path in folder.glob("*.update")}
    again = start_train(fleet, "node2", federation)
    events = read_events(again, "submitted")
    # A machine so slow that the window closed begins a new round with a new update; else it is the same.
    assert events[0] == "resumed" or not kept
    for process in (again, other):
        rest = read_events(process, "accepted")
        process.terminate()
        process.wait()
        print("events:", events, rest)
        assert rest[-1] == "accepted"
    output = tmp_path / "model.npz"
    fleet.bmif("federation", "export", federation, "-o", str(output), *custody)
    with np.load(output, allow_pickle=False) as arrays:
        network = FederatedNetwork.decode(arrays["network"].tobytes())
        provenance = json.loads(arrays["provenance"].tobytes())
        names = set(arrays.files) - {"network", "provenance"}
        assert sum(arrays[name].size for name in names) == network.parameters
    assert provenance["federation"] == federation
    assert provenance["rounds accepted"] >= 1


def find(fleet: Fleet, name: str, federation: str) -> dict[str, object] | None:
    listed = json.loads(fleet.bmif("federation", "status", "--json", *fleet.config(name)))
    return next((item for item in listed if item["id"] == federation), None)
