"""A committee of three on the small chain: its ceremony round by round, its task, and its openings."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from consensus.ceremonies import (
    ROUNDS,
    CeremonyRecord,
    CommitRound,
    ConfirmCeremony,
    CreateCeremony,
    EndCeremony,
    RevealRound,
)
from consensus.ceremony import compute_commitment, is_committed
from consensus.claims import sign_sealed_claim
from consensus.committee import sign_opening
from consensus.crypto import SigningKey, hash_domain
from consensus.identifiers import compute_draft_hash, compute_task_id
from consensus.task import (
    Available,
    Claim,
    Draft,
    DraftTask,
    OpenGradient,
    OpenLoss,
    PublishTask,
    SealedClaim,
)
from consensus.transaction import SignedTransaction, compute_transaction_id
from consensus.types import ZERO_HASH, Hash32, Millis
from tests.unit.consensus.world import (
    CUSTODY,
    MINER_A,
    MINER_B,
    OUTSIDER,
    START,
    World,
    build_blob,
    build_contribution,
    build_draft,
    build_publication,
)

MEMBERS = tuple(sorted((CUSTODY, MINER_A, MINER_B), key=lambda key: key.address))
"""Of three organisations; the outsider is of none, the colleague of the custody's."""
PRESET = "ckks-16384-60x5"
PUBLIC_KEY, RELIN_KEYS = build_blob("joint public key", 400), build_blob("joint relin keys", 500)
Opening = OpenGradient | OpenLoss


def build_ceremony(**changes: object) -> CreateCeremony:
    ceremony = CreateCeremony(
        title="cardiac",
        preset=PRESET,
        members=tuple(key.address for key in MEMBERS),
        threshold=2,
        deadline=Millis(START + 10_000_000),
        renews=ZERO_HASH,
    )
    return replace(ceremony, **changes)


@dataclass
class Ceremonies:
    """A ceremony with the world it is in; every step is a block."""

    world: World = field(default_factory=World)
    ceremony: Hash32 = field(init=False)

    def create(self, key: SigningKey = CUSTODY, **changes: object) -> "Ceremonies":
        transaction = self.world.sign(key, build_ceremony(**changes))
        self.world.carry(transaction)
        self.ceremony = compute_transaction_id(transaction)
        return self

    @property
    def record(self) -> CeremonyRecord:
        record = self.world.state.get_ceremony(self.ceremony)
        assert record is not None
        return record

    @property
    def round(self) -> int:
        return self.record.round

    # --- transactions -------------------------------------------------------------------------

    def get_salt(self, key: SigningKey) -> bytes:
        return hash_domain("test", b"salt" + self.ceremony + key.address)

    def name_part(self, key: SigningKey, number: int) -> str:
        return f"part {number} of {key.address.hex()}"

    def build_commit(self, key: SigningKey, number: int | None = None) -> SignedTransaction:
        number = self.round if number is None else number
        root = build_blob(self.name_part(key, number)).root
        digest = compute_commitment(self.ceremony, number, key.address, root, self.get_salt(key))
        return self.world.sign(key, CommitRound(self.ceremony, number, digest))

    def build_reveal(
        self, key: SigningKey, number: int | None = None, **changes: object
    ) -> SignedTransaction:
        number = self.round if number is None else number
        payload = RevealRound(
            ceremony=self.ceremony,
            round=number,
            contribution=build_blob(self.name_part(key, number)),
            salt=self.get_salt(key),
        )
        return self.world.sign(key, replace(payload, **changes))

    def build_confirm(self, key: SigningKey, **changes: object) -> SignedTransaction:
        payload = ConfirmCeremony(self.ceremony, PUBLIC_KEY, RELIN_KEYS, hash_domain("box", key.address))
        return self.world.sign(key, replace(payload, **changes))

    def build_end(self, key: SigningKey) -> SignedTransaction:
        return self.world.sign(key, EndCeremony(self.ceremony))

    # --- whole phases -------------------------------------------------------------------------

    def commit(self, keys: Sequence[SigningKey] = MEMBERS) -> None:
        self.world.carry(*map(self.build_commit, keys))

    def finalize(self) -> None:
        """Until the block with the last commitment is final."""
        while not is_committed(self.world.state, self.record):
            self.world.carry()

    def reveal(self, keys: Sequence[SigningKey] = MEMBERS) -> None:
        self.world.carry(*map(self.build_reveal, keys))

    def run_round(self) -> None:
        self.commit()
        self.finalize()
        self.reveal()

    def reach_keys(self) -> "Ceremonies":
        """Through all rounds."""
        while self.round < len(ROUNDS):
            self.run_round()
        return self

    def make_ready(self) -> "Ceremonies":
        self.reach_keys()
        self.world.carry(*map(self.build_confirm, MEMBERS))
        return self


# --- a task of the committee ------------------------------------------------------------------


def build_committee_draft(ceremony: Hash32, **changes: object) -> Draft:
    draft = build_draft(
        preset=PRESET,
        public_key=PUBLIC_KEY,
        relin_keys=RELIN_KEYS,
        clipping="box",
        ceremony=ceremony,
    )
    return replace(draft, **changes)


@dataclass
class Committee:
    """An open task of the committee; the custody's key is the lead's."""

    world: World
    ceremony: Hash32

    def publish(self, draft: Draft | None = None, **changes: object) -> PublishTask:
        world = self.world
        draft = draft or build_committee_draft(self.ceremony)
        world.carry(world.sign(CUSTODY, DraftTask(draft)))
        world.draft = compute_draft_hash(world.chain_id, draft)
        contribution = world.sign(OUTSIDER, build_contribution(world.draft))
        world.carry(contribution)
        publication = build_publication(world.draft, (compute_transaction_id(contribution),), **changes)
        world.carry(world.sign(CUSTODY, publication))
        world.task = compute_task_id(publication)
        world.weights[0] = publication.initial_weights
        return publication

    def open(self, draft: Draft | None = None, **changes: object) -> "Committee":
        self.publish(draft, **changes)
        world = self.world
        world.carry(*(world.sign(key, Available(world.task)) for key in (CUSTODY, MINER_A, MINER_B)))
        return self

    def confirm(
        self, claims: Sequence[Claim], keys: Sequence[SigningKey] = (CUSTODY,)
    ) -> tuple[SealedClaim, ...]:
        """Sealed claims of these miners for every batch."""
        world = self.world
        sealed = [
            sign_sealed_claim(key, world.chain_id, world.task, claim.step, claim.batch, claim.bundle.root)
            for claim in claims
            for key in keys
        ]
        return tuple(sorted(sealed, key=lambda item: (item.batch, item.miner)))

    def cosign(self, opening: Opening, keys: Sequence[SigningKey] = MEMBERS[:2]) -> Opening:
        """With the signatures of these, ascending."""
        signed = (sign_opening(key, self.world.chain_id, opening) for key in keys)
        return replace(opening, cosignatures=tuple(sorted(signed, key=lambda item: item.member)))

    def build_gradient(
        self,
        gradient: tuple[int, ...] = (5, 6, -7),
        keys: Sequence[SigningKey] = MEMBERS[:2],
        **changes: object,
    ) -> Opening:
        """Claimed by both miners in turn, confirmed by the custody's organisation, of half of all stake."""
        claims = self.world.build_claims(self.world.task_state.step)
        fields = {"confirmations": self.confirm(claims), **changes}
        return self.cosign(self.world.build_gradient(gradient, **fields), keys)

    def build_loss(self, loss: int, keys: Sequence[SigningKey] = MEMBERS[:2], **changes: object) -> Opening:
        return self.cosign(self.world.build_loss(loss, **changes), keys)

    def open_gradient(self, key: SigningKey = MINER_B, **changes: object) -> None:
        world = self.world
        world.carry(world.sign(key, self.build_gradient(**changes)))
        world.weights[world.task_state.step] = world.task_state.weights

    def open_loss(self, loss: int, key: SigningKey = MINER_A, **changes: object) -> None:
        self.world.carry(self.world.sign(key, self.build_loss(loss, **changes)))


def build_committee(**changes: object) -> Committee:
    """With a ready ceremony and an open task."""
    ceremonies = Ceremonies().create().make_ready()
    return Committee(ceremonies.world, ceremonies.ceremony).open(**changes)
