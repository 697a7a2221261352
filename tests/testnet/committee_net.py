"""A testnet whose committee of 2 of 3 opens a task of real image pairs while some nodes attack."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from benchmarks.testbed import Contributor
from node import processes
from tests.testnet.fleet import Fleet, poll
from workloads.imaging import PairSource

MEMBERS = ("node1", "node6", "node7")
"""node1 leads; members do not mine."""
MINERS = ("node2", "node3", "node4", "node5")
ABSENT, SPOILER, CHOOSER = "node6", "node7", "node5"
HONEST = ("node1", "node2", "node3", "node4", "node6")
MANIFEST = (
    Path(os.environ.get("BMIF_DATA", Path(__file__).parents[3] / "shared" / "data"))
    / "fusion"
    / "manifest.csv"
)
DRAFT = (
    "--patch", "2", "--kernels", "1,1,1,1", "--second", "1", "--target", "overlay", "--gradient-weight", "1",
    "--steps", "24", "--loss-openings", "9", "--epsilon", "8",
)  # fmt: skip
PUBLISH = ("--batches-per-step", "2", "--learning-rate", "0.25", "--loss-every", "2")
SEED = 1


def build_source() -> PairSource:
    """Real pairs of PET and MRI where they are, else phantoms."""
    if MANIFEST.exists():
        return PairSource(manifest=MANIFEST, modality="MRI-PET")
    return PairSource(phantoms=6, phantom_seed=SEED)


def build_settings() -> dict[str, object]:
    """Of every node: bundles are kept, and validators judge on real pairs where they are."""
    settings: dict[str, object] = {"retention": {"policy": "archive"}}
    if MANIFEST.exists():
        settings["verdict"] = {"pairs": str(MANIFEST.parent), "modality": "MRI-PET", "phantoms": 0}
    return settings


CONTRIBUTOR = Contributor("node2", build_source(), validation_patients=2, training_batches=2)


def start_hostile(fleet: Fleet, name: str, attack: str) -> int:
    """The process id."""
    home, root = fleet.testnet.get_directory(name), str(Path(__file__).parents[2])
    code = f"from tests.testnet.hostile_committee import {attack}; {attack}()"
    command = [sys.executable, "-c", code, str(fleet.testnet.get_config_path(name))]
    with (home / processes.LOG_FILE).open("ab") as log:
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": root}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=root, env=environment
        )
    fleet.stack.callback(process.wait, 30)
    fleet.stack.callback(process.terminate)
    node = fleet.testnet.select((name,))[0]

    def is_up() -> bool:
        assert process.poll() is None, fleet.read_log(name)
        return processes.probe(fleet.testnet.get_api_url(node), node.address)[0]

    poll(is_up, f"{name} is up")
    return process.pid


def begin(fleet: Fleet) -> dict[str, int]:
    """Everybody up, the members with the role of a custody; the hostile ones' process ids."""
    for name in MEMBERS[1:]:
        path = fleet.testnet.get_config_path(name)
        document = yaml.safe_load(path.read_text())
        document["roles"] = sorted({*document["roles"], "custody"})
        path.write_text(yaml.safe_dump(document))
    fleet.up(ABSENT)
    return {
        SPOILER: start_hostile(fleet, SPOILER, "spoil"),
        CHOOSER: start_hostile(fleet, CHOOSER, "choose"),
    }


@dataclass(frozen=True, slots=True)
class Ceremony:
    """A ceremony as the node named shows it."""

    fleet: Fleet
    id: str

    def show(self, name: str) -> dict[str, object]:
        found = self.fleet.bmif("custody", "status", self.id, "--json", *self.fleet.config(name))
        shown = json.loads(found)
        assert isinstance(shown, dict)
        return shown

    def is_known(self, name: str) -> bool:
        found = json.loads(self.fleet.bmif("custody", "status", "--json", *self.fleet.config(name)))
        return any(item["id"] == self.id for item in found)

    def is_ready(self) -> bool:
        return self.show("node2")["status"] == "ready"


def make_keys(fleet: Fleet) -> Ceremony:
    members = [part for name in MEMBERS for part in ("--member", fleet.get_address(name))]
    options = ("--threshold", "2", *fleet.config(MEMBERS[0]))
    return join(Ceremony(fleet, fleet.bmif_json("ceremony", "custody", "create", *members, *options)))


def reshare(ceremony: Ceremony, to: Sequence[str] = ()) -> Ceremony:
    """To these members, the first of whom begins; else to the same."""
    fleet = ceremony.fleet
    members = [part for name in to for part in ("--member", fleet.get_address(name))]
    options = (ceremony.id, *members, *fleet.config(MEMBERS[0]))
    made = Ceremony(fleet, fleet.bmif_json("ceremony", "custody", "reshare", *options))
    return join(made, to[1:] or MEMBERS[1:])


def join(ceremony: Ceremony, others: Sequence[str] = MEMBERS[1:]) -> Ceremony:
    """All others, until it is ready."""
    fleet = ceremony.fleet
    for name in others:
        poll(partial(ceremony.is_known, name), f"{name} knows the ceremony")
        fleet.bmif("custody", "join", ceremony.id, *fleet.config(name))
    poll(ceremony.is_ready, "it is ready")
    return ceremony


def publish(fleet: Fleet, ceremony: Ceremony, rungs: tuple[str, ...]) -> str:
    """The task's id; node2 contributes."""
    lead, hospital = fleet.config(MEMBERS[0]), fleet.config("node2")
    draft = fleet.bmif_json("draft", "task", "draft", "--ceremony", ceremony.id, *DRAFT, *lead)
    encrypted = str(fleet.directory / f"encrypted-{draft[:12]}")
    fleet.bmif(
        "data",
        "encrypt",
        draft,
        "-o",
        encrypted,
        *CONTRIBUTOR.build_arguments(),
        *hospital,
    )
    contribution = fleet.bmif_json("contribution", "task", "contribute", encrypted, *hospital)
    ladder = [part for rung in rungs for part in ("--rung", rung)]
    options = ("--contribution", contribution, *ladder, *PUBLISH, *lead)
    return fleet.bmif_json("task", "task", "publish", draft, *options)
