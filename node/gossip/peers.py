"""Gossip itself, without I/O: announcements and outcomes in, actions out. Time is an argument.

An object is announced by id, small ones with their bytes. A node pulls what it does not have from a peer
that announced it, judges it, and tells every peer not known to have it. An id is remembered as seen only
once this node itself holds or announces the object: a peer that sends wrong bytes under an id can't hide the
right ones.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from consensus.gossip_rules import Outcome
from consensus.types import Hash32
from node.gossip.limits import Admission, Fault, NetworkLimits, RateLimiter, Score
from node.gossip.messages import (
    MAX_ANNOUNCED,
    MAX_INLINE_BYTES,
    MAX_KIND_BYTES,
    MAX_OBJECT_IDS,
    Announced,
    Announcement,
    Kind,
    MessageError,
    Route,
    decode_message,
)
from node.gossip.queue import Deliver

Key = tuple[Kind, Hash32]


@dataclass(frozen=True, slots=True)
class Pull:
    """Ask a peer for objects; answer with `on_pulled`, or with `on_pull_failed`."""

    peer: str
    kind: Kind
    ids: tuple[Hash32, ...]


@dataclass(frozen=True, slots=True)
class Flush:
    """There is something to send to a peer: `take_outbox`."""

    peer: str


@dataclass(frozen=True, slots=True)
class Ban:
    """Drop the link to a peer until then (monotonic seconds)."""

    peer: str
    until: float


Action = Pull | Deliver | Flush | Ban


class Overloaded(Exception):
    """Not now; nobody is to blame."""


class KeySet:
    """A bounded set that forgets what was added longest ago."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._keys: OrderedDict[Key, None] = OrderedDict()

    def add(self, key: Key) -> None:
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._size:
            self._keys.popitem(last=False)

    def discard(self, key: Key) -> None:
        self._keys.pop(key, None)

    def take_all(self) -> tuple[Key, ...]:
        """All keys, the oldest first; the set is empty then."""
        keys = tuple(self._keys)
        self._keys.clear()
        return keys

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)


class RecentObjects:
    """Objects announced here, kept to be pulled, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._objects: OrderedDict[Key, bytes] = OrderedDict()

    def add(self, key: Key, data: bytes) -> None:
        if key in self._objects:
            return
        self._objects[key] = data
        self._bytes += len(data)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._objects.popitem(last=False)[1])

    def get(self, key: Key) -> bytes | None:
        return self._objects.get(key)

    def __iter__(self) -> Iterator[Key]:
        return iter(tuple(self._objects))


@dataclass(slots=True)
class _Peer:
    known: KeySet
    limiter: RateLimiter
    score: Score
    deferred: KeySet
    """What it announced and could not be asked for: it was not linked, or did not answer."""
    outbox: OrderedDict[Key, bytes | None] = field(default_factory=OrderedDict)
    is_linked: bool = False
    is_chosen: bool = False
    """Linked, and by this node's choice."""
    wanted: int = 0
    useful: int = 0


@dataclass(slots=True)
class _Wanted:
    """An object between its announcement and its outcome."""

    peer: str
    """Who is asked, or who gave it."""
    others: deque[str] = field(default_factory=deque)
    """Who else announced it."""


class Gossip:
    """The state of gossip over all peers, by node id."""

    def __init__(self, chain_id: Hash32, limits: NetworkLimits, now: float) -> None:
        self.chain_id = chain_id
        self._limits = limits
        self._peers: dict[str, _Peer] = {}
        self._seen = KeySet(limits.seen)
        self._wanted: dict[Key, _Wanted] = {}
        self._totals = {
            is_chosen: RateLimiter(limits, now, limits.total_factor, limits.total_bytes_factor)
            for is_chosen in (False, True)
        }
        self.recent = RecentObjects(limits.recent_bytes)
        self.faults: Counter[str] = Counter()
        """All peers' faults since the start, by name."""

    def _get_peer(self, node_id: str, now: float) -> _Peer:
        peer = self._peers.get(node_id)
        if peer is None:
            limits = self._limits
            peer = _Peer(
                KeySet(limits.known), RateLimiter(limits, now), Score(limits), KeySet(limits.deferred)
            )
            self._peers[node_id] = peer
        return peer

    # --- links --------------------------------------------------------------------------------

    def on_linked(self, node_id: str, now: float, *, is_chosen: bool = False) -> list[Action]:
        """A peer can be reached: tell it what was announced lately, it may have been away.

        `is_chosen`: this node decided on the link; its requests count against a total of their own.
        """
        peer = self._get_peer(node_id, now)
        peer.is_linked, peer.is_chosen = True, is_chosen
        for key in self.recent:
            if key[0] is Kind.BLOCK:
                continue  # its status tells what it lacks, and synchronising brings it in order
            self._enqueue(peer, key, self.recent.get(key))
        flush: list[Action] = [Flush(node_id)] if peer.outbox else []
        return flush + self.on_heartbeat(node_id, now)

    def on_chosen(self, node_id: str) -> None:
        """This node made a link that it did not decide on its own."""
        peer = self._peers.get(node_id)
        if peer is not None:
            peer.is_chosen = peer.is_linked

    def on_heartbeat(self, node_id: str, now: float) -> list[Action]:
        """A linked peer answers: ask it again for what could not be had of it."""
        peer = self._get_peer(node_id, now)
        pulls: dict[Kind, list[Hash32]] = {}
        for key in peer.deferred.take_all():
            if key in self._seen or key in self._wanted:
                continue
            if not self._want(node_id, peer, key):
                peer.deferred.add(key)
            else:
                pulls.setdefault(key[0], []).append(key[1])
        return [pull for kind, ids in pulls.items() for pull in _build_pulls(node_id, kind, ids)]

    def on_unlinked(self, node_id: str) -> None:
        """A peer can't be reached; what it knew is forgotten, for it may restart with nothing."""
        peer = self._peers.get(node_id)
        if peer is not None:
            peer.is_linked = peer.is_chosen = False
            peer.outbox.clear()
            peer.known = KeySet(self._limits.known)

    # --- requests, faults ---------------------------------------------------------------------

    def admit(self, node_id: str, route: Route, size: int, now: float) -> Admission:
        """Whether a peer's request of so many bytes is within the rates."""
        peer = self._get_peer(node_id, now)
        if not peer.limiter.admit_request(route, size, now):
            return Admission.PEER_LIMIT
        if not self._totals[peer.is_chosen].admit_request(route, size, now):
            return Admission.TOTAL_LIMIT
        return Admission.ADMITTED

    def on_replied(self, node_id: str, size: int, now: float) -> None:
        """So many bytes were sent in reply to a request of the peer."""
        peer = self._get_peer(node_id, now)
        peer.limiter.charge_sent(size)
        self._totals[peer.is_chosen].charge_sent(size)

    def get_usefulness(self, node_id: str) -> int:
        """How many objects came from a peer first and were good."""
        peer = self._peers.get(node_id)
        return 0 if peer is None else peer.useful

    def get_bans(self, now: float) -> dict[str, float]:
        """Banned peers, and until when."""
        return {n: p.score.banned_until for n, p in self._peers.items() if p.score.is_banned(now)}

    def restore_ban(self, node_id: str, until: float, now: float) -> None:
        """A ban of an earlier run that is not over."""
        self._get_peer(node_id, now).score.banned_until = until

    def is_banned(self, node_id: str, now: float) -> bool:
        peer = self._peers.get(node_id)
        return peer is not None and peer.score.is_banned(now)

    def get_score(self, node_id: str, now: float) -> float:
        """0 for a peer without fault; at `ban_score` it is banned."""
        peer = self._peers.get(node_id)
        return 0.0 if peer is None else peer.score.get(now)

    def report(self, node_id: str, fault: Fault, now: float) -> list[Action]:
        """A peer did wrong."""
        self.faults[fault.name.lower()] += 1
        peer = self._get_peer(node_id, now)
        return [Ban(node_id, peer.score.banned_until)] if peer.score.add(fault, now) else []

    # --- announcements in ---------------------------------------------------------------------

    def on_announcement(
        self, node_id: str, body: bytes, has: Callable[[Kind, Hash32], bool], now: float
    ) -> list[Action]:
        """Bytes of an announcement: pull or judge what is new; more than allowed is dropped.

        Raises `MessageError` for bytes that are none; the caller reports the fault. Raises `Overloaded`
        where all peers together announce too much: the sender is to try again.
        """
        message = decode_message(Announcement, body)
        if message.chain_id != self.chain_id:
            raise MessageError("an announcement on another chain")
        peer = self._get_peer(node_id, now)
        count = len(message.items)
        if not peer.limiter.admit_announced(count, now):
            return self.report(node_id, Fault.FLOOD, now)
        if not self._totals[peer.is_chosen].admit_announced(count, now):
            raise Overloaded
        actions: list[Action] = []
        pulls: dict[Kind, list[Hash32]] = {}
        for item in message.items:
            key = (item.kind, item.id)
            peer.known.add(key)
            peer.outbox.pop(key, None)
            if key in self._seen or has(item.kind, item.id):
                continue
            wanted = self._wanted.get(key)
            if wanted is not None:
                if wanted.peer != node_id and node_id not in wanted.others:
                    wanted.others.append(node_id)
                continue
            if (item.data is None and not peer.is_linked) or not self._want(node_id, peer, key):
                peer.deferred.add(key)
                continue
            if item.data is not None:
                actions += self._deliver(node_id, key, item.data, now)
            else:
                pulls.setdefault(item.kind, []).append(item.id)
        for kind, ids in pulls.items():
            actions += _build_pulls(node_id, kind, ids)
        return actions

    def _want(self, node_id: str, peer: _Peer, key: Key) -> bool:
        """Note that an object is being had from a peer; False if too many are."""
        if len(self._wanted) >= self._limits.wanted or peer.wanted >= self._limits.wanted_per_peer:
            return False
        self._wanted[key] = _Wanted(node_id)
        peer.wanted += 1
        return True

    def on_pulled(self, pull: Pull, objects: Sequence[bytes | None], now: float) -> list[Action]:
        """A peer's reply: the objects in order, possibly fewer than asked for."""
        actions: list[Action] = []
        rest: list[Hash32] = []
        for at, object_id in enumerate(pull.ids):
            if at >= len(objects):
                rest.append(object_id)
                continue
            data = objects[at]
            if data is None:
                # It may have been dropped since; that is no fault.
                actions += self._try_next((pull.kind, object_id), now)
            else:
                actions += self._deliver(pull.peer, (pull.kind, object_id), data, now)
        if rest and len(rest) < len(pull.ids):
            actions += _build_pulls(pull.peer, pull.kind, rest)
        elif rest:
            actions += self.report(pull.peer, Fault.UNHELPFUL, now)
            for object_id in rest:
                actions += self._try_next((pull.kind, object_id), now)
        return actions

    def on_pull_failed(self, pull: Pull, now: float) -> list[Action]:
        """A peer did not answer: ask whoever else announced the objects."""
        actions: list[Action] = []
        for object_id in pull.ids:
            found = self._try_next((pull.kind, object_id), now)
            if not found:
                self._get_peer(pull.peer, now).deferred.add((pull.kind, object_id))
            actions += found
        return actions

    def _try_next(self, key: Key, now: float) -> list[Action]:
        wanted = self._wanted.get(key)
        if wanted is None:
            return []
        self._get_peer(wanted.peer, now).wanted -= 1
        while wanted.others:
            following = wanted.others.popleft()
            peer = self._get_peer(following, now)
            if peer.is_linked and not peer.score.is_banned(now):
                wanted.peer = following
                peer.wanted += 1
                return [Pull(following, key[0], (key[1],))]
        del self._wanted[key]
        return []

    def _deliver(self, node_id: str, key: Key, data: bytes, now: float) -> list[Action]:
        """Have an object judged, unless its size alone tells that it is none."""
        if len(data) <= MAX_KIND_BYTES[key[0]]:
            return [Deliver(node_id, key[0], key[1], data)]
        return [*self.report(node_id, Fault.INVALID_OBJECT, now), *self._try_next(key, now)]

    def on_dropped(self, delivered: Deliver, now: float) -> None:
        """An object gave way to others before it was judged: ask for it again later, without blame."""
        key = (delivered.kind, delivered.id)
        wanted = self._wanted.pop(key, None)
        if wanted is None:
            return
        self._get_peer(wanted.peer, now).wanted -= 1
        for node_id in (wanted.peer, *wanted.others):
            peer = self._get_peer(node_id, now)
            if peer.score.get(now) < 1:  # who is at fault already is not asked for more
                peer.deferred.add(key)

    def on_outcome(self, delivered: Deliver, outcome: Outcome, is_held: bool, now: float) -> list[Action]:
        """What became of a delivered object; `is_held`: this node has it under exactly that id now."""
        key = (delivered.kind, delivered.id)
        actions: list[Action] = []
        if outcome is Outcome.REJECT:
            actions += self.report(delivered.peer, Fault.INVALID_OBJECT, now)
            # Another peer may have the true object of this id.
            return actions + self._try_next(key, now)
        if outcome is Outcome.ACCEPT and not (is_held or key in self._seen):
            return self._try_next(key, now)  # good, but not what this id names
        wanted = self._wanted.pop(key, None)
        if wanted is not None:
            self._get_peer(wanted.peer, now).wanted -= 1
        if outcome is Outcome.ACCEPT:
            self._get_peer(delivered.peer, now).useful += 1
            actions += self.announce(delivered.kind, delivered.id, delivered.data)
        return actions

    # --- announcements out --------------------------------------------------------------------

    def announce(self, kind: Kind, object_id: Hash32, data: bytes) -> list[Action]:
        """Tell every linked peer that is not known to have the object."""
        key = (kind, object_id)
        self._seen.add(key)
        self.recent.add(key, data)
        actions: list[Action] = []
        for node_id, peer in self._peers.items():
            if peer.is_linked and self._enqueue(peer, key, data):
                actions.append(Flush(node_id))
        return actions

    def _enqueue(self, peer: _Peer, key: Key, data: bytes | None) -> bool:
        if key in peer.known or key in peer.outbox:
            return False
        peer.outbox[key] = data if data is not None and len(data) <= MAX_INLINE_BYTES else None
        if len(peer.outbox) > self._limits.outbox:
            peer.outbox.popitem(last=False)
        return True

    def take_outbox(self, node_id: str) -> Announcement | None:
        """The next announcement to a peer, blocks first; None if there is nothing to tell."""
        peer = self._peers.get(node_id)
        if peer is None or not peer.outbox:
            return None
        blocks = [key for key in peer.outbox if key[0] is Kind.BLOCK]
        keys = [*blocks, *(key for key in peer.outbox if key[0] is not Kind.BLOCK)][:MAX_ANNOUNCED]
        items = []
        for key in keys:
            items.append(Announced(key[0], key[1], peer.outbox.pop(key)))
            peer.known.add(key)
        return Announcement(self.chain_id, tuple(items))

    def put_back(self, node_id: str, announcement: Announcement) -> None:
        """An announcement did not reach the peer; it is tried again with the next flush."""
        peer = self._peers.get(node_id)
        if peer is None or not peer.is_linked:
            return
        for item in announcement.items:
            key = (item.kind, item.id)
            peer.known.discard(key)
            peer.outbox[key] = item.data
        while len(peer.outbox) > self._limits.outbox:
            peer.outbox.popitem(last=False)

    def get_object(self, kind: Kind, object_id: Hash32) -> bytes | None:
        """An object announced here lately."""
        return self.recent.get((kind, object_id))


def _build_pulls(node_id: str, kind: Kind, ids: Sequence[Hash32]) -> list[Pull]:
    return [
        Pull(node_id, kind, tuple(ids[at : at + MAX_OBJECT_IDS])) for at in range(0, len(ids), MAX_OBJECT_IDS)
    ]
