"""Which members open: by rank in attempt 1, away from what failed in attempt 2."""

from collections.abc import Collection, Container
from itertools import combinations

from consensus.types import Hash32
from node.committee.tally import Tally


def get_absent(tally: Tally, failed: Container[int]) -> frozenset[int]:
    """Places that were to open in attempt 1, which failed, and have not answered anything in it: attempt 2 is
    not spent on them again. Nobody before it has failed."""
    if 1 not in failed:
        return frozenset()
    first = [item for item in tally.candidates.values() if item.attempt == 1 and item.is_acceptable]
    missing = {place for item in first for place in item.missing}
    return frozenset(missing.difference(place for item in tally.candidates.values() for place in item.parts))


def choose_subset(
    tally: Tally,
    question: Hash32,
    own: int,
    attempt: int,
    spent: Collection[tuple[int, ...]],
    absent: Collection[int],
) -> tuple[int, ...] | None:
    """Places, ascending, of as many members as the threshold who are ready; None if there are too few.

    A wrong part can't be attributed, so attempt 2 takes this member, which knows itself, and then those who
    were not in attempt 1. Who is proved faulty, or was absent, is left out.
    """
    terms = tally.terms
    ready = [terms.members.index(member) for member in tally.get_ready(question)]
    faulty = {terms.members.index(member) for _, member in tally.evidence}
    order = [place for place in ready if place not in faulty and place not in absent]
    if attempt > 1:
        first = [item for item in tally.candidates.values() if item.attempt == 1 and item.content is not None]
        used = {place for item in first for place in item.subset}
        order.sort(key=lambda place: (place != own, place in used))
    # In the order of preference, the first that is not what failed.
    for chosen in combinations(order, terms.threshold):
        subset = tuple(sorted(chosen))
        if subset not in spent:
            return subset
    return None
