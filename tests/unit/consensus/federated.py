"""A federation of three hospitals on the small chain, round by round through the real rules."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from consensus.crypto import SigningKey
from consensus.federations import (
    AttestUpdates,
    CloseRound,
    ConfirmSum,
    CreateFederation,
    EndedRound,
    FederationRecord,
    JudgeRound,
    OpenSum,
    Participant,
    RoundRecord,
    SettleRound,
    SubmitUpdate,
)
from consensus.task import Milestone
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import Amount, Hash32, Millis
from tests.unit.consensus.world import (
    COLLEAGUE,
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    START,
    VALIDATORS,
    World,
    build_blob,
)

HOSPITALS = tuple(sorted((COLLEAGUE, MINER_A, MINER_B), key=lambda key: key.address))
WEIGHTS = (2, 1, 4)
"""In the same order."""
CHECKERS = (CUSTODY, MINER_A, MINER_B)
"""Three of four parts of stake."""
UPDATE_BYTES = 500


def build_federation(**changes: object) -> CreateFederation:
    federation = CreateFederation(
        title="covid",
        statement="clipped, noised",
        network=build_blob("network"),
        model=build_blob("model 0", 64),
        parameters=10,
        keys=build_blob("federation keys"),
        update_bytes=UPDATE_BYTES,
        participants=tuple(
            Participant(key.address, weight) for key, weight in zip(HOSPITALS, WEIGHTS, strict=True)
        ),
        min_participants=2,
        rounds=12,
        max_openings=10,
        train_ms=Millis(20_000),
        open_ms=Millis(40_000),
        judge_ms=Millis(30_000),
        clip=1_000,
        noise_std=7,
        slack=5,
        ladder=(Milestone(900, Amount(1_000)), Milestone(500, Amount(500)), Milestone(200, Amount(301))),
        deadline=Millis(START + 10_000_000),
    )
    return replace(federation, **changes)


@dataclass
class Rounds:
    """A federation with the world it is in; every step is a block."""

    world: World = field(default_factory=World)
    federation: Hash32 = field(init=False)

    def create(self, **changes: object) -> "Rounds":
        transaction = self.world.sign(CUSTODY, build_federation(**changes))
        self.world.carry(transaction)
        self.federation = compute_transaction_id(transaction)
        return self

    @property
    def record(self) -> FederationRecord:
        record = self.world.state.get_federation(self.federation)
        assert record is not None
        return record

    @property
    def current(self) -> RoundRecord:
        return self.record.round

    def get_ended(self, number: int) -> EndedRound:
        ended = self.world.state.get_ended_round(self.federation, number)
        assert ended is not None
        return ended

    # --- transactions -------------------------------------------------------------------------

    def build_submit(self, key: SigningKey, name: str | None = None) -> SignedTransaction:
        number = self.current.number
        blob = build_blob(name or f"update {number} of {key.address.hex()}", UPDATE_BYTES)
        return self.world.sign(key, SubmitUpdate(self.federation, number, blob))

    def build_attest(self, key: SigningKey, whose: Sequence[SigningKey] | None = None) -> SignedTransaction:
        """Of all that was submitted by default."""
        wanted = None if whose is None else {item.address for item in whose}
        roots = sorted(
            item.update.root
            for item in self.current.submissions
            if wanted is None or item.participant in wanted
        )
        return self.world.sign(key, AttestUpdates(self.federation, self.current.number, tuple(roots)))

    def build_close(self) -> SignedTransaction:
        return self.world.sign(OUTSIDER, CloseRound(self.federation, self.current.number))

    def build_confirm(self, key: SigningKey, name: str = "sum") -> SignedTransaction:
        root = build_blob(f"{name} {self.current.number}").root
        return self.world.sign(key, ConfirmSum(self.federation, self.current.number, root))

    def build_open(self, key: SigningKey = CUSTODY, **changes: object) -> SignedTransaction:
        number = self.current.number
        payload = OpenSum(
            federation=self.federation,
            round=number,
            total=build_blob(f"sum {number}").root,
            opened=build_blob(f"opened {number}", 80),
            model=build_blob(f"model {number + 1}", 64),
        )
        return self.world.sign(key, replace(payload, **changes))

    def build_judge(self, key: SigningKey, before: int, after: int) -> SignedTransaction:
        model = self.current.model
        root = build_blob("none").root if model is None else model.root
        return self.world.sign(key, JudgeRound(self.federation, self.current.number, root, before, after))

    def build_settle(self) -> SignedTransaction:
        return self.world.sign(OUTSIDER, SettleRound(self.federation, self.current.number))

    # --- whole phases -------------------------------------------------------------------------

    def submit(self, keys: Sequence[SigningKey] = HOSPITALS) -> None:
        """Updates of these, attested by three quarters of stake."""
        self.world.carry(*map(self.build_submit, keys))
        self.world.carry(*map(self.build_attest, CHECKERS))

    def close(self) -> None:
        self.world.carry(self.build_close(), after=25_000)

    def finalize(self) -> None:
        """Until the block that closed the list is final."""
        while self.world.state.get_finality().finalized.height < self.current.closed_height:
            self.world.carry()

    def open(self) -> None:
        self.finalize()
        self.world.carry(*(self.build_confirm(key) for key in (MINER_A, MINER_B)))
        self.world.carry(self.build_open())

    def reach_opened(self, keys: Sequence[SigningKey] = HOSPITALS) -> None:
        self.submit(keys)
        self.close()
        self.open()

    def judge(self, before: int, after: int, keys: Sequence[SigningKey] = VALIDATORS) -> None:
        """All of these alike; all four are enough to settle at once."""
        self.world.carry(*(self.build_judge(key, before, after) for key in keys))
        self.world.carry(self.build_settle())

    def run_round(self, after: int, before: int = 1_000, keys: Sequence[SigningKey] | None = None) -> None:
        """A whole round of all who may take part, or of these."""
        left_out = self.current.left_out
        chosen = [key for key in HOSPITALS if key.address != left_out] if keys is None else keys
        self.reach_opened(chosen)
        self.judge(before, after)
