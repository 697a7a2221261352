"""What a node makes of a coming upgrade, in one process: a single validator on a fake clock; and its own
transactions across a restart."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from consensus.crypto import SigningKey
from consensus.governance import sign_governance
from consensus.params import ChainParams, Genesis, GenesisAccount, Validator
from consensus.payload import Action, CancelUpgrade, Govern, Governance, ScheduleUpgrade
from consensus.task import Transfer
from consensus.transaction import compute_transaction_id
from consensus.types import Address, Amount, Hash32, Height
from consensus.upgrade import MIN_NOTICE
from consensus.vote import Checkpoint, sign_vote
from node.api.view import Criterion
from node.blobs import BlobStore
from node.chain import Chain
from node.clock import ManualClock
from node.core import Core
from node.events import EventBus
from node.history import WeightHistory
from node.ledger.store import MemoryStore
from node.mempool import Mempool
from node.pending import OwnTransactions
from node.proposer import Proposer
from node.protocol import (
    EXIT_UPGRADE,
    LIMIT_VARIABLE,
    UpgradeRequired,
    find_upgrade_required,
    get_known_version,
)
from node.readiness import Links, ReadinessJudge
from node.upgrade import UpgradeWatch, get_protocol_status
from node.work import VerdictBook, WorkService

KEY = SigningKey(b"v" * 32)
PAYEE = Address(bytes(32))


@dataclass
class Alone:
    """The one validator of a chain, on a store that outlives it."""

    directory: Path
    known: int | None = None
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        genesis = Genesis(
            "alone",
            ManualClock().now_ms(),
            ChainParams(evidence_ms=0),
            (GenesisAccount(KEY.address, Amount(10**6), "lab"),),
            (Validator(KEY.address, 1),),
            ("lab",),
        )
        verdicts = VerdictBook()
        chain = Chain(genesis, self.store, self.clock, verdicts, self.known)
        blobs = BlobStore(self.directory / "blobs")
        work, events = WorkService(blobs, verdicts, 1), EventBus(16, self.clock.now_ms())
        history = WeightHistory(chain.ledger)
        self.core = Core(chain, Mempool(), blobs, work, history, events, self.clock, KEY)
        chain.on_head_change(self.core.on_head_change)
        self.watch = UpgradeWatch(self.core)
        self.proposer = Proposer(self.core)

    @property
    def height(self) -> int:
        return self.core.chain.head.height

    def pay(self) -> Hash32:
        """Into the next block, with a vote for the one below it."""
        core = self.core
        admission = core.admit(core.sign(Transfer(PAYEE, Amount(1))))
        assert admission.accepted, admission
        return admission.id

    def advance(self, height: int) -> None:
        while self.height < height:
            before = self.height
            self.pay()
            self.vote()
            self.clock.advance(2.0)
            assert self.proposer.propose()
            assert self.height > before

    def vote(self) -> None:
        chain = self.core.chain
        source = chain.head_state.get_finality().justified
        if chain.head.height > source.height:
            target = Checkpoint(chain.head.height, chain.head_hash)
            self.core.add_vote(sign_vote(KEY, chain.chain_id, source, target))

    def govern(self, action: Action) -> None:
        core = self.core
        governance = Governance(core.chain.head_state.get_charter().sequence, action)
        approval = sign_governance(KEY, core.chain.chain_id, governance)
        admission = core.admit(core.sign(Govern(governance, (approval,))))
        assert admission.accepted, admission
        self.advance(self.height + 1)

    def schedule(self, version: int = 2, ahead: int = MIN_NOTICE) -> int:
        height = self.height + 1 + ahead
        self.govern(ScheduleUpgrade(version, Height(height)))
        return height

    def judge(self) -> Criterion:
        criteria = ReadinessJudge(self.core).judge(Links(0, 0, self.height), None).criteria
        return next(item for item in criteria if item.name == "protocol")


def test_a_node_passes_an_upgrade_that_it_knows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "node.upgrade")
    alone = Alone(tmp_path)
    alone.watch.check()
    assert not caplog.records
    height = alone.schedule()
    assert f"version 2 from height {height}, in {MIN_NOTICE - 1} blocks" in caplog.text
    assert "UNKNOWN" not in caplog.text
    assert alone.judge().ok
    alone.advance(height + 2)
    assert f"protocol version 2 is in force from height {height}" in caplog.text
    assert get_protocol_status(alone.core.chain).describe() == "protocol version 2"
    block = alone.core.chain.get_hash_by_height(height)
    assert block is not None
    header = alone.core.chain.get_header(block)
    assert header is not None
    assert header.version == 2


async def test_a_node_stops_before_an_upgrade_that_it_does_not_know(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = Alone(tmp_path, known=1)
    height = alone.schedule()
    assert "UNKNOWN to this software, which knows up to 1" in caplog.text
    told = alone.judge()
    assert (told.ok, told.blocking) == (False, False)
    alone.advance(height - 1)
    assert alone.judge().blocking
    # No block that it could make, and the reason why it ends.
    alone.pay()
    alone.vote()
    alone.clock.advance(2.0)
    assert not alone.proposer.propose()
    assert alone.height == height - 1
    with pytest.raises(UpgradeRequired) as caught:
        await alone.core.wait_failed()
    assert (caught.value.version, caught.value.height) == (2, height)

    # Started again, it ends at once; newer software goes on from the same store.
    with pytest.raises(UpgradeRequired):
        Alone(tmp_path, 1, alone.store, alone.clock).watch.check()
    newer = Alone(tmp_path, 2, alone.store, alone.clock)
    newer.watch.check()
    newer.advance(height + 1)
    assert newer.core.chain.head.version == 2


def test_a_schedule_that_is_not_final_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch may still lose; without votes nothing is final."""
    alone = Alone(tmp_path, known=1)
    monkeypatch.setattr(alone, "vote", lambda: None)
    height = alone.schedule()
    alone.advance(height - 1)
    alone.watch.check()
    assert alone.judge().blocking


def test_a_cancelled_upgrade_is_no_more(tmp_path: Path) -> None:
    alone = Alone(tmp_path, known=1)
    height = alone.schedule(ahead=MIN_NOTICE + 5)
    assert not alone.judge().ok
    alone.govern(CancelUpgrade(2, Height(height)))
    assert alone.judge().ok
    alone.advance(height + 1)
    assert alone.core.chain.head.version == 1


def test_the_limit_only_takes_versions_away() -> None:
    highest = get_known_version({})
    for text, expected in (
        ("1", 1),
        ("0", 1),
        ("99", highest),
        ("x", highest),
        ("-1", highest),
        ("", highest),
    ):
        assert get_known_version({LIMIT_VARIABLE: text}) == expected


def test_the_reason_is_found_in_groups() -> None:
    error = UpgradeRequired(2, 1, 10)
    group = BaseExceptionGroup("services", [ValueError(), BaseExceptionGroup("more", [error])])
    assert find_upgrade_required(group) is error
    assert find_upgrade_required(ValueError()) is None
    assert EXIT_UPGRADE == 4


def test_own_transactions_are_pending_again_after_a_restart(tmp_path: Path) -> None:
    alone = Alone(tmp_path)
    OwnTransactions(alone.core)
    paid = alone.pay()
    stranger = SigningKey(b"s" * 32)
    others = replace(alone.core.sign(Transfer(PAYEE, Amount(1))), sender=stranger.address)
    assert not alone.core.admit(others).accepted

    again = Alone(tmp_path, None, alone.store, alone.clock)
    assert not len(again.core.mempool)
    own = OwnTransactions(again.core)
    own.load()
    assert paid in again.core.mempool
    again.clock.advance(2.0)
    assert again.proposer.propose()
    assert compute_transaction_id(alone.core.mempool.get_all()[0].transaction) == paid

    last = Alone(tmp_path, None, alone.store, alone.clock)
    OwnTransactions(last.core).load()
    assert not len(last.core.mempool)
    assert not list(last.core.chain.ledger.iterate_records(b"pending/"))
