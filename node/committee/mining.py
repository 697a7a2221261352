"""A miner's side of committees' tasks: it seals what it has computed, and tells members the root later.

Who knows a root can claim a batch without having computed it. So a miner shows at first only a seal that
binds it, and tells the root to members, in boxes, once seals of organisations with more than a third of
stake are of the same root: whoever seals after that is too late to be believed.
"""

from collections.abc import Iterable
from typing import NamedTuple

from consensus.ceremonies import CeremonyRecord
from consensus.claims import compute_seal, sign_sealed_claim
from consensus.leases import compute_leases, split_lease
from consensus.task import Claim
from consensus.types import ZERO_HASH, Hash32
from node.committee.boxes import BoxError
from node.committee.confirmation import Stakes
from node.committee.messages import TellRoot, tell_root
from node.committee.stakes import build_stakes
from node.committee.view import get_box_keys
from node.core import Core
from node.tasks import TaskDefinition, TaskTip

_Key = tuple[Hash32, int, int]
"""(task, step, batch)."""


class _Told(NamedTuple):
    """What was told of one claim, and to the members of which ceremony."""

    ceremony: Hash32
    messages: tuple[TellRoot, ...]


_NOTHING = _Told(ZERO_HASH, ())


class CommitteeMining:
    """Seals, told roots and leases of one miner."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._told: dict[_Key, _Told] = {}

    def seal(self, claim: Claim) -> None:
        """Show that this miner has a bundle of the batch, not which."""
        core = self._core
        core.committees.add_seal(
            sign_sealed_claim(
                core.key, core.chain.chain_id, claim.task, claim.step, claim.batch, claim.bundle.root
            )
        )

    def repeat(self, claim: Claim) -> None:
        """For who has restarted since; the same bytes."""
        core = self._core
        for seal in core.committees.seals.get_for(claim.task, claim.step, claim.batch):
            if seal.miner == core.address:
                core.committees.announce_seal(seal)
        for message in self._told.get(_get_key(claim), _NOTHING).messages:
            core.committees.say(message)

    def tell(self, definition: TaskDefinition, tip: TaskTip, claims: Iterable[Claim]) -> None:
        """Tell members the roots of the current step that enough others have sealed, each once."""
        due = [claim for claim in claims if (claim.task, claim.step) == (definition.id, tip.state.step)]
        members = tip.chain_state.get_ceremonies(definition.draft.ceremony) if due else ()
        if not members:
            return
        # Those who have shares since a renewal have heard nothing.
        ceremony, record = members[-1]
        due = [claim for claim in due if self._told.get(_get_key(claim), _NOTHING).ceremony != ceremony]
        stakes = build_stakes(tip.chain_state) if due else None
        for claim in due:
            if stakes is not None and self._is_tellable(claim, stakes):
                self._told[_get_key(claim)] = _Told(ceremony, self._build_told(ceremony, record, claim))
                for message in self._told[_get_key(claim)].messages:
                    self._core.committees.say(message)

    def _is_tellable(self, claim: Claim, stakes: Stakes) -> bool:
        """Whether organisations that suffice to confirm the bundle are bound to it in public."""
        found = {
            stakes.organisations[seal.miner]
            for seal in self._core.committees.seals.get_for(claim.task, claim.step, claim.batch)
            if seal.miner in stakes.organisations and seal.seal == compute_seal(claim.bundle.root, seal.miner)
        }
        return stakes.is_enough(found)

    def _build_told(self, ceremony: Hash32, record: CeremonyRecord, claim: Claim) -> tuple[TellRoot, ...]:
        core, told = self._core, []
        for member, public in zip(record.create.members, get_box_keys(record), strict=True):
            try:
                told.append(tell_root(core.key, core.chain.chain_id, ceremony, claim, member, public))
            except BoxError:
                continue  # a key to which nothing can be sealed is its member's own loss
        return tuple(told)

    def choose(self, definition: TaskDefinition, tip: TaskTip, waited_ms: float) -> list[int]:
        """Batches of the step whose lease this miner holds now; `waited_ms`: since the step was seen."""
        core, step, lease_ms = self._core, tip.state.step, self._core.chain.params.lease_ms
        present = core.presence.get_present(definition.id, core.clock.now_ms())
        leases = compute_leases(definition.id, step, definition.get_step_batches(step), present)
        stakes = build_stakes(tip.chain_state)
        chosen = []
        for batch, order in leases.items():
            if core.address not in order:
                continue
            first, later = split_lease(order, stakes.organisations, stakes.stakes, stakes.total)
            if core.address in first:
                chosen.append(batch)
                continue
            # Enough seals prove nothing: they may be of different roots.
            if waited_ms >= (later.index(core.address) + 1) * lease_ms:
                chosen.append(batch)
        return chosen

    def forget(self, claim: Claim) -> None:
        """Its step is opened, or its task has ended."""
        self._told.pop(_get_key(claim), None)


def _get_key(claim: Claim) -> _Key:
    return claim.task, claim.step, claim.batch
