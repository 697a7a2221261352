"""Whom to dial and whom to let go: pure choices that keep an attacker from surrounding this node.

Links are of five kinds. Configured ones are the operator's and are never given up. Chosen ones come from the
address book into slots that inbound ones can't take, at most `per_group` of an address group and
`per_organisation` of an organisation as certificates prove it, and such organisations first that no link is
of. Inbound ones (peers that dialled us) fill what is left; when all is taken, a newcomer can displace only
one that is not among the longest-lived, nearest, most useful ones and not the last one of its organisation.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from consensus.types import Millis
from node.gossip.addresses import compute_group
from node.gossip.book import AddressBook, Entry

CANDIDATES = 8
"""Addresses drawn from the book, of which the one of the rarest organisation is dialled."""


class LinkKind(StrEnum):
    CONFIGURED = "configured"
    """Named in the settings: dialled for ever."""
    SEED = "seed"
    """Named in the settings to find others; a chosen link that needs no place in the book."""
    CHOSEN = "chosen"
    """From the address book, anchors of the last run included."""
    INBOUND = "inbound"
    """Dialled back because it greeted us."""
    FEELER = "feeler"
    """Dialled to see whether somebody is there, and closed."""


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """How many links of which kind."""

    links: int = 32
    """All but feelers."""
    chosen: int = 8
    """Reserved for links of this node's choice: inbound ones leave them free."""
    per_group: int = 2
    """Chosen links to one address group."""
    per_organisation: int = 2
    """Chosen links to one organisation, configured ones counted."""
    protected: int = 4
    """Inbound links kept for age, for nearness and for usefulness: so many each."""


@dataclass(frozen=True, slots=True)
class LinkView:
    """A link as far as choices need it."""

    address: str
    kind: LinkKind
    node_id: str = ""
    """Empty until it answered."""
    organisation: str = ""
    is_up: bool = False
    since: float = 0.0
    """When it came up, or was begun."""
    latency_s: float | None = None
    useful: int = 0
    """Objects that were new and good and came from it first."""


OWN_CHOICE = (LinkKind.SEED, LinkKind.CHOSEN)


def count_chosen(links: Sequence[LinkView]) -> int:
    return sum(link.kind in OWN_CHOICE for link in links)


def has_inbound_slot(links: Sequence[LinkView], limits: SlotLimits, configured: int) -> bool:
    """Whether one more inbound link leaves the reserved slots free; `configured` peers have theirs too."""
    inbound = sum(link.kind is LinkKind.INBOUND for link in links)
    return inbound < max(1, limits.links - limits.chosen - configured)


def _count_organisations(links: Sequence[LinkView]) -> Counter[str]:
    """Of links that this node decided on: what others opened says nothing about who surrounds us."""
    kinds = (LinkKind.CONFIGURED, *OWN_CHOICE)
    return Counter(link.organisation for link in links if link.kind in kinds and link.organisation)


def choose_dial(
    book: AddressBook,
    links: Sequence[LinkView],
    limits: SlotLimits,
    rng: random.Random,
    now: Millis,
    may_dial: Callable[[Entry], bool],
) -> Entry | None:
    """The address to link next, if a reserved slot is free. It may be linked already as an inbound one: what
    the book draws is as good as ever, and that link is this node's choice from then on."""
    if count_chosen(links) >= limits.chosen:
        return None
    return _choose(book, links, limits, rng, now, may_dial)


def _choose(
    book: AddressBook,
    links: Sequence[LinkView],
    limits: SlotLimits,
    rng: random.Random,
    now: Millis,
    may_dial: Callable[[Entry], bool],
) -> Entry | None:
    kept = [link for link in links if link.kind is not LinkKind.INBOUND]
    taken = {link.address for link in kept}
    nodes = {link.node_id for link in kept if link.node_id}
    groups = Counter(compute_group(link.address) for link in links if link.kind in OWN_CHOICE)
    organisations = _count_organisations(links)

    def is_wanted(entry: Entry) -> bool:
        return (
            entry.address not in taken
            and not (entry.node_id and entry.node_id in nodes)
            and groups[compute_group(entry.address)] < limits.per_group
            and organisations[entry.organisation] < limits.per_organisation
            and may_dial(entry)
        )

    drawn = book.select(rng, now, is_wanted, count=CANDIDATES)
    # A new address's organisation is not known: it counts as one that is linked once.
    return min(drawn, key=lambda e: organisations[e.organisation] if e.organisation else 1, default=None)


def is_organisation_full(link: LinkView, links: Sequence[LinkView], limits: SlotLimits) -> bool:
    """Whether a chosen link that just came up, and now tells its organisation, is one too many of it."""
    others = [other for other in links if other.address != link.address and other.is_up]
    return _count_organisations(others)[link.organisation] >= limits.per_organisation


def choose_swap(
    book: AddressBook,
    links: Sequence[LinkView],
    limits: SlotLimits,
    rng: random.Random,
    now: Millis,
    may_dial: Callable[[Entry], bool],
) -> tuple[LinkView, Entry] | None:
    """With all slots taken: the youngest chosen link of an organisation that has several, and a tried address
    of one that has none, to take its place. So links spread over organisations, and then rest."""
    organisations = _count_organisations(links)
    spare = [link for link in links if link.kind in OWN_CHOICE and organisations[link.organisation] > 1]
    if count_chosen(links) < limits.chosen or not spare:
        return None
    # The organisation with most links gives one up, of these the youngest.
    victim = max(spare, key=lambda link: (organisations[link.organisation], link.since))
    rest = [link for link in links if link is not victim]

    def is_new_organisation(entry: Entry) -> bool:
        return entry.is_tried and not organisations[entry.organisation] and may_dial(entry)

    found = _choose(book, rest, limits, rng, now, is_new_organisation)
    return None if found is None else (victim, found)


def choose_eviction(links: Sequence[LinkView], limits: SlotLimits, organisation: str) -> LinkView | None:
    """The inbound link that a newcomer of an organisation may displace; None if it must be turned away.

    An attacker who opens many links displaces its own: the victim is the youngest one of the organisation
    with most links, and only if that one has more than the newcomer's.
    """
    inbound = [link for link in links if link.kind is LinkKind.INBOUND]
    counts = Counter(link.organisation for link in inbound)
    keep: set[str] = set()
    up = [link for link in inbound if link.is_up]
    for ranked in (
        sorted(up, key=lambda link: link.since),
        sorted(up, key=lambda link: link.latency_s if link.latency_s is not None else float("inf")),
        sorted(up, key=lambda link: -link.useful),
    ):
        keep.update(link.address for link in ranked[: limits.protected])
    rest = [
        link
        for link in inbound
        if link.address not in keep
        and counts[link.organisation] > 1
        and counts[link.organisation] > counts[organisation]
    ]
    if not rest:
        # One that never answered is nobody's loss.
        rest = [link for link in inbound if not link.is_up]
    return max(rest, key=lambda link: (not link.is_up, counts[link.organisation], link.since), default=None)
