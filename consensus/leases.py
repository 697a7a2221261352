"""Who computes a batch first: an order of miners for every (task, step, batch) that everyone can repeat."""

from collections.abc import Sequence

from consensus.crypto import hash_domain
from consensus.types import Address, Hash32


def _compute_lease_hash(task: Hash32, step: int, batch: int, miner: Address) -> Hash32:
    return hash_domain("lease", task + step.to_bytes(8, "big") + batch.to_bytes(8, "big") + miner)


def compute_leases(
    task: Hash32, step: int, batches: Sequence[int], miners: Sequence[Address]
) -> dict[int, tuple[Address, ...]]:
    """For each batch every miner once, in the order in which they hold its lease.

    The order is by H(task, step, batch, miner), but first places are dealt evenly, batch by batch in the
    given order, so that different miners begin with different batches.
    """
    unique = sorted(set(miners))
    first_places = dict.fromkeys(unique, 0)
    leases: dict[int, tuple[Address, ...]] = {}
    for batch in batches:
        ranked = sorted((_compute_lease_hash(task, step, batch, miner), miner) for miner in unique)
        order = [miner for _, miner in ranked]
        if order:
            fewest = min(first_places.values())
            first = next(miner for miner in order if first_places[miner] == fewest)
            first_places[first] += 1
            order.remove(first)
            order.insert(0, first)
        leases[batch] = tuple(order)
    return leases
