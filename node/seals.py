"""Sealed claims of committees' tasks that a node has heard of."""

from dataclasses import dataclass, field

from consensus.codec import encode
from consensus.crypto import hash_domain
from consensus.task import SealedClaim
from consensus.types import Address, Hash32

MAX_SEALS = 16_384
_Slot = tuple[int, Address]
"""(batch, miner)."""


def hash_seal(data: bytes) -> Hash32:
    """The id under which a sealed claim's bytes are announced."""
    return hash_domain("sealed-claim-id", data)


def compute_seal_id(seal: SealedClaim) -> Hash32:
    return hash_seal(encode(seal))


@dataclass(slots=True)
class SealPool:
    """Bounded, oldest out first. A miner has one for a batch of a step: the first binds it."""

    _seals: dict[Hash32, SealedClaim] = field(default_factory=dict)
    _steps: dict[tuple[Hash32, int], dict[_Slot, SealedClaim]] = field(default_factory=dict)

    def add(self, seal_id: Hash32, seal: SealedClaim) -> bool:
        step = self._steps.setdefault((seal.task, seal.step), {})
        if (seal.batch, seal.miner) in step:
            return False
        step[seal.batch, seal.miner] = seal
        self._seals[seal_id] = seal
        while len(self._seals) > MAX_SEALS:
            self._forget(next(iter(self._seals)))
        return True

    def get(self, seal_id: Hash32) -> SealedClaim | None:
        return self._seals.get(seal_id)

    def get_for_step(self, task: Hash32, step: int) -> tuple[SealedClaim, ...]:
        return tuple(self._steps.get((task, step), {}).values())

    def get_for(self, task: Hash32, step: int, batch: int) -> tuple[SealedClaim, ...]:
        return tuple(seal for seal in self.get_for_step(task, step) if seal.batch == batch)

    def drop_before(self, task: Hash32, step: int) -> None:
        """Forget those of steps that are opened."""
        self._drop([i for i, seal in self._seals.items() if seal.task == task and seal.step < step])

    def drop_task(self, task: Hash32) -> None:
        self._drop([i for i, seal in self._seals.items() if seal.task == task])

    def get_tasks(self) -> frozenset[Hash32]:
        return frozenset(task for task, _ in self._steps)

    def _drop(self, ids: list[Hash32]) -> None:
        for seal_id in ids:
            self._forget(seal_id)

    def _forget(self, seal_id: Hash32) -> None:
        seal = self._seals.pop(seal_id)
        step = self._steps[seal.task, seal.step]
        del step[seal.batch, seal.miner]
        if not step:
            del self._steps[seal.task, seal.step]
