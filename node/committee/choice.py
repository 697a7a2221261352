"""Which members lead and open: by rank at first, away from what failed afterwards; and what has failed."""

from collections.abc import Callable, Container, Iterable
from itertools import combinations

from consensus.types import Address, Hash32
from node.committee.tally import Candidate, Tally


class Suspects:
    """Members whose parts gave what nobody signs: of each such subset at least one was wrong, nobody can tell
    who. Who then gave a right part of the same question is suspected half as much: it may have been wrong on
    purpose, to put it on others.

    One for all openings with the same shares, so that who spoils one is in few later subsets.
    """

    def __init__(self) -> None:
        self._failed: dict[Hash32, dict[int, int]] = {}

    def note(self, proposal: Hash32, subset: Iterable[int], right: Container[int] = ()) -> None:
        """The subset of a proposal, and who was right afterwards; instead of what was noted of it before."""
        self._failed[proposal] = {place: 1 if place in right else 2 for place in subset}

    def count(self, place: int) -> int:
        """How much a member is suspected: 2 for each subset that it was in, 1 where it then was right."""
        return sum(weights.get(place, 0) for weights in self._failed.values())

    def get_common(self) -> tuple[int, ...]:
        """Places that were in all of them: if only one member is wrong, it is one of these."""
        found = [set(weights) for weights in self._failed.values()]
        return tuple(sorted(set.intersection(*found))) if found else ()


def note_suspects(suspects: Suspects, tally: Tally) -> None:
    """What the sums of one opening say."""
    candidates = tally.candidates.values()
    right = {place for item in candidates if item.numbers is not None for place in item.subset}
    for item in candidates:
        if item.implausible:
            suspects.note(item.id, item.subset, right)


def get_leads(tally: Tally, attempt: int) -> tuple[Address, ...]:
    """By rank; in attempt 2 first who was in no subset that gave implausible numbers, and last who is proved
    faulty: who spoiled attempt 1 would else lead the second one, too, and take part in it."""
    terms = tally.terms
    if attempt == 1:
        return terms.leads
    first = [item for item in tally.candidates.values() if item.attempt == 1]
    failed = {place for item in first if item.implausible for place in item.subset}
    faulty = {member for _, member in tally.evidence}
    return tuple(
        sorted(terms.leads, key=lambda member: (member in faulty, terms.members.index(member) in failed))
    )


def rank_candidates(tally: Tally, attempt: int) -> list[Candidate]:
    """Acceptable ones, by their lead's rank."""
    ranks = {lead: rank for rank, lead in enumerate(get_leads(tally, attempt))}
    return sorted(tally.get_candidates(attempt), key=lambda item: ranks[item.proposal.lead])


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
    found = rank_candidates(tally, attempt)
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
    suspects: Suspects,
    draw: Callable[[int], bytes],
) -> tuple[int, ...] | None:
    """Places, ascending, of as many members as the threshold who are ready; None if there are too few.

    A wrong part can't be attributed, so those come first who are suspected least. Attempt 2 takes this
    member, which knows itself, and of equals those who were not in attempt 1, then as `draw` says by place:
    it must not be foreseen, or who is wrong would wait for a step in which it is taken again. Who is proved
    faulty, or was absent, is left out.
    """
    terms = tally.terms
    ready = [terms.members.index(member) for member in tally.get_ready(question)]
    left_out = {terms.members.index(member) for _, member in tally.evidence} | get_absent(tally, failed)
    order = [place for place in ready if place not in left_out]
    order.sort(key=lambda place: 0 if place == own else suspects.count(place))
    spent = get_spent(tally, answer) if attempt > 1 else set[tuple[int, ...]]()
    if attempt > 1:
        first = [item for item in tally.candidates.values() if item.attempt == 1 and item.content is not None]
        used = {place for item in first for place in item.subset}
        order.sort(key=lambda place: (place != own, suspects.count(place), place in used, draw(place)))
    # In the order of preference, the first that is not what failed.
    for chosen in combinations(order, terms.threshold):
        subset = tuple(sorted(chosen))
        if subset not in spent:
            return subset
    return None
