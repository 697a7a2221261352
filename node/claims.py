"""Claims that a node has heard of."""

from dataclasses import dataclass, field

from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.task import Claim
from consensus.types import Hash32

MAX_CLAIMS = 4_096


def hash_claim(data: bytes) -> Hash32:
    """The id under which a claim's bytes are announced."""
    return hash_domain("claim-id", data)


def compute_claim_id(claim: Claim) -> Hash32:
    return hash_claim(encode(claim))


@dataclass(slots=True)
class ClaimPool:
    """Claims heard of; bounded, oldest out first. A miner has one claim for a batch of a step: the
    custody fetches and decrypts what is claimed, so nobody may make it do so again and again."""

    _claims: dict[Hash32, Claim] = field(default_factory=dict)

    def add(self, claim_id: Hash32, claim: Claim) -> bool:
        if claim_id in self._claims:
            return False
        earlier = self.get_for(claim.task, claim.step, claim.batch)
        if any(known.miner == claim.miner for known in earlier):
            return False
        self._claims[claim_id] = claim
        while len(self._claims) > MAX_CLAIMS:
            del self._claims[next(iter(self._claims))]
        return True

    def get(self, claim_id: Hash32) -> Claim | None:
        return self._claims.get(claim_id)

    def get_for(self, task: Hash32, step: int, batch: int) -> list[Claim]:
        return [c for c in self._claims.values() if (c.task, c.step, c.batch) == (task, step, batch)]

    def drop_before(self, task: Hash32, step: int) -> None:
        """Forget the claims of steps that are opened."""
        for claim_id in [i for i, c in self._claims.items() if c.task == task and c.step < step]:
            del self._claims[claim_id]
