"""The address book: where peers may be found, bounded so that nobody can fill it. Pure: no I/O, time and
randomness are arguments.

Two tables in the manner of Bitcoin's addrman, smaller and with organisations where Bitcoin has only address
groups, because certificates prove them. *New* addresses are hearsay, in buckets by the organisation that
told them and the address's group; *tried* ones answered a handshake of ours, in buckets by the organisation
that their certificate proves and the group. All positions are keyed by a secret, so that nobody can aim.

One organisation can hold at most `max_per_source` new entries as a teller, and `buckets_per_organisation` of
the tried buckets as an owner, however many addresses and nodes it has.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from consensus.crypto import hash_domain
from consensus.types import Millis
from node.gossip.addresses import compute_group

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class BookLimits:
    """Sizes of an address book."""

    new_buckets: int = 64
    new_bucket_size: int = 16
    tried_buckets: int = 32
    tried_bucket_size: int = 8
    buckets_per_source: int = 8
    """New buckets that the addresses told by one organisation can be in."""
    buckets_per_organisation: int = 4
    """Tried buckets that the nodes of one organisation can be in."""
    max_per_source: int = 64
    """New addresses told by one organisation."""
    max_failures: int = 4
    """A new address that failed so often is forgotten, a tried one may be replaced."""
    retry_ms: int = 60_000
    """An address is not chosen again so soon after an attempt; doubled with every failure."""
    stale_ms: int = 7 * 24 * HOUR_MS
    """A tried address that did not answer for so long is not told to others and may be replaced."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the book knows of an address."""

    address: str
    source: str
    """Organisation that told it; empty for what the operator configured."""
    node_id: str = ""
    """Of whom it belonged to when it last answered; empty while it never did."""
    organisation: str = ""
    last_good: int = 0
    """When it last answered, ms; 0: never."""
    last_attempt: int = 0
    failures: int = 0
    """Attempts in a row that failed."""

    @property
    def is_tried(self) -> bool:
        return bool(self.node_id)


class AddressBook:
    """Addresses by bucket. Changes are O(1), choices O(size), which is at most 1,280 by default."""

    def __init__(self, secret: bytes, limits: BookLimits | None = None) -> None:
        self.secret = secret
        self._limits = limits or BookLimits()
        self._entries: dict[str, Entry] = {}
        self._new: dict[tuple[int, int], str] = {}
        self._tried: dict[tuple[int, int], str] = {}
        self._by_source: Counter[str] = Counter()
        self._by_node: dict[str, str] = {}
        self._contested: dict[str, None] = {}
        """Tried addresses whose place another one wants: to be tested next."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, address: str) -> bool:
        return address in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def get(self, address: str) -> Entry | None:
        return self._entries.get(address)

    @property
    def tried_count(self) -> int:
        return len(self._tried)

    # --- changes ------------------------------------------------------------------------------

    def add(self, address: str, source: str) -> bool:
        """Note an address that a node of organisation `source` told; True if it is in the book as new.

        It never pushes out an address that may still be good.
        """
        limits = self._limits
        if address in self._entries or self._by_source[source] >= limits.max_per_source:
            return False
        place = self._get_new_place(address, source)
        holder = self._new.get(place)
        if holder is not None:
            if self._entries[holder].failures < 2:
                return False
            self._remove(holder)
        self._put_new(place, Entry(address, source))
        return True

    def on_attempt(self, address: str, now: Millis) -> None:
        """The address is being dialled; it counts as failed until `on_good`."""
        entry = self._entries.get(address)
        if entry is None:
            return
        failures = entry.failures + 1
        if not entry.is_tried and failures > self._limits.max_failures:
            self._remove(address)
            return
        self._replace(entry, last_attempt=now, failures=failures)

    def on_good(self, address: str, node_id: str, organisation: str, now: Millis) -> None:
        """The address answered a handshake of ours with this identity.

        Its place in the tried table may be held by another one: that one keeps it while it answers, and is
        named by `get_contested` to be tested.
        """
        entry = self._entries.get(address) or Entry(address, organisation)
        former = self._by_node.get(node_id)
        if former is not None and former != address:
            # One tried address a node: it moved, or has several.
            self._demote(former)
        if entry.is_tried and (entry.node_id, entry.organisation) != (node_id, organisation):
            self._remove(address)
        place = self._get_tried_place(address, organisation)
        holder = self._tried.get(place)
        self._contested.pop(address, None)
        if holder is not None and holder != address:
            if not self._is_replaceable(self._entries[holder], now):
                self._contested[holder] = None
                if address in self._entries:
                    self._replace(entry, last_attempt=now, failures=0)
                return
            self._demote(holder)
        self._remove(address)
        self._tried[place] = address
        self._by_node[node_id] = address
        self._entries[address] = Entry(address, entry.source, node_id, organisation, now, now)

    def forget(self, address: str) -> None:
        """The address is of no use: it is this node's own, or of another chain."""
        self._remove(address)

    # --- choices ------------------------------------------------------------------------------

    def select(
        self,
        rng: random.Random,
        now: Millis,
        is_wanted: Callable[[Entry], bool],
        *,
        tried_share: float = 0.5,
        count: int = 1,
    ) -> list[Entry]:
        """So many addresses to dial, with repetition, each from the tried table with that probability, else
        from the new one; from the other one where there is nothing wanted.

        A bucket is drawn first and then an address in it, so that full buckets weigh no more than others.
        """
        tried, new = (self._find(table, now, is_wanted) for table in (self._tried, self._new))
        drawn = []
        for _ in range(count):
            first, second = (tried, new) if rng.random() < tried_share else (new, tried)
            buckets = first or second
            if buckets:
                drawn.append(rng.choice(rng.choice(buckets)))
        return drawn

    def _find(
        self, table: dict[tuple[int, int], str], now: Millis, is_wanted: Callable[[Entry], bool]
    ) -> list[list[Entry]]:
        """What is wanted of a table, by bucket."""
        buckets: dict[int, list[Entry]] = {}
        for (bucket, _), address in table.items():
            entry = self._entries[address]
            if self._may_dial(entry, now) and is_wanted(entry):
                buckets.setdefault(bucket, []).append(entry)
        return [buckets[bucket] for bucket in sorted(buckets)]

    def select_new(self, rng: random.Random, now: Millis, is_wanted: Callable[[Entry], bool]) -> Entry | None:
        """An address to test: a tried one whose place is wanted, else a new one."""
        for address in tuple(self._contested):
            entry = self._entries[address]
            if self._may_dial(entry, now) and is_wanted(entry):
                return entry
        found = self.select(rng, now, lambda e: not e.is_tried and is_wanted(e), tried_share=0.0)
        return found[0] if found else None

    def sample(self, rng: random.Random, now: Millis, most: int) -> tuple[str, ...]:
        """Addresses to tell another node: such as answered us not long ago, at most a quarter of them once
        there are many. Hearsay is not passed on, so that what one invents reaches nobody else."""
        fresh = sorted(
            e.address
            for a in self._tried.values()
            if now - (e := self._entries[a]).last_good < self._limits.stale_ms
        )
        return tuple(rng.sample(fresh, min(most, max(8, len(fresh) // 4), len(fresh))))

    def get_contested(self) -> tuple[str, ...]:
        return tuple(self._contested)

    def restore(self, entry: Entry) -> bool:
        """Put back an entry of an earlier run with the same secret; False if its place is taken."""
        if entry.address in self._entries:
            return False
        if entry.is_tried:
            place = self._get_tried_place(entry.address, entry.organisation)
            if place in self._tried or entry.node_id in self._by_node:
                return False
            self._tried[place] = entry.address
            self._by_node[entry.node_id] = entry.address
            self._entries[entry.address] = entry
            return True
        place = self._get_new_place(entry.address, entry.source)
        if place in self._new or self._by_source[entry.source] >= self._limits.max_per_source:
            return False
        self._put_new(place, entry)
        return True

    # --- inside -------------------------------------------------------------------------------

    def _may_dial(self, entry: Entry, now: Millis) -> bool:
        # Not after a clock that was set back, which would keep it waiting for as long.
        since = now - entry.last_attempt
        wait: int = self._limits.retry_ms * 2 ** min(entry.failures, 10) // 2
        return since < 0 or entry.failures == 0 or since >= wait

    def _is_replaceable(self, entry: Entry, now: Millis) -> bool:
        return entry.failures >= self._limits.max_failures or now - entry.last_good >= self._limits.stale_ms

    def _draw(self, tag: str, *parts: str) -> int:
        data = b"\0".join(part.encode() for part in parts)
        return int.from_bytes(hash_domain("addresses", self.secret + tag.encode() + b"\0" + data)[:8])

    def _get_new_place(self, address: str, source: str) -> tuple[int, int]:
        limits = self._limits
        within = self._draw("new-within", source, compute_group(address)) % limits.buckets_per_source
        bucket = self._draw("new", source, str(within)) % limits.new_buckets
        return bucket, self._draw("new-slot", str(bucket), address) % limits.new_bucket_size

    def _get_tried_place(self, address: str, organisation: str) -> tuple[int, int]:
        limits = self._limits
        within = self._draw("tried-within", organisation, compute_group(address))
        within %= limits.buckets_per_organisation
        bucket = self._draw("tried", organisation, str(within)) % limits.tried_buckets
        return bucket, self._draw("tried-slot", str(bucket), address) % limits.tried_bucket_size

    def _put_new(self, place: tuple[int, int], entry: Entry) -> None:
        self._new[place] = entry.address
        self._by_source[entry.source] += 1
        self._entries[entry.address] = entry

    def _replace(self, entry: Entry, *, last_attempt: int, failures: int) -> None:
        self._entries[entry.address] = Entry(
            entry.address,
            entry.source,
            entry.node_id,
            entry.organisation,
            entry.last_good,
            last_attempt,
            failures,
        )

    def _demote(self, address: str) -> None:
        """From tried to new, if there is room, else out."""
        entry = self._entries[address]
        self._remove(address)
        place = self._get_new_place(address, entry.source)
        if place not in self._new and self._by_source[entry.source] < self._limits.max_per_source:
            self._put_new(place, Entry(address, entry.source, last_attempt=entry.last_attempt))

    def _remove(self, address: str) -> None:
        entry = self._entries.pop(address, None)
        if entry is None:
            return
        self._contested.pop(address, None)
        if entry.is_tried:
            del self._tried[self._get_tried_place(address, entry.organisation)]
            del self._by_node[entry.node_id]
        else:
            del self._new[self._get_new_place(address, entry.source)]
            self._by_source[entry.source] -= 1
            if not self._by_source[entry.source]:
                del self._by_source[entry.source]
