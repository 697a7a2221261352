"""A committee of 2 of 3 opens a task of real images while one member dies, one spoils and a miner cheats.

Seven real processes, 128-bit keys. The losses are those of training in clear with the noise that the members
drew, and no process ever holds the key.
"""

import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from consensus.task import OpenLoss
from consensus.types import Hash32
from he.multiparty.modular import add, compute_lagrange, multiply
from node import processes
from node.api.schemas import OpeningModel
from node.audit import TaskRecord
from node.ceremonies import get_ceremony_folder
from node.cli.audit import ApiSource
from node.cli.main import app
from node.config import NodeConfig
from tests.testnet import fleet as fleets
from tests.testnet.committee_net import (
    ABSENT,
    CHOOSER,
    CONTRIBUTOR,
    MEMBERS,
    MINERS,
    SPOILER,
    begin,
    build_settings,
    make_keys,
    publish,
    reshare,
    start_hostile,
)
from tests.testnet.committee_twin import Reopener, train_clear
from tests.testnet.fleet import Fleet, get_workers, poll, run_fleet
from tests.testnet.memory import has_in_memory
from workloads.ceremony_share import load_share
from workloads.sealed import PLAIN

RUNGS = ("0.06:10", "0.03:10", "0.015:10")
"""The clear twin's losses are .068, .052, .019, .038, .012 at steps 0, 2, 4, 6, 8."""
UP = ("node1", "node2", "node3", "node4")
KILLED_AT = 2
"""The step in whose opening a member dies."""

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Mined:
    fleet: Fleet
    task: str
    folders: tuple[Path, ...]
    """The members' secrets, by place."""
    hostile: dict[str, int]
    """Process ids of nodes that attack."""
    restarted: int
    """The first step that is opened after the member that died is back."""

    @property
    def openings(self) -> list[OpeningModel]:
        return self.fleet.get_openings("node2", self.task)

    def load(self) -> TaskRecord:
        client = self.fleet.api("node2")
        chain_id = Hash32(bytes.fromhex(self.fleet.get_status("node2").chain_id))
        return ApiSource(client, chain_id, self.fleet.directory).load_task(Hash32(bytes.fromhex(self.task)))


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mined]:
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        # What the miner that cheats holds up passes on sooner.
        params = {**fleets.PROFILE["params"], "lease_ms": 2_000}  # type: ignore[dict-item]
        patch.setattr(fleets, "PROFILE", {**fleets.PROFILE, "params": params})
        directory = tmp_path_factory.mktemp("testnet") / "fleet"
        nodes = len(MEMBERS) + len(MINERS)
        fleet = stack.enter_context(run_fleet(directory, nodes, 4, UP, build_settings()))
        hostile = begin(fleet)
        ceremony = make_keys(fleet)
        folders = tuple(get_folder(fleet, name, ceremony.id) for name in MEMBERS)
        by_place = dict(zip(map(fleet.get_address, MEMBERS), folders, strict=True))
        folders = tuple(by_place[member] for member in ceremony.show("node2")["members"])  # type: ignore[attr-defined]
        needles = build_needles(folders)
        task = publish(fleet, ceremony, RUNGS)
        poll(lambda: is_computed(fleet, KILLED_AT), "a step's batches are sealed")
        fleet.kill(ABSENT)
        assert not any(opening.step > KILLED_AT for opening in fleet.get_openings("node2", task))
        check_memory(find_pids(fleet, hostile), needles)
        fleet.up(ABSENT)
        restarted = fleet.get_task("node2", task).step + 1
        fleet.wait_complete(task, "node2")
        check_memory(find_pids(fleet, hostile), needles)
        yield Mined(fleet, task, folders, hostile, restarted)


def get_folder(fleet: Fleet, name: str, ceremony: str) -> Path:
    settings = NodeConfig.load(fleet.testnet.get_config_path(name))
    return get_ceremony_folder(settings.custody_dir, Hash32(bytes.fromhex(ceremony)))


def is_computed(fleet: Fleet, step: int) -> bool:
    """Whether enough miners have computed each batch, so that members are about to open or do."""
    found = [
        batch
        for name in MINERS
        for batch in re.findall(rf"mined step {step} batch (\d+) of", fleet.read_log(name))
    ]
    return min(found.count("0"), found.count("1")) >= 3


def build_needles(folders: Sequence[Path]) -> tuple[bytes, tuple[bytes, ...]]:
    """Parts of the whole key, from two shares, and of each share: what memories are searched for."""
    shares = [load_share(folder, PLAIN)[0] for folder in folders]
    keys = []
    for chosen in (shares[:2], shares[1:]):
        prime, points = shares[0].params.primes[0], [1 + share.place for share in chosen]
        rows = [
            multiply(share.residues[0], compute_lagrange(points, 1 + share.place, prime), prime)
            for share in chosen
        ]
        keys.append(np.asarray(add(rows[0], rows[1], prime), dtype="<u8").tobytes())
    assert keys[0] == keys[1]
    return keys[0][4096:4128], tuple(share.residues[0].tobytes()[4096:4128] for share in shares)


def find_pids(fleet: Fleet, hostile: Mapping[str, int]) -> dict[str, int]:
    """Of all nodes that run."""
    found = {name: processes.get_pid(fleet.testnet.get_directory(name)) for name in (*MEMBERS, *MINERS)}
    return {name: pid for name, pid in {**found, **hostile}.items() if pid is not None}


def check_memory(pids: Mapping[str, int], needles: tuple[bytes, tuple[bytes, ...]]) -> None:
    """No process holds the key. A member's worker has its own share, which shows that such would be found;
    its node has none, and nobody has another's."""
    key, shares = needles
    holders = 0
    assert len(pids) >= len(MEMBERS) + len(MINERS) - 1
    for name, pid in pids.items():
        assert not has_in_memory(pid, [key, *shares]), f"{name} holds a secret"
        for worker in get_workers(pid):
            held = [has_in_memory(worker, [share]) for share in shares]
            assert not has_in_memory(worker, [key]), f"a worker of {name} holds the key"
            assert sum(held) <= (name in MEMBERS), f"a worker of {name} holds {held}"
            holders += sum(held)
    assert holders >= 1


def test_the_last_milestone_is_mined(mined: Mined) -> None:
    task = mined.fleet.get_summary("node2", mined.task)
    assert (task.status, task.rungs_settled) == ("complete", len(RUNGS))
    # Everybody has the same openings, and each is of 2 of 3 members at least.
    openings = mined.openings
    for name in (*MEMBERS, *MINERS):
        poll(lambda name=name: mined.fleet.get_openings(name, mined.task) == openings or None, name)  # type: ignore[misc]
    members = set(map(mined.fleet.get_address, MEMBERS))
    assert all(len(set(item.signers) & members) >= 2 for item in openings)


def test_a_member_that_died_opens_again(mined: Mined) -> None:
    own = mined.fleet.get_address(ABSENT)
    assert any(own in item.signers for item in mined.openings if item.step >= mined.restarted)


def test_losses_are_those_of_the_clear_twin(mined: Mined, tmp_path: Path) -> None:
    """With the same noise, to a thousandth; so openings hold the members' noise and nothing else."""
    fleet, record = mined.fleet, mined.load()
    blobs = fleet.testnet.get_directory("node2") / "data" / "blobs"
    chain_id = Hash32(bytes.fromhex(fleet.get_status("node2").chain_id))
    reopener = Reopener(record, chain_id, mined.folders, lambda root: blobs / root.hex(), tmp_path)
    openings = list(reopener.reopen())
    losses = train_clear(reopener, openings, CONTRIBUTOR)
    for loss in losses:
        print(loss, f"{loss.opened / loss.clear - 1:+.5%}")
    assert len(losses) >= 3
    for loss in losses:
        assert abs(loss.opened - loss.clear) <= 1e-3 * loss.clear, loss
    # A member that spoils first attempts at gradients was in none that came out.
    spoiler = record.committees[0].members.index(bytes.fromhex(fleet.get_address(SPOILER)))  # type: ignore[arg-type]
    gradients = [opening for opening, _ in openings if not isinstance(opening.payload, OpenLoss)]
    assert all(spoiler not in item.subset for item in gradients if item.payload.attempt == 1)
    assert any(item.payload.attempt == 2 for item in gradients)
    # Counted: each retry costs an opening more.
    spent = sum(item.payload.attempt for item in gradients)
    assert f"spent={spent} " in str(fleet.get_task("node2", mined.task).gradient_openings)


def test_chosen_ciphertexts_gain_nothing(mined: Mined) -> None:
    """Members never fetch what a single miner claims; it earns nothing, the others do."""
    fleet = mined.fleet
    record = mined.load()
    opened = {
        claim.bundle.root.hex()
        for _, transaction in record.openings
        if not isinstance(transaction.payload, OpenLoss)
        for claim in transaction.payload.claims  # type: ignore[union-attr]
    }
    length = next(
        transaction.payload.claims[0].bundle.length  # type: ignore[union-attr]
        for _, transaction in record.openings
        if not isinstance(transaction.payload, OpenLoss)
    )
    planted = list_blobs(fleet, CHOOSER, length) - opened
    assert planted
    for name in MEMBERS:
        assert not planted & list_blobs(fleet, name, length)
    credits = {credit.miner for item in mined.openings for credit in item.credits}
    assert fleet.get_address(CHOOSER) not in credits
    assert credits <= set(map(fleet.get_address, MINERS))
    assert credits


def test_shares_are_dealt_anew_while_a_task_is_open(mined: Mined) -> None:
    """Members go on with new shares of the same key; the old ones are gone before the last opening."""
    fleet = mined.fleet
    ceremony = make_keys(fleet)
    task = publish(fleet, ceremony, RUNGS[1:])
    fleet.wait_step(task, 1, "node2")
    old = [get_folder(fleet, name, ceremony.id) for name in MEMBERS]
    renewal = reshare(ceremony)
    poll(lambda: not any(folder.exists() for folder in old), "the old shares are erased")
    step = fleet.get_task("node2", task).step
    fleet.wait_complete(task, "node2")
    last = max(item.step for item in fleet.get_openings("node2", task))
    assert last > step
    shown = ceremony.show("node2")
    assert (shown["status"], shown["renewed_by"]) == ("ready", renewal.id)
    committee = fleet.get_task("node2", task).committee
    assert committee is not None
    assert (committee.ceremony, committee.threshold, len(committee.members)) == (renewal.id, 2, 3)
    assert "2 of 3 members, led by" in fleet.bmif("task", "show", task, *fleet.config("node2"))
    # Whoever checks the chain knows both committees.
    last_opening = fleet.get_openings("node2", task)[-1]
    print(fleet.bmif("audit", last_opening.block, "--losses", *fleet.config("node2")))
    refused = CliRunner().invoke(app, ["custody", "reshare", renewal.id, *fleet.config("node2")])
    assert (refused.exit_code, "has no share" in " ".join(refused.output.split())) == (1, True)
    refused = CliRunner().invoke(app, ["task", "draft", "--ceremony", renewal.id, *fleet.config("node3")])
    assert (refused.exit_code, "is no member" in " ".join(refused.output.split())) == (1, True)


def test_a_task_goes_on_without_the_member_that_spoiled_it(mined: Mined) -> None:
    """Two of three are wrong in everything, so that every subset fails: the first loss is closed, and said to
    be. One of them is put right; it and the honest one deal shares anew, without the other."""
    fleet, hostile = mined.fleet, mined.hostile
    fleet.kill(ABSENT)
    os.kill(hostile[SPOILER], signal.SIGKILL)
    for name in (ABSENT, SPOILER):
        hostile[name] = start_hostile(fleet, name, "spoil_all")
    ceremony = make_keys(fleet)
    task = publish(fleet, ceremony, RUNGS[1:2])
    closed = "2 attempts gave no plausible opening, and there is no third; a wrong part can be of "
    poll(lambda: closed in fleet.read_log(MEMBERS[0]), "the loss is closed")
    assert fleet.get_openings("node2", task) == []
    os.kill(hostile.pop(ABSENT), signal.SIGKILL)
    fleet.up(ABSENT)
    renewal = reshare(ceremony, (MEMBERS[0], ABSENT))
    fleet.wait_complete(task, "node2")
    openings = fleet.get_openings("node2", task)
    members = {fleet.get_address(name) for name in (MEMBERS[0], ABSENT)}
    assert all(set(item.signers) == members and item.attempt == 1 for item in openings)
    found = fleet.get_task("node2", task)
    assert found.committee is not None
    assert found.committee.ceremony == renewal.id
    # What the old shares may have opened is counted.
    losses = sum(item.kind == "loss" for item in openings)
    assert f"spent={losses + 2} " in str(found.loss_openings)


def list_blobs(fleet: Fleet, name: str, length: int) -> set[str]:
    """Blobs of a bundle's length that the node holds."""
    folder = fleet.testnet.get_directory(name) / "data" / "blobs"
    return {path.name for path in folder.iterdir() if path.is_file() and path.stat().st_size == length}
