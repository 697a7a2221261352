"""Which bundle of a batch is confirmed: organisations with more than a third of stake have the same one.

A miner first claims its bundle sealed, H(root ‖ miner), in public; only then it tells members the root. One
that is told counts if its miner's own seal is of it, and stands for every organisation of whose miners a seal
is of it. Who copies another's seal has none of its own. Whether a seal was made before its miner could have
been told the root, nobody can see: an honest miner tells it only once `is_tellable`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consensus.claims import compute_seal, verify_claim, verify_sealed_claim
from consensus.publication import MAX_CLAIMANTS
from consensus.task import BlobRef, Claim, SealedClaim
from consensus.types import Address, Hash32
from node.committee.messages import GradientContent
from node.committee.tally import Refusal, Refused


@dataclass(frozen=True, slots=True)
class Stakes:
    """Who may mine, for whom, and how much each organisation's word weighs, in one state."""

    organisations: Mapping[Address, str]
    """Of every account that may mine."""
    stakes: Mapping[str, int]
    total: int
    """Of the whole set, jailed members too."""

    def is_enough(self, organisations: set[str]) -> bool:
        return 3 * sum(self.stakes.get(name, 0) for name in organisations) > self.total


class Confirmations:
    """Claims of one step of a task; bounded by the accounts that may mine."""

    def __init__(
        self, chain_id: Hash32, task: Hash32, step: int, batches: Sequence[int], length: int
    ) -> None:
        """`length` is that of a bundle."""
        self._chain_id = chain_id
        self._task = task
        self._step = step
        self._batches = frozenset(batches)
        self._length = length
        self._seals: dict[int, dict[Address, SealedClaim]] = {batch: {} for batch in batches}
        self._told: dict[int, dict[Address, Claim]] = {batch: {} for batch in batches}

    def add_seal(self, claim: SealedClaim, stakes: Stakes) -> bool:
        """A sealed claim, one for each miner and batch, the first; False if it is not taken."""
        if not self._is_here(claim) or claim.miner not in stakes.organisations:
            return False
        if claim.miner in self._seals[claim.batch] or not verify_sealed_claim(self._chain_id, claim):
            return False
        self._seals[claim.batch][claim.miner] = claim
        return True

    def add_told(self, claim: Claim, stakes: Stakes) -> bool:
        """A claim whose root its miner told, the first that its own seal, if it came already, is of."""
        if not self._is_here(claim) or claim.miner not in stakes.organisations:
            return False
        if claim.bundle.length != self._length or not verify_claim(self._chain_id, claim):
            return False
        known = self._told[claim.batch].get(claim.miner)
        if known is not None and (known == claim or self._is_sealed(known)):
            return False
        if claim.miner in self._seals[claim.batch] and not self._is_sealed(claim):
            return False
        self._told[claim.batch][claim.miner] = claim
        return True

    def is_tellable(self, batch: int, root: Hash32, stakes: Stakes) -> bool:
        """For a miner that has the root: whether seals of it are public that suffice to confirm it."""
        return stakes.is_enough(self._get_organisations(batch, root, stakes))

    def get_confirmed(self, batch: int, stakes: Stakes) -> BlobRef | None:
        """The one bundle that is confirmed; None while none is, or two are, of which one must be wrong."""
        found = {
            claim.bundle
            for claim in self._told.get(batch, {}).values()
            if self._is_sealed(claim)
            and stakes.is_enough(self._get_organisations(batch, claim.bundle.root, stakes))
        }
        return next(iter(found)) if len(found) == 1 else None

    def get_told(self, batch: int, bundle: BlobRef) -> tuple[Claim, ...]:
        """Claims of this bundle that their miners told and sealed."""
        found = self._told.get(batch, {}).values()
        return tuple(claim for claim in found if claim.bundle == bundle and self._is_sealed(claim))

    def is_disputed(self, batch: int, stakes: Stakes) -> bool:
        """Two different bundles are confirmed: more than a third of stake lies."""
        roots = {claim.bundle.root for claim in self._told.get(batch, {}).values() if self._is_sealed(claim)}
        enough = [r for r in roots if stakes.is_enough(self._get_organisations(batch, r, stakes))]
        return len(enough) > 1

    def build_content(
        self, previous: Hash32, weights: Hash32, stakes: Stakes, checked: Mapping[int, BlobRef] | None = None
    ) -> GradientContent | None:
        """What this member would propose; None unless every batch is confirmed, as in `checked` if given."""
        claims: list[Claim] = []
        confirmations: list[SealedClaim] = []
        for batch in sorted(self._batches):
            bundle = self.get_confirmed(batch, stakes)
            if bundle is None or (checked is not None and checked.get(batch) != bundle):
                return None
            told = self._told[batch]
            claim = min(
                (item for item in told.values() if item.bundle == bundle and self._is_sealed(item)),
                key=lambda item: item.miner,
            )
            claims.append(claim)
            confirmations.extend(self._choose_seals(batch, claim, stakes))
        return GradientContent(previous, weights, tuple(claims), tuple(confirmations))

    def _choose_seals(self, batch: int, claim: Claim, stakes: Stakes) -> list[SealedClaim]:
        """One of each other organisation, those with most stake if there are more than are credited."""
        first: dict[str, SealedClaim] = {}
        for miner, seal in sorted(self._seals[batch].items()):
            if miner in stakes.organisations and seal.seal == compute_seal(claim.bundle.root, miner):
                first.setdefault(stakes.organisations[miner], seal)
        first.pop(stakes.organisations.get(claim.miner, ""), None)
        names = sorted(first, key=lambda name: (-stakes.stakes.get(name, 0), name))
        return sorted((first[name] for name in names[: MAX_CLAIMANTS - 1]), key=lambda seal: seal.miner)

    def _is_here(self, claim: Claim | SealedClaim) -> bool:
        return (claim.task, claim.step) == (self._task, self._step) and claim.batch in self._batches

    def _is_sealed(self, claim: Claim) -> bool:
        seal = self._seals[claim.batch].get(claim.miner)
        return seal is not None and seal.seal == compute_seal(claim.bundle.root, claim.miner)

    def _get_organisations(self, batch: int, root: Hash32, stakes: Stakes) -> set[str]:
        return {
            stakes.organisations[miner]
            for miner, seal in self._seals.get(batch, {}).items()
            if miner in stakes.organisations and seal.seal == compute_seal(root, miner)
        }


def check_gradient(
    content: GradientContent,
    chain_id: Hash32,
    task: Hash32,
    step: int,
    bundles: Mapping[int, BlobRef],
    stakes: Stakes,
) -> None:
    """A proposal's claims against the bundles that this member has confirmed itself, as the chain will check.

    Raises: Refused.
    """
    if [claim.batch for claim in content.claims] != sorted(bundles):
        raise Refused(Refusal.CLAIMS, "expected the step's batches, ascending")
    names: dict[int, list[str]] = {}
    roots: dict[int, Hash32] = {}
    for claim in content.claims:
        if claim.bundle != bundles[claim.batch]:
            raise Refused(Refusal.UNCONFIRMED, f"batch {claim.batch}")
        if (claim.task, claim.step) != (task, step) or not verify_claim(chain_id, claim):
            raise Refused(Refusal.CLAIMS, f"batch {claim.batch}: the claim")
        names[claim.batch] = [_get_organisation(claim.miner, stakes)]
        roots[claim.batch] = claim.bundle.root
    places = [(item.batch, item.miner) for item in content.confirmations]
    if places != sorted(set(places)):
        raise Refused(Refusal.CLAIMS, "expected confirmations by batch, then miner")
    for item in content.confirmations:
        if (item.task, item.step) != (task, step) or item.batch not in names:
            raise Refused(Refusal.CLAIMS, "a confirmation of another step")
        organisation = _get_organisation(item.miner, stakes)
        is_sealed = item.seal == compute_seal(roots[item.batch], item.miner)
        if organisation in names[item.batch] or not is_sealed or not verify_sealed_claim(chain_id, item):
            raise Refused(Refusal.CLAIMS, f"batch {item.batch}: confirmed by {item.miner.hex()}")
        names[item.batch].append(organisation)
    for batch, found in names.items():
        if len(found) > MAX_CLAIMANTS or not stakes.is_enough(set(found)):
            raise Refused(Refusal.CLAIMS, f"batch {batch}: {len(found)} organisations")


def _get_organisation(miner: Address, stakes: Stakes) -> str:
    organisation = stakes.organisations.get(miner)
    if organisation is None:
        raise Refused(Refusal.CLAIMS, f"{miner.hex()} may not mine")
    return organisation
