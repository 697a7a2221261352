"""Whom to link and whom to let go."""

import random

from consensus.types import Millis
from node.gossip.book import AddressBook, Entry
from node.gossip.selection import (
    LinkKind,
    LinkView,
    SlotLimits,
    choose_dial,
    choose_eviction,
    choose_swap,
    has_inbound_slot,
    is_organisation_full,
)

NOW = Millis(1_700_000_000_000)
LIMITS = SlotLimits(links=16, chosen=4)


def build_link(
    name: str,
    organisation: str = "",
    kind: LinkKind = LinkKind.CHOSEN,
    *,
    is_up: bool = True,
    since: float = 0.0,
    latency_s: float | None = 0.1,
    useful: int = 0,
) -> LinkView:
    return LinkView(f"{name}:1", kind, name, organisation, is_up, since, latency_s, useful)


def build_book(**organisations: str) -> AddressBook:
    book = AddressBook(b"s" * 32)
    for name, organisation in organisations.items():
        book.on_good(f"{name}:1", name, organisation, NOW)
    return book


def may_dial(entry: Entry) -> bool:
    return True


def draw_dials(book: AddressBook, links: list[LinkView], limits: SlotLimits = LIMITS) -> set[str]:
    """Every address that may be chosen, over many seeds."""
    found = set()
    for seed in range(100):
        entry = choose_dial(book, links, limits, random.Random(seed), NOW, may_dial)
        if entry is not None:
            found.add(entry.address)
    return found


def test_nobody_is_chosen_twice_by_address_or_by_node() -> None:
    book = build_book(a="x", b="y", c="z")
    links = [build_link("a", "x"), LinkView("elsewhere:1", LinkKind.CONFIGURED, "b", "y", True)]
    assert draw_dials(book, links) == {"c:1"}
    # Who dialled us can be chosen like anybody: that link is ours then.
    assert draw_dials(book, [build_link("a", "x"), build_link("b", "y", LinkKind.INBOUND)]) == {"b:1", "c:1"}


def test_slots_of_choice_are_counted_without_inbound_and_configured_links() -> None:
    book = build_book(z="z")
    others = [build_link(f"i{n}", f"o{n}", LinkKind.INBOUND) for n in range(9)]
    others += [build_link(f"c{n}", f"p{n}", LinkKind.CONFIGURED) for n in range(3)]
    assert draw_dials(book, others)
    full = others + [build_link(f"d{n}", f"q{n}") for n in range(LIMITS.chosen)]
    assert not draw_dials(book, full)


def test_at_most_so_many_of_an_organisation_configured_ones_counted() -> None:
    book = build_book(a="x", b="x", c="y")
    links = [build_link("d", "x", LinkKind.CONFIGURED), build_link("e", "x")]
    assert draw_dials(book, links) == {"c:1"}
    # Who dialled us says nothing about whom we may dial.
    links = [build_link("d", "x", LinkKind.INBOUND), build_link("e", "x", LinkKind.INBOUND)]
    assert draw_dials(book, links) == {"a:1", "b:1", "c:1"}


def test_at_most_so_many_of_an_address_group() -> None:
    book = AddressBook(b"s" * 32)
    for number in range(1, 9):
        book.add(f"8.8.{number}.1:1", "teller")
    book.add("9.9.9.9:1", "teller")
    links = [build_link("8.8.100.1"), build_link("8.8.100.2", is_up=False)]
    assert draw_dials(book, links) == {"9.9.9.9:1"}


def test_organisations_without_a_link_go_first() -> None:
    book = build_book(a="x", b="x", c="y")
    chosen = [
        choose_dial(book, [build_link("d", "x")], LIMITS, random.Random(seed), NOW, may_dial)
        for seed in range(200)
    ]
    share = sum(entry is not None and entry.organisation == "y" for entry in chosen) / 200
    assert share > 0.95


def test_a_chosen_link_tells_its_organisation_only_once_it_is_up() -> None:
    links = [build_link("a", "x"), build_link("b", "x"), build_link("c", "x", is_up=False)]
    assert is_organisation_full(links[2], links, LIMITS)
    assert not is_organisation_full(links[0], links[:2], LIMITS)


def test_full_slots_are_spread_over_organisations_and_then_rest() -> None:
    book = build_book(e="v", f="x")
    links = [
        build_link("a", "x", since=1),
        build_link("b", "x", since=2),
        build_link("c", "y"),
        build_link("d", "z"),
    ]
    found = choose_swap(book, links, LIMITS, random.Random(0), NOW, may_dial)
    assert found is not None
    assert (found[0].node_id, found[1].address) == ("b", "e:1")
    spread = [links[0], build_link("e", "v"), *links[2:]]
    assert choose_swap(book, spread, LIMITS, random.Random(0), NOW, may_dial) is None
    assert choose_swap(book, links[:3], LIMITS, random.Random(0), NOW, may_dial) is None


def test_inbound_links_leave_reserved_slots_free() -> None:
    inbound = [build_link(f"i{n}", "o", LinkKind.INBOUND) for n in range(16)]
    room = [has_inbound_slot(inbound[:count], LIMITS, configured=3) for count in range(16)]
    assert room == [count < 16 - 4 - 3 for count in range(16)]


def test_an_attacker_displaces_its_own_links_only() -> None:
    honest = [
        build_link(f"h{n}", f"org{n}", LinkKind.INBOUND, since=50, latency_s=1.0, useful=0) for n in range(5)
    ]
    rng = random.Random(7)
    links = list(honest)
    for number in range(500):
        newcomer = build_link(
            f"m{number}", "mallory-org", LinkKind.INBOUND, since=100 + number, latency_s=rng.random() / 100
        )
        if len(links) >= 12:
            victim = choose_eviction(links, LIMITS, "mallory-org")
            if victim is None:
                continue
            links.remove(victim)
        links.append(newcomer)
    assert set(honest) <= set(links)
    # And a newcomer of an organisation that has none gets in at the attacker's cost.
    victim = choose_eviction(links, SlotLimits(protected=1), "fresh")
    assert victim is not None
    assert victim.organisation == "mallory-org"


def test_the_oldest_nearest_and_most_useful_inbound_links_are_protected() -> None:
    limits = SlotLimits(protected=1)
    old = build_link("old", "m", LinkKind.INBOUND, since=1, latency_s=9)
    near = build_link("near", "m", LinkKind.INBOUND, since=20, latency_s=0.001)
    useful = build_link("useful", "m", LinkKind.INBOUND, since=30, latency_s=9, useful=5)
    spare = [build_link(f"s{n}", "m", LinkKind.INBOUND, since=10 + n, latency_s=5) for n in range(3)]
    links = [old, near, useful, *spare]
    gone = set()
    while (victim := choose_eviction(links, limits, "new")) is not None:
        gone.add(victim.node_id)
        links.remove(victim)
    assert gone == {"s0", "s1", "s2"}


def test_who_never_answered_goes_first() -> None:
    links = [
        build_link("a", "x", LinkKind.INBOUND),
        build_link("b", "y", LinkKind.INBOUND, is_up=False, since=5),
    ]
    victim = choose_eviction(links, LIMITS, "z")
    assert victim is not None
    assert victim.node_id == "b"
