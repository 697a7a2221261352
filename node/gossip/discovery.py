"""Discovery: finds peers from seeds and from each other, and keeps the node's own choice of links filled.

Nothing is pushed: addresses are asked for, of peers that this node itself chose or its operator named, a few
at a time; a peer that dials us may tell its own address only. What is decided is in `book` and `selection`,
without I/O; this runs it.
"""

import logging
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from consensus.types import Millis
from node.clock import Clock
from node.gossip.addresses import AddressError, AddressPolicy
from node.gossip.book import AddressBook, BookLimits, Entry
from node.gossip.bookfile import (
    MAX_ANCHORS,
    MAX_BANS,
    SECRET_BYTES,
    VERSION,
    MemoryPeerStore,
    PeerStore,
    StoredBan,
    StoredPeers,
    build_book,
    decode_peers,
    encode_peers,
)
from node.gossip.handshake import HandshakeReason, HandshakeRefused
from node.gossip.messages import MAX_ADDRESSES
from node.gossip.selection import (
    OWN_CHOICE,
    LinkKind,
    LinkView,
    SlotLimits,
    choose_dial,
    choose_eviction,
    choose_swap,
    count_chosen,
    has_inbound_slot,
    is_organisation_full,
)
from node.gossip.transport import TransportError

logger = logging.getLogger(__name__)

MAX_REFUSED = 1_024


@dataclass(frozen=True, slots=True)
class DiscoveryTimes:
    """How often discovery does what; seconds."""

    tick_s: float = 1.0
    ask_s: float = 300.0
    """Between two requests for addresses to one peer."""
    feeler_s: float = 60.0
    """Between two tests of addresses, and two looks whether links could be spread better."""
    save_s: float = 60.0
    refused_s: float = 600.0
    """An address that the handshake refused is not dialled again so soon."""
    seed_s: float = 30.0
    """Between two attempts to link one seed."""


@dataclass(frozen=True, slots=True)
class DiscoveryConfig:
    """How peers are found."""

    seeds: tuple[str, ...] = ()
    """host:port of nodes to ask for others; kept for ever, dialled while there is nobody better."""
    policy: AddressPolicy = field(default_factory=AddressPolicy)
    book: BookLimits = field(default_factory=BookLimits)
    times: DiscoveryTimes = field(default_factory=DiscoveryTimes)
    anchors: int = 4
    """Peers of this node's choice that it returns to first after a restart."""
    dials_at_once: int = 4


class DiscoveryOwner(Protocol):
    """What discovery needs of its network."""

    @property
    def address(self) -> str: ...

    def get_views(self) -> list[LinkView]: ...

    def open_link(self, address: str, kind: LinkKind, learned_from: str | None = None) -> None: ...

    def close_link(self, address: str, reason: str) -> None: ...

    def is_banned(self, node_id: str) -> bool: ...

    def get_bans(self) -> Mapping[str, float]:
        """Banned node ids, and for how many seconds more."""
        ...

    async def request_addresses(self, node_id: str) -> tuple[str, ...]:
        """Raises `TransportError`."""
        ...


class Discovery:
    """Runs `tick` for ever; the network tells it of links and greetings."""

    def __init__(
        self,
        config: DiscoveryConfig,
        slots: SlotLimits,
        owner: DiscoveryOwner,
        clock: Clock,
        rng: random.Random,
        store: PeerStore | None = None,
    ) -> None:
        self._config = config
        self._slots = slots
        self._owner = owner
        self._clock = clock
        self._rng = rng
        self._store = store or MemoryPeerStore()
        stored = decode_peers(self._store.load())
        self.book = (
            AddressBook(rng.randbytes(SECRET_BYTES), config.book)
            if stored is None
            else build_book(stored, config.book)
        )
        self._anchors = list(stored.anchors[: config.anchors]) if stored is not None else []
        now_ms = clock.now_ms()
        self.stored_bans: dict[str, float] = {
            ban.node_id: (ban.until - now_ms) / 1000
            for ban in (stored.bans if stored is not None else ())
            if ban.until > now_ms
        }
        """Of the last run, and for how many seconds more."""
        self._refused: OrderedDict[str, tuple[HandshakeReason, float]] = OrderedDict()
        self._asked: dict[str, float] = {}
        self._seeded: dict[str, float] = {}
        now = clock.monotonic()
        self._next_feeler = now + self._config.times.feeler_s * (0.5 + rng.random())
        self._next_save = now + self._config.times.save_s

    # --- what the network tells ---------------------------------------------------------------

    def on_up(self, link: LinkView) -> None:
        """An address answered a handshake with this identity.

        Raises `HandshakeRefused` if a chosen link is one too many of its organisation.
        """
        if self._is_allowed(link.address) or link.kind is not LinkKind.INBOUND:
            self.book.on_good(link.address, link.node_id, link.organisation, self._now_ms())
        if link.kind is LinkKind.CHOSEN and is_organisation_full(link, self._owner.get_views(), self._slots):
            raise HandshakeRefused(HandshakeReason.ORGANISATION_FULL, f"{link.node_id} at {link.address}")

    def on_refused(self, address: str, reason: HandshakeReason) -> None:
        """Remember why an address is of no use, so that it is not dialled again at once."""
        self._refused[address] = (reason, self._clock.monotonic() + self._config.times.refused_s)
        self._refused.move_to_end(address)
        if len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
        if reason.is_lasting and reason is not HandshakeReason.ORGANISATION_FULL:
            self.book.forget(address)

    def get_refusal(self, address: str) -> HandshakeReason | None:
        """Why an address was refused lately."""
        found = self._refused.get(address)
        if found is None or found[1] <= self._clock.monotonic():
            self._refused.pop(address, None)
            return None
        return found[0]

    def on_greeted(self, node_id: str, organisation: str, address: str) -> None:
        """A peer dialled us and told its own address: dial it back if there is a slot, else note it."""
        if not self._is_allowed(address) or self.get_refusal(address) is not None:
            return
        self.book.add(address, organisation)
        links = self._owner.get_views()
        configured = sum(link.kind is LinkKind.CONFIGURED for link in links)
        if not has_inbound_slot(links, self._slots, configured):
            victim = choose_eviction(links, self._slots, organisation)
            if victim is None:
                return
            self._owner.close_link(victim.address, "it makes room for a peer of another organisation")
        self._owner.open_link(address, LinkKind.INBOUND, node_id)

    def get_addresses(self) -> tuple[str, ...]:
        """What another node is told."""
        return self.book.sample(self._rng, self._now_ms(), MAX_ADDRESSES)

    # --- running ------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever, beginning with the anchors."""
        for address in self._anchors:
            if count_chosen(self._owner.get_views()) < self._slots.chosen and self._is_allowed(address):
                self._dial(address, LinkKind.CHOSEN)
        while True:
            await self.tick()
            await self._clock.sleep(self._config.times.tick_s)

    async def tick(self) -> None:
        """One round: fill slots, test an address, ask a peer, save; each when it is due."""
        now = self._clock.monotonic()
        self._fill()
        if now >= self._next_feeler:
            self._next_feeler = now + self._config.times.feeler_s * (0.5 + self._rng.random())
            self._swap()
            self._feel()
        await self._ask(now)
        if now >= self._next_save:
            self.save()

    def _fill(self) -> None:
        links = self._owner.get_views()
        dialling = sum(link.kind in OWN_CHOICE and not link.is_up for link in links)
        for _ in range(max(0, self._config.dials_at_once - dialling)):
            if count_chosen(links) >= self._slots.chosen or len(links) >= self._slots.links:
                return
            entry = choose_dial(self.book, links, self._slots, self._rng, self._now_ms(), self._may_dial)
            address = self._choose_seed(links) if entry is None else entry.address
            if address is None:
                return
            self._dial(address, LinkKind.SEED if entry is None else LinkKind.CHOSEN)
            links = self._owner.get_views()
        if not any(link.is_up and link.kind is not LinkKind.INBOUND for link in links):
            # A book full of dead addresses must not keep us from the seeds.
            seed = self._choose_seed(links)
            if seed is not None:
                self._dial(seed, LinkKind.SEED)

    def _choose_seed(self, links: Sequence[LinkView]) -> str | None:
        now = self._clock.monotonic()
        taken = {link.address for link in links if link.kind is not LinkKind.INBOUND}
        for seed in self._config.seeds:
            if (
                seed not in taken
                and now >= self._seeded.get(seed, now)
                and self.get_refusal(seed) is None
                and seed != self._owner.address
            ):
                self._seeded[seed] = now + self._config.times.seed_s
                return seed
        return None

    def _swap(self) -> None:
        found = choose_swap(
            self.book, self._owner.get_views(), self._slots, self._rng, self._now_ms(), self._may_dial
        )
        if found is not None:
            self._owner.close_link(found[0].address, "a peer of another organisation takes its place")
            self._dial(found[1].address, LinkKind.CHOSEN)

    def _feel(self) -> None:
        taken = {link.address for link in self._owner.get_views()}
        entry = self.book.select_new(
            self._rng, self._now_ms(), lambda e: e.address not in taken and self._may_dial(e)
        )
        if entry is not None:
            self._dial(entry.address, LinkKind.FEELER)

    async def _ask(self, now: float) -> None:
        """Ask one peer for addresses: of our own choice, never one that dialled us."""
        for link in self._owner.get_views():
            if not link.is_up or link.kind in (LinkKind.INBOUND, LinkKind.FEELER):
                continue
            if now < self._asked.get(link.node_id, now):
                continue
            # Not before the peer's own rate allows it, also when it comes and goes.
            self._asked[link.node_id] = now + self._config.times.ask_s * (0.75 + 0.5 * self._rng.random())
            try:
                addresses = await self._owner.request_addresses(link.node_id)
            except TransportError as error:
                logger.debug("%s told no addresses: %s", link.node_id, error)
                return
            for address in addresses:
                if self._is_allowed(address):
                    self.book.add(address, link.organisation)
            return

    def _dial(self, address: str, kind: LinkKind) -> None:
        if not any(link.address == address and link.is_up for link in self._owner.get_views()):
            self.book.on_attempt(address, self._now_ms())
        self._owner.open_link(address, kind)

    def _may_dial(self, entry: Entry) -> bool:
        return (
            self.get_refusal(entry.address) is None
            and self._is_allowed(entry.address)
            and not (entry.node_id and self._owner.is_banned(entry.node_id))
        )

    def _is_allowed(self, address: str) -> bool:
        if address == self._owner.address:
            return False
        try:
            self._config.policy.check(address)
        except AddressError as error:
            logger.debug("an address is not taken: %s", error)
            return False
        return True

    def _now_ms(self) -> Millis:
        return self._clock.now_ms()

    # --- remembering --------------------------------------------------------------------------

    def save(self) -> None:
        """Write book, anchors and bans."""
        self._next_save = self._clock.monotonic() + self._config.times.save_s
        links = [link for link in self._owner.get_views() if link.kind in OWN_CHOICE and link.is_up]
        anchors = [link.address for link in sorted(links, key=lambda link: link.since)]
        bans = sorted(self._owner.get_bans().items(), key=lambda ban: -ban[1])[:MAX_BANS]
        now_ms = self._now_ms()
        stored = StoredPeers(
            VERSION,
            self.book.secret,
            tuple(self.book),
            tuple(anchors[: min(self._config.anchors, MAX_ANCHORS)]),
            tuple(StoredBan(node_id, now_ms + round(1000 * seconds)) for node_id, seconds in bans),
        )
        self._store.save(encode_peers(stored))
