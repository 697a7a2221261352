"""Who computes a batch first: an order of miners for every (task, step, batch) that everyone can repeat."""

from collections.abc import Mapping, Sequence

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


def split_lease(
    order: Sequence[Address], organisations: Mapping[Address, str], stakes: Mapping[str, int], total: int
) -> tuple[tuple[Address, ...], tuple[Address, ...]]:
    """Of a committee's batch: who begins at once, and who may have to, each in the order of its lease.

    At once begin the first miners of different organisations, with stake, that together have more than a
    third of all: fewer could not confirm the batch. If all together do not have that, everybody is among the
    first.
    """
    first: dict[str, Address] = {}
    stake = 0
    for miner in order:
        organisation = organisations.get(miner, "")
        if 3 * stake > total:
            break
        if organisation not in first and stakes.get(organisation, 0) > 0:
            first[organisation] = miner
            stake += stakes[organisation]
    if 3 * stake <= total:
        return tuple(order), ()
    chosen = set(first.values())
    return tuple(first.values()), tuple(miner for miner in order if miner not in chosen)
