"""Which members open: by rank in attempt 1, away from what failed in attempt 2; and what has failed."""

from collections.abc import Container
from itertools import combinations

from consensus.types import Hash32
from node.committee.tally import Candidate, Tally


def get_absent(tally: Tally, failed: Container[int]) -> frozenset[int]:
    """Places that were to open in attempt 1, which failed, and have not answered anything in it: attempt 2 is
    not spent on them again. Nobody before it has failed."""
    if 1 not in failed:
        return frozenset()
    first = [item for item in tally.candidates.values() if item.attempt == 1 and item.is_acceptable]
    missing = {place for item in first for place in item.missing}
    return frozenset(missing.difference(place for item in tally.candidates.values() for place in item.parts))


def get_spent(tally: Tally, answer: Hash32 | None) -> set[tuple[int, ...]]:
    """Subsets of attempt 1 that this member answered, by proposal, or that are known to have failed."""
    first = [item for item in tally.candidates.values() if item.attempt == 1]
    return {item.subset for item in first if item.id == answer or item.implausible or item.spoiled}


def get_usable(tally: Tally, attempt: int, answer: Hash32 | None, failed: Container[int]) -> list[Candidate]:
    """Candidates whose subset is no repetition of what failed, by rank."""
    found = tally.get_candidates(attempt)
    if attempt == 1:
        return found
    spent, absent = get_spent(tally, answer), get_absent(tally, failed)
    return [item for item in found if item.subset not in spent and not absent.intersection(item.subset)]


def is_spoiled(tally: Tally, attempt: int, answer: Hash32 | None) -> bool:
    """Whether an attempt gave what nobody signs, or somebody's part in it is lost to a contradiction."""
    tried = [item for item in tally.candidates.values() if item.attempt == attempt]
    return any(item.implausible or (item.spoiled and (item.parts or item.id == answer)) for item in tried)


def choose_subset(
    tally: Tally,
    question: Hash32,
    own: int,
    attempt: int,
    answer: Hash32 | None,
    failed: Container[int],
) -> tuple[int, ...] | None:
    """Places, ascending, of as many members as the threshold who are ready; None if there are too few.

    A wrong part can't be attributed, so attempt 2 takes this member, which knows itself, and then those who
    were not in attempt 1. Who is proved faulty, or was absent, is left out.
    """
    terms = tally.terms
    ready = [terms.members.index(member) for member in tally.get_ready(question)]
    left_out = {terms.members.index(member) for _, member in tally.evidence} | get_absent(tally, failed)
    order = [place for place in ready if place not in left_out]
    spent = get_spent(tally, answer) if attempt > 1 else set[tuple[int, ...]]()
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
