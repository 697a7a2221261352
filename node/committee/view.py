"""What a node's tasks say about who may speak of a committee's openings."""

from collections.abc import Callable
from dataclasses import dataclass

from consensus.ceremonies import CeremonyRecord
from consensus.publication import get_step_batches
from consensus.types import Address, Hash32
from node.committee.pool import Committee
from node.tasks import TaskDefinition, TaskTip


def get_box_keys(record: CeremonyRecord) -> tuple[Hash32, ...]:
    """X25519 keys of all members of a ready ceremony, by place."""
    keys = {item.member: item.box_key for item in record.confirmations}
    return tuple(keys[member] for member in record.create.members)


@dataclass(frozen=True, slots=True)
class TipView:
    """Of one task's tip: members and miners run ahead of the chain."""

    definition: TaskDefinition | None
    tip: TaskTip | None

    def get_committee(self, task: Hash32) -> Committee | None:
        """None of a task that is not open, or has no committee."""
        definition, tip = self.definition, self.tip
        if definition is None or tip is None or tip.is_finished or definition.id != task:
            return None
        found = tip.chain_state.get_ceremonies(definition.draft.ceremony)
        if not found:
            return None
        ceremony, record = found[-1]
        return Committee(ceremony, record.create.members, tip.state.step)

    def may_mine(self, account: Address) -> bool:
        return self.tip is not None and self.tip.chain_state.may_account_mine(account)

    def has_batch(self, task: Hash32, step: int, batch: int) -> bool:
        definition = self.definition
        if definition is None or definition.id != task:
            return False
        return batch in get_step_batches(definition.publication, step)


class PoolView:
    """The view of whichever task a message is about, looked up once it is known which."""

    def __init__(self, look: Callable[[Hash32], TipView]) -> None:
        self._look = look
        self._found: dict[Hash32, TipView] = {}

    def _get(self, task: Hash32) -> TipView:
        if task not in self._found:
            self._found[task] = self._look(task)
        return self._found[task]

    def get_committee(self, task: Hash32) -> Committee | None:
        return self._get(task).get_committee(task)

    def may_mine(self, account: Address) -> bool:
        return any(view.may_mine(account) for view in self._found.values())

    def has_batch(self, task: Hash32, step: int, batch: int) -> bool:
        return self._get(task).has_batch(task, step, batch)
